# Methods x tasks of the models in config.yaml.


rule summary:
    input:
        metrics=expand(
            "results/{model}/{method}/metrics.json", model=config["models"], method=config["methods"]
        ),
        predictions=expand(
            "results/{model}/{method}/predictions.jsonl", model=config["models"], method=config["methods"]
        ),
        tasks=[f"{PREPARED}/data/{data_of(model)}/tasks.json" for model in config["models"]],
        program=program("summary.py"),
        code=code("summary.py"),
    output:
        tsv=report("results/summary.tsv", category="Summary"),
        md=report("results/summary.md", category="Summary"),
    params:
        models=config["models"],
        methods=config["methods"],
    log:
        "results/logs/summary.log",
    benchmark:
        "results/logs/summary.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../../environment.yml"
    message:
        "Summary of {params.models}"
    shell:
        "{PYTHON} {input.program:q} --results results --models {params.models:q} --methods {params.methods:q} "
        "--tasks {input.tasks:q} --out results > {log:q} 2>&1"


rule curves:
    input:
        log="results/{model}/{stage}/train_log.jsonl",
        program=program("curves.py"),
        code=code("curves.py"),
    output:
        curves=report(
            "results/{model}/{stage}/curves.svg",
            caption="../report/curves.rst",
            category="Training",
            subcategory="{model}",
            labels={"stage": "{stage}"},
        ),
    params:
        title=lambda wildcards: f"{wildcards.stage}, {wildcards.model}",
    log:
        "results/{model}/{stage}/logs/curves.log",
    benchmark:
        "results/{model}/{stage}/logs/curves.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../../environment.yml"
    message:
        "Curves of {wildcards.stage} of {wildcards.model}"
    shell:
        "{PYTHON} {input.program:q} --log {input.log:q} --title {params.title:q} --out {output.curves:q} "
        "> {log:q} 2>&1"
