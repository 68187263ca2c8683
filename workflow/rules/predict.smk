# Greedy answers to the test prompts, and their metrics.


def method_base(wildcards):
    """The model that a method's adapter belongs to: the base model for SFT, merged sft_wrat for PPO."""
    if wildcards.method in PPO_METHODS:
        return f"results/{wildcards.model}/sft_wrat/merged"
    return f"{PREPARED}/{wildcards.model}/base"


def method_adapter(wildcards):
    if wildcards.method not in REWARD_MODELS:
        raise WorkflowError(f"unknown method {wildcards.method!r}; known: {', '.join(REWARD_MODELS)}")
    return f"results/{wildcards.model}/{wildcards.method}/adapter"


rule predict:
    input:
        config="results/{model}/predict/config.yaml",
        base=method_base,
        adapter=method_adapter,
        data=data_file("test.jsonl"),
        tasks=data_file("tasks.json"),
        program=program("predict.py"),
        code=code("predict.py"),
    output:
        predictions="results/{model}/{method}/predictions.jsonl",
    log:
        "results/{model}/{method}/logs/predict.log",
    benchmark:
        "results/{model}/{method}/logs/predict.benchmark.tsv"
    threads: config["threads"]
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=12 * 60,
    conda:
        "../../environment.yml"
    message:
        "Predicting with {wildcards.method} of {wildcards.model}"
    shell:
        "{PYTHON} {input.program:q} --config {input.config:q} --base {input.base:q} --adapter {input.adapter:q} "
        "--data {input.data:q} --tasks {input.tasks:q} --out {output.predictions:q} 2>&1 | tee {log:q}"


rule metrics:
    input:
        predictions="results/{model}/{method}/predictions.jsonl",
        tasks=data_file("tasks.json"),
        program=program("metrics.py"),
        code=code("metrics.py"),
    output:
        metrics="results/{model}/{method}/metrics.json",
    params:
        data=lambda wildcards: data_of(wildcards.model),
    log:
        "results/{model}/{method}/logs/metrics.log",
    benchmark:
        "results/{model}/{method}/logs/metrics.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../../environment.yml"
    message:
        "Metrics of {wildcards.method} of {wildcards.model}"
    shell:
        "{PYTHON} {input.program:q} --predictions {input.predictions:q} --tasks {input.tasks:q} "
        "--model {wildcards.model:q} --method {wildcards.method:q} --data {params.data:q} --out {output.metrics:q} "
        "> {log:q} 2>&1"
