# Config and helper functions of all rules. Paths to programs, config files and templates are found from the
# project's root (or from a `config/` in the run folder, which comes first), never from the current folder alone.

import ast
import functools
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)
PROGRAMS = ROOT / "workflow" / "scripts"
sys.path.insert(0, str(PROGRAMS))
# `python` in the rules is the interpreter that runs Snakemake, whether or not its environment is activated.
# (A prefix of one's own replaces Snakemake's strict mode, which is therefore said again.)
shell.prefix(f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")

from rllr.cli import UserError
from rllr.config import SECTIONS, check_model, load_yaml, merge, schema, stage_config, typed, validate
from rllr.data import ASKED_BY, asks_for

# Method -> the reward models that it reads: in its PPO run, or (sft_wrat_bon) to pick the best of several samples.
REWARD_MODELS = {
    "sft": [],
    "sft_wrat": [],
    "sft_wrat_bon": ["rm_rllr"],
    "rlhf": ["rm_rlhf"],
    "rllr": ["rm_rllr"],
    "rllr_mix": ["rm_rllr", "rm_rlhf"],
    "rlvr": [],
    "rlvr_mix": ["rm_rlhf"],
}
PPO_METHODS = [method for method in REWARD_MODELS if not method.startswith("sft")]

# Stage, or what is asked of a method -> data files that it cannot do without.
NEEDED = {
    "sft": ["sft_train"],
    "sft_wrat": ["sft_with_rat_train"],
    "rm_rlhf": ["rlhf_reward_train", "label_sensitive_pairs_for_test"],
    "rm_rllr": ["rllr_reward_train", "label_sensitive_pairs_for_test"],
    **{method: ["unsupervised"] for method in PPO_METHODS},
    "prediction": ["test"],
    "reward quality": ["validation"],
}


def one_line(function):
    """Turn a UserError into Snakemake's own, which is shown without a traceback."""

    @functools.wraps(function)
    def wrapped(*args):
        try:
            return function(*args)
        except UserError as error:
            raise WorkflowError(str(error)) from None

    return wrapped


def config_file(kind, name, suffix=".yaml"):
    """Path of config/<kind>/<name><suffix>: the run folder's own, else the project's."""
    for folder in [Path("config"), ROOT / "config"]:
        path = folder / kind / f"{name}{suffix}"
        if path.is_file():
            return path
    known = sorted({p.stem for f in [Path("config"), ROOT / "config"] for p in (f / kind).glob(f"*{suffix}")})
    raise UserError(
        f"unknown {kind.rstrip('s')} {name!r}: no file config/{kind}/{name}{suffix}; known: {', '.join(known)}"
    )


@functools.cache
@one_line
def model_config(model):
    """The validated config/models/<model>.yaml with config.yaml's overrides laid over it."""
    path = config_file("models", model)
    overrides = config["overrides"].get(model) or {}
    check_model(load_yaml(path), str(path))
    result = merge(load_yaml(path), overrides)
    check_model(result, f"overrides: {model}")
    if result["template"] != "tokenizer":
        config_file("templates", result["template"], ".jinja")
    return result


def data_of(model):
    """Name of the data that `model` is trained on."""
    return config["data"] or model_config(model)["data"]


@functools.cache
@one_line
def data_config(data):
    """The validated config/data/<data>.yaml."""
    path = config_file("data", data)
    result = load_yaml(path)
    validate(result, schema("data"), str(path))
    return result


def data_file(name):
    """Input function: a prepared data file of the model in the wildcards."""
    return lambda wildcards: f"{PREPARED}/data/{data_of(wildcards.model)}/{name}"


def method_base(wildcards):
    """The model that a method's adapter belongs to: the base model for SFT, merged sft_wrat for all that follows it."""
    if wildcards.method in [*PPO_METHODS, "sft_wrat_bon"]:
        return f"results/{wildcards.model}/sft_wrat/merged"
    return f"{PREPARED}/{wildcards.model}/base"


def method_adapter(wildcards):
    """The method's LoRA; none for sft_wrat_bon, which is sft_wrat and a choice among its samples."""
    if wildcards.method not in REWARD_MODELS:
        raise WorkflowError(f"unknown method {wildcards.method!r}; known: {', '.join(REWARD_MODELS)}")
    return [] if wildcards.method == "sft_wrat_bon" else f"results/{wildcards.model}/{wildcards.method}/adapter"


def method_reward(wildcards):
    """The reward model that picks among samples; none where the answer is the greedy one."""
    return f"results/{wildcards.model}/rm_rllr/adapter" if wildcards.method == "sft_wrat_bon" else []


def judged_on(wildcards):
    """The PPO methods of config.yaml on whose samples a reward model is judged: those that read it; the label reward
    on all, since its reliability says something about each of them."""
    methods = [m for m in config["methods"] if m in PPO_METHODS]
    return [m for m in methods if wildcards.reward_model == "rm_rllr" or wildcards.reward_model in REWARD_MODELS[m]]


@one_line
def stage_yaml(model, stage):
    """The resolved config of a stage, as YAML text."""
    resolved = stage_config(DEFAULTS, model_config(model), stage, config["seed"], f"config/models/{model}.yaml")
    return yaml.safe_dump({"model": model, **resolved}, sort_keys=False)


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


def size(wildcards):
    """Billions of parameters."""
    return model_config(wildcards.model)["base"].get("size", 8)


def weights_mb(wildcards, attempt):
    """Memory in which a program loads the weights, in MB; half as much again with each retry."""
    return int((4000 + 4500 * size(wildcards)) * (1 + attempt) / 2)


def program(name):
    """Path of a stage's program."""
    return str(PROGRAMS / name)


@functools.cache
def code(name):
    """The modules of ours that a program imports, directly or not: its other inputs."""
    found, queue = set(), [PROGRAMS / name]
    while queue:
        for node in ast.walk(ast.parse(queue.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for dotted in names:
                stem = PROGRAMS / dotted.replace(".", "/")
                for path in [stem.with_suffix(".py"), stem / "__init__.py"]:
                    if path.is_file() and path not in found:
                        found.add(path)
                        queue.append(path)
    return sorted(str(path) for path in found)


# What `check_config` and `check_targets` find would else be met by input functions and params, one by one.


@one_line
def check_config():
    validate(config, schema("config"), "config/config.yaml")
    for model in [*config["models"], *config["overrides"]]:
        model_config(model)
    for data in {data_of(model) for model in config["models"]}:
        data_config(data)


@one_line
def check_targets():
    """The models, methods and stages among the targets, which Snakemake itself knows only after the rules."""
    targets = [argument for argument in sys.argv[1:] if argument.startswith("results/")]
    everything = not targets and "--target-jobs" not in sys.argv  # `rule all`, and not a job of another executor
    if everything or "results/report.html" in targets:
        targets += [
            f"results/{model}/{method}/metrics.json" for model in config["models"] for method in config["methods"]
        ]
        targets += [
            f"results/{model}/{reward_model}/quality.json"
            for model in config["models"]
            for reward_model in REPORT_MODELS
        ]
    for target in targets:
        match = re.match(r"results/(?!data/|packages/)([^/]+)/([^/]+)/(.*?)/?$", target)
        if match:
            model, method, what = match.groups()
            model_config(model)
            if method not in {*SECTIONS, *REWARD_MODELS, "base", "logs"}:
                raise UserError(f"unknown method {method!r}; known: {', '.join(REWARD_MODELS)}")
            if method == "sft_wrat_bon" and what == "model":
                raise UserError("sft_wrat_bon has no model of its own: it is sft_wrat, and a choice among its answers")
            predicted = ["metrics.json", "predictions.jsonl", "model.json", "model", "confusion.svg"]
            asked = ["prediction"] if method in REWARD_MODELS and what in predicted else []
            asked += ["reward quality"] if what in ["quality.json", "reliability.svg"] else []
            check_stages(model, method, asked)


def check_stages(model, method, asked):
    """The configs of the stages that a method rests on, and that the data has the rows that these and `asked` need."""
    for stage in ["sft" if method == "sft" else "sft_wrat", method, *REWARD_MODELS.get(method, []), *asked]:
        if stage in SECTIONS:
            stage_yaml(model, stage)
        for file in NEEDED.get(stage, []):
            if not asks_for(data_config(data_of(model)), file):
                raise UserError(
                    f"config/data/{data_of(model)}.yaml: rows.{ASKED_BY[file]}: missing; {stage} needs {file}.jsonl"
                )


config["overrides"] = typed(config["overrides"])
DEFAULTS = load_yaml(ROOT / "config" / "stages.yaml")
PREPARED = config["prepared"]
check_config()
# The reward models that the methods of config.yaml read.
REPORT_MODELS = sorted({reward_model for method in config["methods"] for reward_model in REWARD_MODELS[method]})
check_targets()


wildcard_constraints:
    model=r"(?!data/|packages/)[^/]+",
    data=r"[^/]+",
    method=r"(?!rm_)[^/]+",
    ppo_method="|".join(PPO_METHODS),
    reward_model="rm_rlhf|rm_rllr",
