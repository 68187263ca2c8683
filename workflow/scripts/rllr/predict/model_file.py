"""What prediction runs with: its config, and model.json, by which a method's folder can be used on its own."""

import os
from dataclasses import dataclass
from pathlib import Path

from rllr.cli import UserError
from rllr.config import IntOrAuto
from rllr.files import read_json, write_json
from rllr.tasks import Task, dump_tasks
from rllr.version import stamp

PATHS = ("config", "base", "adapter", "reward")
SAMPLES = 4  # of each validation prompt, by which reward models are judged


@dataclass
class PredictConfig:
    """The resolved predict config (workflow/schemas/model.schema.yaml describes the keys)."""

    model: str
    stage: str
    seed: int
    precision: str
    attention: str
    batch_size: IntOrAuto  # auto until it is known what is loaded
    max_new_tokens: IntOrAuto  # auto until rllr.lm.lengths.answer_room has said how many
    cutoff: int
    best_of: int
    votes: int


def describe(
    path: Path, paths: dict[str, Path | None], tasks: dict[str, Task], rows: list[dict], **found: object
) -> None:
    """Write model.json: what the method is made of (paths relative to its folder), its tasks and their instructions.

    Args:
        paths: config, base, adapter, reward; None where the method has none.
        rows: prompts; the first row of a task gives its instruction, unless the instruction holds the text itself.
        found: what prediction found out: max_new_tokens, room for an answer; votes, answers that vote (0: none do);
            claims that rationales begin with; temperatures of the tasks' label probabilities.
    """
    given = {name: paths[name] for name in PATHS}
    relative = {name: place and os.path.relpath(place, path.parent) for name, place in given.items()}
    instructions: dict[str, str] = {}
    for row in rows:
        if row["input"]:
            instructions.setdefault(row["task"], row["instruction"])
    write_json(path, {**relative, **found, "tasks": dump_tasks(tasks), "instructions": instructions})
    stamp(path)


def find(folder: Path) -> tuple[dict[str, Path | None], dict[str, Task], dict]:
    """The paths and tasks of a method's folder, results/<model>/<method>, and all that model.json says.

    Raises:
        UserError: nothing was predicted with it yet.
    """
    path = folder / "model.json"
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise UserError(f"{folder}: a standalone model, for transformers; give the method's folder above it")
        if methods := sorted(path.parent.name for path in folder.glob("*/model.json")):
            raise UserError(f"{folder}: expected a method's folder, one of {folder}/{{{','.join(methods)}}}")
        raise UserError(f"{folder}: no model.json; first run: snakemake --cores all {folder}/predictions.jsonl")
    values = read_json(path)
    paths = {name: values[name] and folder / values[name] for name in PATHS}
    tasks = {
        name: Task(name=name, **{**task, "labels": tuple(task["labels"])}) for name, task in values["tasks"].items()
    }
    return paths, tasks, values
