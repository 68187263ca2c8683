"""Pairs of responses: which wrong label, which worse rationale, and the check that every pair must pass."""

import re
from functools import lru_cache

from rllr.cli import UserError
from rllr.data.annotators import Ask
from rllr.data.annotators.cue import sentence, words
from rllr.data.spec import TaskSpec
from rllr.files import read_json
from rllr.tasks import Task, read_label, respond


def mix(number: int, salt: int) -> int:
    """A pseudo-random 64-bit number from a row's hash and a salt (splitmix64)."""
    z = (number + salt * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


@lru_cache(maxsize=100_000)
def candidates(spec: TaskSpec, gold: str, min_distance: float) -> tuple[str, ...]:
    """Every label that counts as wrong beside `gold`; for stars and scores at least `min_distance` away."""
    task = spec.task
    if task.kind == "label":
        return tuple(label for label in task.labels if label != gold)
    if task.kind == "stars":
        return tuple(label for label in task.labels if abs(int(label) - int(gold)) >= min_distance)
    steps = 50
    grid = (task.low + (task.high - task.low) * step / steps for step in range(steps + 1))
    labels = dict.fromkeys(f"{round(value, spec.decimals):g}" for value in grid)
    return tuple(label for label in labels if abs(float(label) - float(gold)) >= min_distance)


def wrong_labels(
    spec: TaskSpec, gold: str, row_hash: int, wrong: int, min_distance: float, confusion: dict
) -> list[str]:
    """`wrong` labels (or all, if there are fewer) to reject: those most often confused with gold, then by chance.

    Args:
        confusion: task -> gold label -> predicted label -> count; may be empty.
    """
    counts = confusion.get(spec.task.name, {}).get(gold, {})
    pool = candidates(spec, gold, min_distance)
    order = sorted(range(len(pool)), key=lambda i: (-counts.get(pool[i], 0), mix(row_hash, 100 + i)))
    return [pool[i] for i in order[:wrong]]


def read_confusion(path: str, tasks: dict[str, Task]) -> dict:
    """A JSON file `{task: {gold: {predicted: count}}}`, checked."""
    confusion = read_json(path)
    for task, golds in confusion.items():
        if task not in tasks:
            raise UserError(f"{path}: key {task}: no such task, expected one of {', '.join(tasks)}")
        if not isinstance(golds, dict):
            raise UserError(f"{path}: key {task}: expected gold label -> predicted label -> count")
        for gold, row in golds.items():
            for label in (gold, *row) if isinstance(row, dict) else (gold, None):
                if label is None or read_label(respond(None, label), tasks[task]) != label:
                    raise UserError(f"{path}: key {task}.{gold}: found {label!r}, expected a label with counts")
    return confusion


def corrupt(kind: str, spec: TaskSpec, ask: Ask, donor: Ask | None, donor_rationale: str | None) -> str | None:
    """A worse rationale for the same label, or None if this corruption is not possible here.

    Kinds: `other_row` (a rationale written for another row), `contentless` (cites nothing), `absent_words` (cites words
    that the input does not hold). `donor` is another row of the same label.
    """
    claim = spec.claims.get(spec.label_class(ask.label), "this answer")
    if kind == "contentless":
        return sentence([], claim, spec.pair)
    if donor is None:
        return None
    if kind == "other_row":
        return donor_rationale
    own = set(words(f"{ask.text} {ask.text2}"))
    absent = sorted((word for word in words(donor.text) if word not in own), key=lambda word: (-len(word), word))[:2]
    if not absent:
        return None
    return sentence([("=" if spec.pair else "") + word for word in absent], claim, spec.pair)


@lru_cache(maxsize=100_000)
def _reads_back(task: Task, label: str) -> bool:
    return read_label(respond(None, label), task) == label


@lru_cache(maxsize=1000)
def _answer_line(pattern: str) -> re.Pattern:
    return re.compile(pattern)


def usable(rationale: str | None, label: str, task: Task) -> bool:
    """Whether rationale and label make a response from which exactly this label is read."""
    if not rationale or not rationale.strip():
        return False
    return _answer_line(task.answer).search(rationale) is None and _reads_back(task, label)
