# Paths and input functions of all rules. Programs, config files and templates are found from the project's root; a run
# folder's own `config/` comes before the project's.

import functools
import os
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

ROOT = Path(str(workflow.current_basedir)).parents[1]  # as a module it is not the workflow's
PROGRAMS = ROOT / "workflow" / "scripts"  # said in shell commands alone: where the project lies is no reason to rerun
sys.path.insert(0, str(PROGRAMS))

from rllr.cli import UserError
from rllr.config import check_defaults, check_model, load_yaml, merge, schema, stage_config, typed, validate
from rllr.data.catalogue import ASKED_BY, FILES, asks_for, files_of, missing_rows, needed_files
from rllr.data.packages import find_package, own_files
from rllr.files import read_json
from rllr.lm import duration
from rllr.methods import METHODS, PROGRAM_OF, REWARD_MODELS, SECTIONS, decides, trained_by
from rllr.predict.model_file import SAMPLES
from rllr.provenance import code_digest, file_digests, text_digest
from rllr.store import whole

CONFIG_FOLDERS = [Path("config"), ROOT / "config"]


def one_line(function):
    """Turn a UserError into Snakemake's own, which is shown without a traceback."""

    @functools.wraps(function)
    def wrapped(*args):
        try:
            return function(*args)
        except UserError as error:
            raise WorkflowError(str(error)) from None

    return wrapped


@one_line
def checked():
    """config.yaml, checked before anything reads it; returns the values of all stages."""
    config["overrides"] = typed(config["overrides"])
    validate(config, schema("config"), "config/config.yaml")
    files = [folder / "stages.yaml" for folder in reversed(CONFIG_FOLDERS) if (folder / "stages.yaml").is_file()]
    values = [load_yaml(file) or {} for file in files]
    for file, given in zip(files, values):
        check_defaults(given, str(file))
    return merge(*values)


DEFAULTS = checked()

# `python` in the rules is the interpreter that runs Snakemake, whether or not its environment is activated; with
# `--sdm conda` that of the environment built from environment.yml. Where programs and store lie is told in the same way.
# (A prefix of one's own replaces Snakemake's strict mode, which is therefore said again.)
STORE = f"{config['prepared']}/store"
EXPORTS = {"PROGRAMS": PROGRAMS, "STORE": STORE, "RLLR_REPORT_TO": " ".join(config["report_to"])}
if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
    EXPORTS["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
shell.prefix(
    "set -euo pipefail; " + "".join(f"export {name}={shlex.quote(str(value))}; " for name, value in EXPORTS.items())
)


def config_file(kind, name, suffix=".yaml"):
    """Path of config/<kind>/<name><suffix>: the run folder's own, else the project's."""
    for folder in CONFIG_FOLDERS:
        path = folder / kind / f"{name}{suffix}"
        if path.is_file():
            return path
    known = sorted({p.stem for f in CONFIG_FOLDERS for p in (f / kind).glob(f"*{suffix}")})
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


# What a job rests on is written into a file, its input: configuration, and digests of code and of files. Whether that has
# changed is decided by comparing the file's text, whatever time stamps say and .snakemake remembers.

RESOLVED = {}  # path -> text
REMEMBERED = Path(".snakemake/rllr-files.json")  # digests of files that are read at every start
# Links whose entry of the store is gone, over which Snakemake would stumble.
for link in [
    *Path("results").glob("data/*/*"),
    *Path("results").glob("data/*/.prepared"),
    *Path("results").glob("*/base"),
]:
    if link.is_symlink() and not link.exists():
        link.unlink()


def resolved(path, text):
    """The file `path`, which rule resolved writes anew unless it holds exactly `text`."""
    RESOLVED[path] = text
    file = Path(path)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        if workflow.touch:  # --touch: what is there counts as made from today's configuration and code
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        else:
            workflow.dag.forcefiles.add(path)
    return path


def code(program):
    """Input function: the file that stands for what decides a program's results."""
    text = yaml.safe_dump({"code": code_digest(program)})
    return lambda wildcards: resolved(f"results/.code/{Path(program).stem}.yaml", text)


@functools.cache
@one_line
def data_made_from(data):
    """Everything that the files of `data` are made from, as YAML text."""
    own = own_files(data_config(data))
    if missing := [path for path in own if not Path(path).is_file()]:
        raise UserError(f"{config_file('data', data)}: {missing[0]}: no such file")
    digests = file_digests(map(Path, own), REMEMBERED)
    rests_on = {"code": code_digest("prepare.py"), **{path: digests[Path(path)] for path in own}}
    return yaml.safe_dump({**data_config(data), "rests_on": rests_on}, sort_keys=False)


def data_resolved(data):
    """The file that the data are made from; made anew, too, where a file of theirs is missing in the store."""
    path, entry = f"results/data/{data}/config.yaml", Path(f"results/data/{data}/.prepared")
    if entry.exists() and not whole(entry):
        workflow.dag.forcefiles.add(path)
    return resolved(path, data_made_from(data))


def data_contents(data):
    """File -> SHA-256 of the prepared files of `data`; known once they are there."""
    return read_json(checkpoints.data_files.get(data=data).output.contents)


def data_file(name):
    """Input function: a prepared data file of the model in the wildcards. Its digest is in the stage's config."""
    return lambda wildcards: ancient(f"results/data/{data_of(wildcards.model)}/{name}")


def base_parts(model):
    """Everything that the base model's folder is made from."""
    settings, template = model_config(model)["base"], model_config(model)["template"]
    base = {key: value for key, value in settings.items() if key != "size"}  # which is about what a job asks for
    own = None if template == "tokenizer" else config_file("templates", template, ".jinja").read_text(encoding="utf-8")
    rests_on = {"code": code_digest("base.py")}
    if base["source"] == "scratch":
        rests_on["data"] = data_contents(data_of(model))["sft_with_rat_train.jsonl"]
    if base["source"] == "local":
        files = [path for path in sorted(Path(base["path"]).glob("*")) if path.is_file()]
        rests_on["weights"] = {path.name: digest for path, digest in file_digests(files, REMEMBERED).items()}
    return {"base": base, "template": own, "rests_on": rests_on}


def base_digest(model):
    """Digest of what decides the base model's answers: neither its licence nor where its files lie."""
    parts = base_parts(model)
    parts["base"] = {key: value for key, value in parts["base"].items() if key not in ("licence", "path")}
    return text_digest(yaml.safe_dump(parts))


def tasks_digest(data, stage):
    """Digest of tasks.json; what is reported of a task is no reason to train again, or to sample."""
    tasks = read_json(f"results/data/{data}/tasks.json")
    if stage != "predict":  # whose model.json holds the tasks, for metrics and summary
        tasks = {name: {k: v for k, v in task.items() if k not in ("metric", "f1")} for name, task in tasks.items()}
    return text_digest(yaml.safe_dump(tasks))


def base_config(model):
    """The file that a base model is made from; made anew, too, where a file of the folder is missing."""
    path, folder = f"results/{model}/base.yaml", Path(f"results/{model}/base")
    if folder.exists() and not whole(folder):  # weights may be links into a cache that was cleaned
        workflow.dag.forcefiles.add(path)
    return resolved(path, yaml.safe_dump(base_parts(model), sort_keys=False))


@one_line
def stage_yaml(model, stage):
    """The resolved hyperparameters of a stage."""
    resolved_values = stage_config(DEFAULTS, model_config(model), stage, config["seed"], f"config/models/{model}.yaml")
    return {"model": model, **resolved_values}


def stage_resolved(model, stage):
    """The file that holds everything a stage rests on but other stages' results."""
    contents = data_contents(data_of(model))
    rests_on = {
        "code": code_digest(PROGRAM_OF[stage]),
        "base": base_digest(model),
        "entry": decides(stage),
        "data": {f"{file}.jsonl": contents[f"{file}.jsonl"] for file in files_of(stage)},
        "tasks": tasks_digest(data_of(model), stage),
    }
    text = yaml.safe_dump({**stage_yaml(model, stage), "rests_on": rests_on}, sort_keys=False)
    return resolved(f"results/{model}/{stage}/config.yaml", text)


def config_of(stage):
    """Input function: the config of a stage, or of the stage that the wildcard `stage` names."""
    return lambda wildcards: stage_resolved(wildcards.model, getattr(wildcards, stage, stage))


def register(wildcards):
    """Input function of config.smk: the text of a file that no other job has asked for yet."""
    parts = wildcards.path.split("/")[1:]
    match parts:
        case [".code", program]:
            code(f"{program}.py")(wildcards)
        case ["data", data, "config"]:
            data_resolved(data)
        case [model, "base"]:
            base_config(model)
        case [model, stage, "config"]:
            stage_resolved(model, stage)
    return []


def method_base(wildcards):
    """The model that a method's adapter belongs to. The base model's digest is in the stage's config."""
    start = METHODS[wildcards.method].start
    folder = f"results/{wildcards.model}"
    return ancient(f"{folder}/base") if start == "base" else f"{folder}/{start}/merged"


def method_adapter(wildcards):
    """The method's LoRA; none for a method that trains nothing."""
    return f"results/{wildcards.model}/{wildcards.method}/adapter" if METHODS[wildcards.method].section else []


def method_reward(wildcards):
    """The reward model that picks among samples; none where the answer is the greedy one."""
    picked_by = METHODS[wildcards.method].picked_by
    return f"results/{wildcards.model}/{picked_by}/adapter" if picked_by else []


# The reward models that the methods of config.yaml read, and the methods on whose samples they are judged: those that
# read them; the label reward on all that RL trains, since its reliability says something about each of them.
ASKED = [METHODS[name] for name in config["methods"] if name in METHODS]  # others are told by check_config
REPORT_MODELS = [name for name in REWARD_MODELS if any(name in method.reward_models for method in ASKED)]


def judged_on(reward_model):
    trained = [m for m in config["methods"] if m in trained_by("ppo")]
    return [
        m for m in trained if REWARD_MODELS[reward_model].label_sensitive or reward_model in METHODS[m].reward_models
    ]


include: "resources.smk"
include: "checks.smk"


wildcard_constraints:
    model=r"(?!data/|packages/|\.)[^/]+",
    data=r"[^/]+",
    method="|".join(METHODS),
    ppo_method="|".join(trained_by("ppo")),
    sft_method="|".join(trained_by("sft")),
    dpo_method="|".join(trained_by("dpo")),
    reward_model="|".join(REWARD_MODELS),
    stage="|".join(SECTIONS),
