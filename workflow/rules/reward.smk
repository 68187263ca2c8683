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
    log:
        "results/{model}/{reward_model}/logs/train.log",
    benchmark:
        "results/{model}/{reward_model}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(minutes=60, per_billion=120),
    params:
        launch=program("launch.py"),
        out=lambda wildcards, output: Path(output.log).parent,
        data=lambda wildcards, input: Path(input.tasks).parent,
    message:
        "Training reward model {wildcards.reward_model} of {wildcards.model}"
    shell:
        "python {params.launch:q} {resources.launch} {input.program:q} "
        "--config {input.config:q} --base {input.base:q} --data {params.data:q} "
        "--out {params.out:q} 2>&1 | tee {log:q}"


rule reward_quality:
    input:
        config="results/{model}/predict/config.yaml",
        base="results/{model}/sft_wrat/merged",
        reward="results/{model}/{reward_model}/adapter",
        adapters=lambda wildcards: expand("results/{{model}}/{method}/adapter", method=judged_on(wildcards)),
        data=data_file("validation.jsonl"),
        tasks=data_file("tasks.json"),
        program=program("reward_quality.py"),
        code=code("reward_quality.py"),
    output:
        quality="results/{model}/{reward_model}/quality.json",
        samples="results/{model}/{reward_model}/quality_samples.jsonl",
    log:
        "results/{model}/{reward_model}/logs/quality.log",
    benchmark:
        "results/{model}/{reward_model}/logs/quality.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(minutes=30, per_billion=30, processes=1),
    params:
        launch=program("launch.py"),
        policies=lambda wildcards: [
            "sft_wrat",
            *(f"{m}=results/{wildcards.model}/{m}/adapter" for m in judged_on(wildcards)),
        ],
    message:
        "Whether {wildcards.reward_model} of {wildcards.model} tells right from wrong among the policy's samples"
    shell:
        "python {params.launch:q} {resources.launch} {input.program:q} "
        "--config {input.config:q} --base {input.base:q} --reward {input.reward:q} "
        "--policies {params.policies:q} --data {input.data:q} --tasks {input.tasks:q} --out {output.quality:q} "
        "2>&1 | tee {log:q}"
