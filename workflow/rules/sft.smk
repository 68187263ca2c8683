# Supervised fine-tuning without and with rationales, and the merge of the latter into the base model.

SFT_DATA = {"sft": "sft_train.jsonl", "sft_wrat": "sft_with_rat_train.jsonl"}


rule sft:
    input:
        config="results/{model}/{stage}/config.yaml",
        base=f"{PREPARED}/{{model}}/base",
        data=lambda wildcards: data_file(SFT_DATA[wildcards.stage])(wildcards),
        tasks=data_file("tasks.json"),
        program=program("sft.py"),
        code=code("sft.py"),
    output:
        adapter=directory("results/{model}/{stage}/adapter"),
        log="results/{model}/{stage}/train_log.jsonl",
    log:
        "results/{model}/{stage}/logs/train.log",
    benchmark:
        "results/{model}/{stage}/logs/train.benchmark.tsv"
    wildcard_constraints:
        stage="sft|sft_wrat",
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(minutes=60, per_billion=180),
    params:
        launch=program("launch.py"),
        out=lambda wildcards, output: Path(output.log).parent,
    message:
        "Training {wildcards.stage} of {wildcards.model}"
    shell:
        "python {params.launch:q} {resources.launch} {input.program:q} "
        "--config {input.config:q} --base {input.base:q} --data {input.data:q} "
        "--tasks {input.tasks:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule merge:
    input:
        base=f"{PREPARED}/{{model}}/base",
        adapter="results/{model}/sft_wrat/adapter",
        program=program("merge.py"),
        code=code("merge.py"),
    output:
        merged=directory("results/{model}/sft_wrat/merged"),
    log:
        "results/{model}/sft_wrat/logs/merge.log",
    benchmark:
        "results/{model}/sft_wrat/logs/merge.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        mem_mb=weights_mb,
        runtime=lambda wildcards, attempt: int(attempt * (15 + 10 * size(wildcards))),
    message:
        "Merging the adapter of sft_wrat into {wildcards.model}"
    shell:
        # No GPU: another stage may hold it.
        "CUDA_VISIBLE_DEVICES= python {input.program:q} --base {input.base:q} --adapter {input.adapter:q} "
        "--out {output.merged:q} "
        "2>&1 | tee {log:q}"
