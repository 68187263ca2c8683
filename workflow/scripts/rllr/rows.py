"""Rows of the prepared data files, checked field by field as they are read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rllr.cli import UserError
from rllr.files import read_jsonl
from rllr.tasks import Task, read_label

# An id for rows of `release` data, which carry none: file stem and line number.
_FIELDS = {"id": str, "task": str, "instruction": str, "input": str}


def read_prompts(path: Path | str, tasks: dict[str, Task], need_labels: bool = False) -> list[dict]:
    """Rows with a prompt, an id of their own and, where known, the gold `label` (test, validation, unsupervised)."""
    ids: set[str] = set()

    def check(row: dict) -> str | None:
        if row["id"] in ids:
            return f"field id: {row['id']!r} is the id of an earlier line, too"
        ids.add(row["id"])
        if "label" not in row:
            return "field label is missing" if need_labels else None
        return _bad_label(row["label"], tasks[row["task"]], "label")

    return _read(path, tasks, check)


def read_responses(path: Path | str, tasks: dict[str, Task]) -> list[dict]:
    """Rows with one response, `output`, whose label can be read (sft_train, sft_with_rat_train)."""

    def check(row: dict) -> str | None:
        if not isinstance(row.get("output"), str) or not row["output"].strip():
            return f"field output: expected a response text, found {row.get('output')!r:.80}"
        if read_label(row["output"], tasks[row["task"]]) is None:
            return f"field output: no label of task {row['task']} can be read from {row['output'][-80:]!r}"
        return None

    return _read(path, tasks, check)


def read_pairs(path: Path | str, tasks: dict[str, Task], label_sensitive: bool) -> list[dict]:
    """Rows with `output = [chosen, rejected]`.

    Label-sensitive pairs carry two different labels. Rationale-sensitive ones carry the same; published data has
    others, too, which its preparation counts.
    """

    def check(row: dict) -> str | None:
        output: Any = row.get("output")
        if not is_pair(output):
            return f"field output: expected [chosen, rejected], found {output!r:.80}"
        if output[0] == output[1]:
            return "field output: chosen and rejected are the same text"
        labels = [read_label(text, tasks[row["task"]]) for text in output]
        if None in labels:
            side = ("chosen", "rejected")[labels.index(None)]
            return f"field output: no label of task {row['task']} can be read from the {side} side"
        if label_sensitive and labels[0] == labels[1]:
            return f"a label-sensitive pair needs two different labels, found {labels[0]!r} on both sides"
        return None

    return _read(path, tasks, check)


def is_pair(value: object) -> bool:
    """Whether it is a list of two texts, neither of them blank."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, str) and side.strip() for side in value)


def _bad_label(label: object, task: Task, field: str) -> str | None:
    if task.kind == "score":
        if isinstance(label, str) and re.fullmatch(r"-?\d+(\.\d+)?", label) and task.low <= float(label) <= task.high:
            return None
        expected = f"a number in {task.low:g}..{task.high:g}, as text"
    elif label in task.labels:  # as the task writes it: predictions are compared with it
        return None
    else:
        expected = ", ".join(task.labels)
    return f"field {field}: {label!r} is not a label of task {task.name}; expected {expected}"


def _read(path: Path | str, tasks: dict[str, Task], check: Callable[[dict], str | None]) -> list[dict]:
    rows = []
    for number, row in read_jsonl(path):
        problem = _missing(row, tasks) or check(row)
        if problem:
            raise UserError(f"{path} line {number}: {problem}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file is empty; expected at least one row")
    return rows


def bad_history(row: dict) -> str | None:
    """What is wrong with a row's earlier turns, if it has any."""
    turns = row.get("history", [])
    if not isinstance(turns, list) or not all(map(is_pair, turns)):
        return f"field history: expected a list of [user, assistant] texts, found {turns!r:.80}"
    return None


def _missing(row: dict, tasks: dict[str, Task]) -> str | None:
    for field, kind in _FIELDS.items():
        if field not in row:
            return f"field {field} is missing"
        if not isinstance(row[field], kind):
            return f"field {field}: expected text, found {row[field]!r:.80}"
    if row["task"] not in tasks:
        return f"field task: unknown task {row['task']!r}; expected one of {', '.join(tasks)}"
    if problem := bad_history(row):
        return problem
    if not (row["instruction"].strip() or row["input"].strip()):
        return "instruction and input are both empty"
    return None
