# What a job asks of a machine or of a cluster, by the model's size and the stage.


def size(wildcards):
    """Billions of parameters."""
    return model_config(wildcards.model)["base"].get("size", 8)


def weights_mb(wildcards, attempt):
    """Memory in which a program loads the weights, in MB; half as much again with each retry."""
    return int((4000 + 4500 * size(wildcards)) * (1 + attempt) / 2)


def on_gpus(minutes, per_billion, processes=None):
    """Resources of a job that trains or samples, by the model's size and its `launch` setting.

    Time: `minutes` + `per_billion` for each billion of parameters, for one GPU of the 80 GB class. Memory: the weights
    on their way to the device, once a process. More of both with each retry, which goes on from the last checkpoint.
    """

    def launched(wildcards):
        setting = merge(DEFAULTS["launch"], model_config(wildcards.model).get("launch"))
        return {**setting, "processes": processes, "nodes": 1, "fsdp": False} if processes else setting

    def several_nodes(value):
        """What only a job on several nodes asks for; None: not asked for."""
        return lambda wildcards: value(launched(wildcards)) if launched(wildcards)["nodes"] > 1 else None

    return {
        "gpu": lambda wildcards: launched(wildcards)["processes"] * launched(wildcards)["nodes"],
        "mem_mb": lambda wildcards, attempt: launched(wildcards)["processes"] * weights_mb(wildcards, attempt),
        "runtime": lambda wildcards, attempt: int(attempt * (minutes + per_billion * size(wildcards))),
        "launch": lambda wildcards: "--processes {processes} --nodes {nodes} {fsdp}".format(
            **{**launched(wildcards), "fsdp": "--fsdp" if launched(wildcards)["fsdp"] else ""}
        ),
        "nodes": lambda wildcards: launched(wildcards)["nodes"],
        # One task a node, which starts the processes there.
        "tasks": several_nodes(lambda setting: setting["nodes"]),
        "tasks_per_gpu": several_nodes(lambda setting: 0),
        "mpi": several_nodes(lambda setting: "srun"),
    }
