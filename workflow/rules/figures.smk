# Figures: one svg each, shown by results/report.html and by `snakemake --report` alike.


rule curves:
    input:
        data="results/{model}/{stage}/train_log.jsonl",
        program=program("plot.py"),
        code=code("plot.py"),
    output:
        figure=report(
            "results/{model}/{stage}/curves.svg",
            caption="../report/curves.rst",
            category="Training",
            subcategory="{model}",
            labels={"stage": "{stage}", "figure": "training curves"},
        ),
    log:
        "results/{model}/{stage}/logs/curves.log",
    benchmark:
        "results/{model}/{stage}/logs/curves.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        title=lambda wildcards: f"{wildcards.stage}, {wildcards.model}",
    message:
        "Curves of {wildcards.stage} of {wildcards.model}"
    shell:
        "python {input.program:q} curves --data {input.data:q} --title {params.title:q} "
        "--out {output.figure:q} 2>&1 | tee {log:q}"


rule confusion:
    input:
        data="results/{model}/{method}/predictions.jsonl",
        tasks=data_file("tasks.json"),
        program=program("plot.py"),
        code=code("plot.py"),
    output:
        figure=report(
            "results/{model}/{method}/confusion.svg",
            caption="../report/confusion.rst",
            category="Methods",
            subcategory="{model}",
            labels={"method": "{method}", "figure": "confusion matrix"},
        ),
    log:
        "results/{model}/{method}/logs/confusion.log",
    benchmark:
        "results/{model}/{method}/logs/confusion.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        title=lambda wildcards: f"{wildcards.method}, {wildcards.model}",
    message:
        "Confusion matrix of {wildcards.method} of {wildcards.model}"
    shell:
        "python {input.program:q} confusion --data {input.data:q} --tasks {input.tasks:q} --title {params.title:q} "
        "--out {output.figure:q} 2>&1 | tee {log:q}"


rule pairs:
    input:
        data="results/{model}/{reward_model}/pair_scores.jsonl",
        program=program("plot.py"),
        code=code("plot.py"),
    output:
        figure=report(
            "results/{model}/{reward_model}/pairs.svg",
            caption="../report/pairs.rst",
            category="Reward models",
            subcategory="{model}",
            labels={"reward model": "{reward_model}", "figure": "scores of pairs"},
        ),
    log:
        "results/{model}/{reward_model}/logs/pairs.log",
    benchmark:
        "results/{model}/{reward_model}/logs/pairs.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        title=lambda wildcards: f"{wildcards.reward_model}, {wildcards.model}",
    message:
        "Scores of held-out pairs by {wildcards.reward_model} of {wildcards.model}"
    shell:
        "python {input.program:q} pairs --data {input.data:q} --title {params.title:q} "
        "--out {output.figure:q} 2>&1 | tee {log:q}"


rule reliability:
    input:
        data="results/{model}/{reward_model}/quality.json",
        program=program("plot.py"),
        code=code("plot.py"),
    output:
        figure=report(
            "results/{model}/{reward_model}/reliability.svg",
            caption="../report/reliability.rst",
            category="Reward models",
            subcategory="{model}",
            labels={"reward model": "{reward_model}", "figure": "reliability"},
        ),
    log:
        "results/{model}/{reward_model}/logs/reliability.log",
    benchmark:
        "results/{model}/{reward_model}/logs/reliability.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        title=lambda wildcards: f"{wildcards.reward_model}, {wildcards.model}",
    message:
        "Reliability of {wildcards.reward_model} of {wildcards.model}"
    shell:
        "python {input.program:q} reliability --data {input.data:q} --title {params.title:q} "
        "--out {output.figure:q} 2>&1 | tee {log:q}"
