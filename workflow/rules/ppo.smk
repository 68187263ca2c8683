# PPO from the merged sft_wrat model against the reward models of the method.


rule ppo:
    input:
        config=config_of("ppo_method"),
        base="results/{model}/sft_wrat/merged",
        rewards=lambda wildcards: expand(
            "results/{{model}}/{reward_model}/{part}",
            reward_model=METHODS[wildcards.ppo_method].reward_models,
            part=["adapter", "metrics.json"],
        ),
        prompts=data_file("unsupervised.jsonl"),
        validation=data_file("validation.jsonl"),
        responses=lambda wildcards: data_file(f"{METHODS[wildcards.ppo_method].answers_like}.jsonl")(wildcards),
        tasks=data_file("tasks.json"),
    output:
        adapter=directory("results/{model}/{ppo_method}/adapter"),
        reward="results/{model}/{ppo_method}/reward.json",
        samples="results/{model}/{ppo_method}/samples.jsonl",
    log:
        "results/{model}/{ppo_method}/logs/train.log",
    benchmark:
        "results/{model}/{ppo_method}/logs/train.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: config["threads"]
    resources:
        **on_gpus(),
    params:
        out="results/{model}/{ppo_method}",
        rewards=lambda wildcards: f"results/{wildcards.model}",
        data=lambda wildcards, input: Path(input.tasks).parent,
    message:
        "PPO: {wildcards.ppo_method} of {wildcards.model}"
    shell:
        'python "$PROGRAMS/launch.py" {resources.launch} "$PROGRAMS/ppo.py" '
        "--config {params.out:q}/config.yaml --base {input.base:q} --data {params.data:q} "
        "--rewards {params.rewards:q} --out {params.out:q} 2>&1 | tee {log:q}"
