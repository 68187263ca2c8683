# Answers to the test prompts, their metrics, and the model behind them in a form to take away.


rule predict:
    input:
        config="results/{model}/predict/config.yaml",
        base=method_base,
        adapter=method_adapter,
        reward=method_reward,
        data=data_file("test.jsonl"),
        tasks=data_file("tasks.json"),
        program=program("predict.py"),
        code=code("predict.py"),
    output:
        predictions="results/{model}/{method}/predictions.jsonl",
        model="results/{model}/{method}/model.json",
    log:
        "results/{model}/{method}/logs/predict.log",
    benchmark:
        "results/{model}/{method}/logs/predict.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(minutes=30, per_billion=60, processes=1),
    params:
        launch=program("launch.py"),
    message:
        "Predicting with {wildcards.method} of {wildcards.model}"
    shell:
        "python {params.launch:q} {resources.launch} {input.program:q} "
        "--config {input.config:q} --base {input.base:q} --adapter {input.adapter:q} "
        "--reward {input.reward:q} --data {input.data:q} --tasks {input.tasks:q} --out {output.predictions:q} "
        "2>&1 | tee {log:q}"


rule metrics:
    input:
        predictions="results/{model}/{method}/predictions.jsonl",
        tasks=data_file("tasks.json"),
        program=program("metrics.py"),
        code=code("metrics.py"),
    output:
        metrics="results/{model}/{method}/metrics.json",
    log:
        "results/{model}/{method}/logs/metrics.log",
    benchmark:
        "results/{model}/{method}/logs/metrics.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        data=lambda wildcards: data_of(wildcards.model),
    message:
        "Metrics of {wildcards.method} of {wildcards.model}"
    shell:
        "python {input.program:q} --predictions {input.predictions:q} --tasks {input.tasks:q} "
        "--model {wildcards.model:q} --method {wildcards.method:q} --data {params.data:q} --out {output.metrics:q} "
        "2>&1 | tee {log:q}"


rule export:
    input:
        base=method_base,
        adapter=method_adapter,
        config="results/{model}/{method}/config.yaml",
        metrics="results/{model}/{method}/metrics.json",
        used="results/{model}/{method}/model.json",
        origin=f"{PREPARED}/{{model}}/base",
        program=program("export.py"),
        code=code("export.py"),
    output:
        model=directory("results/{model}/{method}/model"),
    log:
        "results/{model}/{method}/logs/export.log",
    benchmark:
        "results/{model}/{method}/logs/export.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        mem_mb=weights_mb,
        runtime=lambda wildcards, attempt: int(attempt * (15 + 10 * size(wildcards))),
    message:
        "A standalone model of {wildcards.method} of {wildcards.model}"
    shell:
        # No GPU: another stage may hold it.
        "CUDA_VISIBLE_DEVICES= python {input.program:q} --base {input.base:q} --adapter {input.adapter:q} "
        "--config {input.config:q} --metrics {input.metrics:q} --used {input.used:q} --origin {input.origin:q}/origin.json "
        "--out {output.model:q} 2>&1 | tee {log:q}"
