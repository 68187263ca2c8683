# The models and methods of config.yaml beside each other: the summary table, and a page with everything behind it.


rule summary:
    input:
        code=code("summary.py"),
        metrics=expand("results/{model}/{method}/metrics.json", model=config["models"], method=config["methods"]),
        predictions=expand(
            "results/{model}/{method}/predictions.jsonl", model=config["models"], method=config["methods"]
        ),
        tasks=expand("results/{model}/{method}/model.json", model=config["models"], method=config["methods"]),
    output:
        tsv="results/summary.tsv",
        md="results/summary.md",
        differences="results/differences.svg",
        html=report(
            "results/summary.html",
            caption="../report/summary.rst",
            category="Summary",
            labels={"table": "methods x tasks"},
        ),
    log:
        "results/logs/summary.log",
    benchmark:
        "results/logs/summary.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=config["models"],
        methods=config["methods"],
    message:
        "Summary of {params.models}"
    shell:
        'python "$PROGRAMS/summary.py" --results results --models {params.models:q} --methods {params.methods:q} '
        "--out results 2>&1 | tee {log:q}"


# Stages with training curves: the methods that were trained, sft_wrat under PPO, and the reward models.
REPORT_STAGES = [
    stage
    for stage in [*trained_by("sft"), *REPORT_MODELS, *trained_by("dpo"), *trained_by("ppo")]
    if stage in [*config["methods"], *REPORT_MODELS]
    or (stage == "sft_wrat" and any(METHODS[m].start == "sft_wrat" for m in config["methods"]))
]


rule report:
    input:
        code=code("report.py"),
        differences=rules.summary.output.differences,
        metrics=rules.summary.input.metrics,
        predictions=rules.summary.input.predictions,
        tasks=rules.summary.input.tasks,
        data=[
            ancient(f"results/data/{data_of(model)}/{file}")
            for model in config["models"]
            for file in ["test.jsonl", "tasks.json"]
        ],
        bases=[ancient(f"results/{model}/base") for model in config["models"]],
        figures=expand(
            "results/{model}/{method}/{figure}.svg",
            model=config["models"],
            method=config["methods"],
            figure=["confusion", "coverage"],
        ),
        rewards=expand(
            "results/{model}/{reward_model}/{file}",
            model=config["models"],
            reward_model=REPORT_MODELS,
            file=["metrics.json", "quality.json", "pairs.svg", "reliability.svg"],
        ),
        stages=expand(
            "results/{model}/{stage}/{file}",
            model=config["models"],
            stage=REPORT_STAGES,
            file=["curves.svg"],
        ),
    output:
        html=report(
            "results/report.html",
            caption="../report/results.rst",
            category="Summary",
            labels={"table": "the whole run on one page"},
        ),
    log:
        "results/logs/report.log",
    benchmark:
        "results/logs/report.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=config["models"],
        methods=config["methods"],
        reward_models=REPORT_MODELS,
        stages=REPORT_STAGES,
        data=[f"results/data/{data_of(model)}" for model in config["models"]],
    message:
        "Report on {params.models}"
    shell:
        'python "$PROGRAMS/report.py" --results results --models {params.models:q} --methods {params.methods:q} '
        "--reward-models {params.reward_models:q} --stages {params.stages:q} --data {params.data:q} "
        "--bases {input.bases:q} --out {output.html:q} 2>&1 | tee {log:q}"
