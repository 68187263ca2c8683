# Answers to the test prompts, their metrics, and the model behind them in a form to take away.


rule predict:
    input:
        config=config_of("predict"),
        base=method_base,
        adapter=method_adapter,
        reward=method_reward,
        data=data_file("test.jsonl"),
        validation=data_file("validation.jsonl"),
        responses=lambda wildcards: data_file(f"{METHODS[wildcards.method].answers_like}.jsonl")(wildcards),
        tasks=data_file("tasks.json"),
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
        **on_gpus("predict", processes=1),
    params:
        votes=lambda wildcards: "--votes" if METHODS[wildcards.method].voted else "",
    message:
        "Predicting with {wildcards.method} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/predict.py" '
        "--config results/{wildcards.model:q}/predict/config.yaml --base {input.base:q} --adapter {input.adapter:q} "
        "--reward {input.reward:q} --data {input.data:q} --tasks {input.tasks:q} --responses {input.responses:q} "
        "--validation {input.validation:q} {params.votes} --out {output.predictions:q} 2>&1 | tee {log:q}"


rule metrics:
    input:
        code=code("metrics.py"),
        predictions="results/{model}/{method}/predictions.jsonl",
        tasks=data_file("tasks.json"),
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
        'python "$PROGRAMS/metrics.py" --predictions {input.predictions:q} --tasks {input.tasks:q} '
        "--model {wildcards.model:q} --method {wildcards.method:q} --data {params.data:q} --out {output.metrics:q} "
        "2>&1 | tee {log:q}"


rule export:
    input:
        code=code("export.py"),
        base=method_base,
        adapter=method_adapter,
        metrics="results/{model}/{method}/metrics.json",
        used="results/{model}/{method}/model.json",
        origin=ancient("results/{model}/base"),
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
        'CUDA_VISIBLE_DEVICES= python "$PROGRAMS/export.py" --base {input.base:q} --adapter {input.adapter:q} '
        "--config results/{wildcards.model:q}/{wildcards.method:q}/config.yaml --metrics {input.metrics:q} "
        "--used {input.used:q} --origin {input.origin:q}/origin.json --out {output.model:q} 2>&1 | tee {log:q}"
