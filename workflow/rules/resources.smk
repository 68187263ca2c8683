# What a job asks of a machine or of a cluster, by the model's size and the stage.


def size(wildcards):
    """Billions of parameters."""
    return model_config(wildcards.model)["base"].get("size", 8)


def weights_mb(wildcards, attempt):
    """Memory in which a program loads the weights, in MB; half as much again with each retry."""
    return int((4000 + 4500 * size(wildcards)) * (1 + attempt) / 2)


# Assumed until data preparation has counted: rows of a task that asks for all of them, and of a published file; a
# prompt's share of what the cutoff allows. And tokens of a response, and of an instruction in its template.
MANY, SHARE = 20_000, 1 / 3
RESPONSE, INSTRUCTION = 256, 100


def counted(data, file):
    """What data preparation has counted in a file; None before it has."""
    path = Path(f"results/data/{data}/report.json")
    return read_json(path)["files"].get(file, {}) if path.is_file() else None


def rows_of(data, file):
    """Rows of a prepared file: counted, or as many as the data config asks for."""
    if (found := counted(data, file)) is not None:
        return found.get("rows", 0)
    settings = data_config(data)
    if "release" in settings or file not in ASKED_BY:
        return MANY
    keys = [ASKED_BY[file]] + (["label_pairs"] if file == "sft_with_rat_all" else [])
    asked = [settings["rows"].get(key) or 0 for key in keys]
    asked = [n for value in asked for n in (value.values() if isinstance(value, dict) else [value])]
    return sum(n if isinstance(n, int) else MANY for n in asked)


def prompt_of(data, file, cutoff):
    """Tokens of a prompt: two for each of the words that 95% of the inputs do not exceed, and the instruction."""
    words = (counted(data, file) or {}).get("input words")
    return 2 * words["p95"] + INSTRUCTION if words else SHARE * cutoff


def work_of(model, stage, processes, method=None):
    """What passes through a model in a stage."""
    values, rows = stage_yaml(model, stage), lambda file: rows_of(data_of(model), file)
    section, cutoff = SECTIONS[stage], values["cutoff"]
    first, *held_out = ["test"] if method else files_of(stage)
    prompt = min(prompt_of(data_of(model), first, cutoff), cutoff)
    if section in ("sft", "reward", "dpo"):
        tokens = min(prompt + RESPONSE, cutoff) * (1 if section == "sft" else 2)
        trained = values["epochs"] * rows(first) * tokens
        return duration.Work(trained=trained, read=sum(map(rows, held_out)) * tokens)
    room = RESPONSE if values["max_new_tokens"] == "auto" else values["max_new_tokens"]
    room, prompt = min(room, cutoff // 2), min(prompt, cutoff // 2)
    if section == "ppo":
        responses = values["batch_size"] * values["samples_per_prompt"]
        side_by_side = responses if values["rollout_batch_size"] == "auto" else values["rollout_batch_size"]
        values |= {"max_new_tokens": room, "rollout_batch_size": side_by_side}
        held, rewards = rows("validation"), len(METHODS[stage].reward_models)
        return duration.rl(values, rows(first), held, prompt, rewards, processes)
    answers = SAMPLES * rows("validation")
    if method:
        samples = values["best_of"] if METHODS[method].picked_by else values["votes"] if METHODS[method].voted else 1
        answers = samples * (rows("test") + rows("validation"))
    side_by_side = 64 if values["batch_size"] == "auto" else values["batch_size"]
    return duration.answering(answers, prompt, room, side_by_side)


def on_gpus(stage=None, processes=None):
    """Resources of a job that trains or samples, by the model's size, its `launch` setting and what there is to do.

    Time: what `work_of` takes on a GPU of the 80 GB class, half as much again, and the start. Memory: the weights on
    their way to the device, once a process. More of both with each retry, which goes on from the last checkpoint.

    Args:
        stage: None: the method or reward model in the wildcards.
        processes: None: by `launch`.
    """

    def minutes(wildcards):
        setting, model = launched(wildcards), wildcards.model
        trained = stage or next(value for name, value in wildcards.items() if name != "model")
        count, parameters = setting["processes"] * setting["nodes"], 1e9 * size(wildcards)
        needed = work_of(model, trained, count, wildcards.method if stage == "predict" else None)
        recompute = bool(stage_yaml(model, trained).get("gradient_checkpointing"))
        estimate = duration.seconds(
            parameters, needed, duration.CLUSTER, 2, duration.CACHE * parameters, recompute, count
        )
        return 30 + 5 * size(wildcards) + 1.5 * estimate / 60

    def launched(wildcards):
        setting = merge(DEFAULTS["launch"], model_config(wildcards.model).get("launch"))
        return {**setting, "processes": processes, "nodes": 1, "fsdp": False} if processes else setting

    def several_nodes(value):
        """What only a job on several nodes asks for; None: not asked for."""
        return lambda wildcards: value(launched(wildcards)) if launched(wildcards)["nodes"] > 1 else None

    return {
        "gpu": lambda wildcards: launched(wildcards)["processes"] * launched(wildcards)["nodes"],
        "mem_mb": lambda wildcards, attempt: launched(wildcards)["processes"] * weights_mb(wildcards, attempt),
        "runtime": lambda wildcards, attempt: int(attempt * minutes(wildcards)),
        "launch": lambda wildcards: "--processes {processes} --nodes {nodes} {fsdp}".format(
            **{**launched(wildcards), "fsdp": "--fsdp" if launched(wildcards)["fsdp"] else ""}
        ),
        "nodes": lambda wildcards: launched(wildcards)["nodes"],
        # One task a node, which starts the processes there.
        "tasks": several_nodes(lambda setting: setting["nodes"]),
        "tasks_per_gpu": several_nodes(lambda setting: 0),
        "mpi": several_nodes(lambda setting: "srun"),
    }
