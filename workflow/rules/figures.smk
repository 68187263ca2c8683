# Figures: one svg each, shown by results/report.html and by `snakemake --report` alike.

# Figure -> the result file that it is drawn from. train_log.jsonl is no job's output: what a run that failed had logged
# is kept.
DRAWN_FROM = {
    "curves": "train_log.jsonl",
    "confusion": "predictions.jsonl",
    "coverage": "predictions.jsonl",
    "pairs": "pair_scores.jsonl",
    "reliability": "quality.json",
}


rule figure:
    input:
        code=code("plot.py"),
        data=lambda wildcards: "results/{model}/{stage}/{file}".format(
            model=wildcards.model,
            stage=wildcards.any_stage,
            file="adapter" if wildcards.figure == "curves" else DRAWN_FROM[wildcards.figure],
        ),
        tasks=data_file("tasks.json"),
    output:
        figure=report(
            "results/{model}/{any_stage}/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"stage": "{any_stage}", "figure": "{figure}"},
        ),
    log:
        "results/{model}/{any_stage}/logs/{figure}.log",
    benchmark:
        "results/{model}/{any_stage}/logs/{figure}.benchmark.tsv"
    wildcard_constraints:
        figure="|".join(DRAWN_FROM),
        any_stage="|".join([*METHODS, *REWARD_MODELS]),
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        data=lambda wildcards: f"results/{wildcards.model}/{wildcards.any_stage}/{DRAWN_FROM[wildcards.figure]}",
        title=lambda wildcards: f"{wildcards.any_stage}, {wildcards.model}",
    message:
        "Drawing {wildcards.figure} of {wildcards.any_stage} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/plot.py" {wildcards.figure} --data {params.data:q} --tasks {input.tasks:q} '
        "--title {params.title:q} --out {output.figure:q} 2>&1 | tee {log:q}"
