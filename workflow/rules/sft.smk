# Supervised fine-tuning without and with rationales, and the merge of the latter into the base model.


rule sft:
    input:
        config=config_of("sft_method"),
        base=ancient("results/{model}/base"),
        data=lambda wildcards: data_file(f"{METHODS[wildcards.sft_method].data}.jsonl")(wildcards),
        tasks=data_file("tasks.json"),
    output:
        adapter=directory("results/{model}/{sft_method}/adapter"),
    log:
        "results/{model}/{sft_method}/logs/train.log",
    benchmark:
        "results/{model}/{sft_method}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(),
    params:
        out="results/{model}/{sft_method}",
    message:
        "Training {wildcards.sft_method} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/sft.py" '
        "--config {params.out:q}/config.yaml --base {input.base:q} --data {input.data:q} "
        "--tasks {input.tasks:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule merge:
    input:
        code=code("merge.py"),
        base=ancient("results/{model}/base"),
        adapter="results/{model}/sft_wrat/adapter",
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
        'CUDA_VISIBLE_DEVICES= python "$PROGRAMS/merge.py" --base {input.base:q} --adapter {input.adapter:q} '
        "--out {output.merged:q} 2>&1 | tee {log:q}"
