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
