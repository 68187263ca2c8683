# The base model of each model, as a plain Hugging Face folder in the shared store; a run folder links to it.


# Package and data are empty where the model's source has no use for them; digests of what they hold are in the config.
rule base_model:
    input:
        config=lambda wildcards: base_config(wildcards.model),
        package=lambda wildcards: (
            ancient(f"results/packages/{model_config(wildcards.model)['base']['file']}")
            if model_config(wildcards.model)["base"]["source"] == "package"
            else []
        ),
        data=lambda wildcards: (
            ancient(f"results/data/{data_of(wildcards.model)}/sft_with_rat_train.jsonl")
            if model_config(wildcards.model)["base"]["source"] == "scratch"
            else []
        ),
    output:
        folder=directory("results/{model}/base"),
    log:
        "results/{model}/logs/base.log",
    benchmark:
        "results/{model}/logs/base.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: int((6000 + 2000 * size(wildcards)) * (1 + attempt) / 2),
        runtime=lambda wildcards, attempt: int(attempt * (60 + 30 * size(wildcards))),
    message:
        "Preparing the base model of {wildcards.model}"
    shell:
        'python "$PROGRAMS/base.py" --config {input.config:q} --name {wildcards.model:q} '
        '--package {input.package:q} --data {input.data:q} --store "$STORE" --out {output.folder:q} 2>&1 | tee {log:q}'
