# Reward models on pairs, and what their scores are worth among the policies' own samples.


rule reward_model:
    input:
        config=config_of("reward_model"),
        base="results/{model}/sft_wrat/merged",
        data=lambda wildcards: [data_file(f"{name}.jsonl")(wildcards) for name in files_of(wildcards.reward_model)],
        tasks=data_file("tasks.json"),
    output:
        adapter=directory("results/{model}/{reward_model}/adapter"),
        metrics="results/{model}/{reward_model}/metrics.json",
        scores="results/{model}/{reward_model}/pair_scores.jsonl",
    log:
        "results/{model}/{reward_model}/logs/train.log",
    benchmark:
        "results/{model}/{reward_model}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(),
    params:
        out="results/{model}/{reward_model}",
        data=lambda wildcards, input: Path(input.tasks).parent,
    message:
        "Training reward model {wildcards.reward_model} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/reward.py" '
        "--config {params.out:q}/config.yaml --base {input.base:q} --data {params.data:q} "
        "--out {params.out:q} 2>&1 | tee {log:q}"


# Samples of a policy for the validation prompts, once for all reward models.
rule sample_policy:
    input:
        config=config_of("quality"),
        base="results/{model}/sft_wrat/merged",
        adapter=lambda wildcards: [] if wildcards.method == "sft_wrat" else method_adapter(wildcards),
        data=data_file("validation.jsonl"),
        responses=data_file("sft_with_rat_train.jsonl"),
        tasks=data_file("tasks.json"),
    output:
        samples="results/{model}/{method}/validation_samples.jsonl",
    log:
        "results/{model}/{method}/logs/samples.log",
    benchmark:
        "results/{model}/{method}/logs/samples.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus("quality", processes=1),
    message:
        "Sampling {wildcards.method} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/sample_policy.py" '
        "--config results/{wildcards.model:q}/quality/config.yaml --base {input.base:q} --adapter {input.adapter:q} "
        "--data {input.data:q} --tasks {input.tasks:q} --responses {input.responses:q} --out {output.samples:q} "
        "2>&1 | tee {log:q}"


rule reward_quality:
    input:
        code=code("reward_quality.py"),
        config=config_of("quality"),
        base="results/{model}/sft_wrat/merged",
        reward="results/{model}/{reward_model}/adapter",
        samples=lambda wildcards: expand(
            "results/{{model}}/{method}/validation_samples.jsonl",
            method=["sft_wrat", *judged_on(wildcards.reward_model)],
        ),
        data=data_file("validation.jsonl"),
        responses=data_file("sft_with_rat_train.jsonl"),
        tasks=data_file("tasks.json"),
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
        **on_gpus("quality", processes=1),
    message:
        "Whether {wildcards.reward_model} of {wildcards.model} tells right from wrong among the policies' samples"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/reward_quality.py" '
        "--config results/{wildcards.model:q}/quality/config.yaml --base {input.base:q} --reward {input.reward:q} "
        "--samples {input.samples:q} --data {input.data:q} --tasks {input.tasks:q} --responses {input.responses:q} "
        "--out {output.quality:q} 2>&1 | tee {log:q}"
