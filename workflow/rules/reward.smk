# Reward models: rm_rlhf on rationale-sensitive pairs, rm_rllr on label-sensitive pairs.

HELD_OUT_PAIRS = [
    "label_sensitive_pairs_for_test.jsonl",
    "label_sensitive_pairs_for_validation.jsonl",
    "rationale_sensitive_pairs_for_test.jsonl",
]


rule reward_model:
    input:
        config="results/{model}/{reward_model}/config.yaml",
        base="results/{model}/sft_wrat/merged",
        train=lambda wildcards: data_file(wildcards.reward_model.removeprefix("rm_") + "_reward_train.jsonl")(wildcards),
        held_out=lambda wildcards: [data_file(name)(wildcards) for name in HELD_OUT_PAIRS],
        tasks=data_file("tasks.json"),
        program=program("reward.py"),
        code=code("reward.py"),
    output:
        adapter=directory("results/{model}/{reward_model}/adapter"),
        metrics="results/{model}/{reward_model}/metrics.json",
        scores="results/{model}/{reward_model}/pair_scores.jsonl",
        log="results/{model}/{reward_model}/train_log.jsonl",
    params:
        out=lambda wildcards, output: Path(output.log).parent,
        data=lambda wildcards, input: Path(input.tasks).parent,
    log:
        "results/{model}/{reward_model}/logs/train.log",
    benchmark:
        "results/{model}/{reward_model}/logs/train.benchmark.tsv"
    threads: config["threads"]
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=24 * 60,
    conda:
        "../../environment.yml"
    message:
        "Training reward model {wildcards.reward_model} of {wildcards.model}"
    shell:
        "{PYTHON} {input.program:q} --config {input.config:q} --base {input.base:q} --data {params.data:q} "
        "--out {params.out:q} 2>&1 | tee {log:q}"
