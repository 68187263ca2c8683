# Direct preference optimisation on label-sensitive pairs, from the merged sft_wrat model.


rule dpo:
    input:
        config=config_of("dpo_method"),
        base="results/{model}/sft_wrat/merged",
        data=lambda wildcards: data_file(f"{METHODS[wildcards.dpo_method].data}.jsonl")(wildcards),
        tasks=data_file("tasks.json"),
    output:
        adapter=directory("results/{model}/{dpo_method}/adapter"),
    log:
        "results/{model}/{dpo_method}/logs/train.log",
    benchmark:
        "results/{model}/{dpo_method}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(),
    params:
        out="results/{model}/{dpo_method}",
        data=lambda wildcards, input: Path(input.tasks).parent,
    message:
        "DPO: {wildcards.dpo_method} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/dpo.py" '
        "--config {params.out:q}/config.yaml --base {input.base:q} --data {params.data:q} "
        "--out {params.out:q} 2>&1 | tee {log:q}"
