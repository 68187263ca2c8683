# PPO from the merged sft_wrat model against the reward models of the method.


rule ppo:
    input:
        config="results/{model}/{ppo_method}/config.yaml",
        base="results/{model}/sft_wrat/merged",
        rewards=lambda wildcards: expand(
            "results/{{model}}/{reward_model}/{part}",
            reward_model=REWARD_MODELS[wildcards.ppo_method],
            part=["adapter", "metrics.json"],
        ),
        prompts=data_file("unsupervised.jsonl"),
        validation=data_file("validation.jsonl"),
        tasks=data_file("tasks.json"),
        program=program("ppo.py"),
        code=code("ppo.py"),
    output:
        adapter=directory("results/{model}/{ppo_method}/adapter"),
        reward="results/{model}/{ppo_method}/reward.json",
        samples="results/{model}/{ppo_method}/samples.jsonl",
        log="results/{model}/{ppo_method}/train_log.jsonl",
    log:
        "results/{model}/{ppo_method}/logs/train.log",
    benchmark:
        "results/{model}/{ppo_method}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(minutes=60, per_billion=240),
    params:
        launch=program("launch.py"),
        out=lambda wildcards, output: Path(output.log).parent,
        rewards=lambda wildcards: f"results/{wildcards.model}",
        data=lambda wildcards, input: Path(input.tasks).parent,
    message:
        "PPO: {wildcards.ppo_method} of {wildcards.model}"
    shell:
        "python {params.launch:q} {resources.launch} {input.program:q} "
        "--config {input.config:q} --base {input.base:q} --data {params.data:q} "
        "--rewards {params.rewards:q} --out {params.out:q} 2>&1 | tee {log:q}"
