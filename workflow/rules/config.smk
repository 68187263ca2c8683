# Every hyperparameter a stage runs with, as a file: its program reads nothing else of the config.


rule stage_config:
    output:
        "results/{model}/{stage}/config.yaml",
    log:
        "results/{model}/{stage}/logs/config.log",
    benchmark:
        "results/{model}/{stage}/logs/config.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=1,
    params:
        yaml=lambda wildcards: stage_yaml(wildcards.model, wildcards.stage),
    message:
        "Resolving the config of {wildcards.stage} for {wildcards.model}"
    shell:
        "printf '%s' {params.yaml:q} > {output} 2> {log}"
