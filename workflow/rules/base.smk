# The base model of each model, once, as a plain Hugging Face folder.


rule base_config:
    output:
        config=f"{PREPARED}/{{model}}/base.yaml",
    log:
        f"{PREPARED}/{{model}}/logs/base_config.log",
    benchmark:
        f"{PREPARED}/{{model}}/logs/base_config.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=1,
    params:
        yaml=lambda wildcards: yaml.safe_dump({"base": model_config(wildcards.model)["base"]}, sort_keys=False),
    message:
        "Writing where the base model of {wildcards.model} comes from"
    shell:
        "printf '%s' {params.yaml:q} > {output.config} 2> {log}"


# Template, package and data are empty where the model's source has no use for them.
rule base_model:
    input:
        config=f"{PREPARED}/{{model}}/base.yaml",
        program=program("base.py"),
        code=code("base.py"),
        template=lambda wildcards: (
            []
            if model_config(wildcards.model)["template"] == "tokenizer"
            else config_file("templates", model_config(wildcards.model)["template"], ".jinja")
        ),
        package=lambda wildcards: (
            f"{PREPARED}/packages/{model_config(wildcards.model)['base']['file']}"
            if model_config(wildcards.model)["base"]["source"] == "package"
            else []
        ),
        data=lambda wildcards: (
            f"{PREPARED}/data/{data_of(wildcards.model)}/sft_with_rat_train.jsonl"
            if model_config(wildcards.model)["base"]["source"] == "scratch"
            else []
        ),
    output:
        folder=directory(f"{PREPARED}/{{model}}/base"),
    log:
        f"{PREPARED}/{{model}}/logs/base.log",
    benchmark:
        f"{PREPARED}/{{model}}/logs/base.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: int((6000 + 2000 * size(wildcards)) * (1 + attempt) / 2),
        runtime=lambda wildcards, attempt: int(attempt * (60 + 30 * size(wildcards))),
    message:
        "Preparing the base model of {wildcards.model}"
    shell:
        "python {input.program:q} --config {input.config:q} --template {input.template:q} --package {input.package:q} "
        "--data {input.data:q} --out {output.folder:q} 2>&1 | tee {log:q}"
