"""The rejected side of pairs: which wrong label, which worse rationale, and the check that every pair must pass."""

import math
import re
from collections import Counter
from functools import lru_cache

import numpy as np

from rllr.cli import UserError
from rllr.data.annotators import Ask
from rllr.data.annotators.cue import STOP_WORDS, sentence, words
from rllr.data.mixing import mix
from rllr.data.spec import TaskSpec
from rllr.files import HALF, read_json
from rllr.tasks import Task, read_label, respond


@lru_cache(maxsize=100_000)
def is_wrong(spec: TaskSpec, label: str, gold: str, min_distance: float) -> bool:
    """Whether a label counts as wrong beside `gold`: stars and scores from `min_distance` away, a score only with
    another claim than gold's, since it is the claim that its rationale argues for.
    """
    if spec.task.kind == "label":
        return label != gold
    far = abs(float(label) - float(gold)) >= min_distance
    return far and (spec.task.kind == "stars" or spec.label_class(label) != spec.label_class(gold))


def score_weights(spec: TaskSpec, occurring: Counter, min_distance: float) -> dict[str, float]:
    """The scores that occur, and weights to draw wrong ones by, with which wrong scores are spread as gold ones are.

    Drawn by these among those that are wrong, (gold, wrong) comes as often as (wrong, gold), so that no rule on the two
    numbers tells which is gold ("even tenths win", "the higher one"). The weights are those of a symmetric Sinkhorn
    scaling (Knight et al. 2014); where one score has more rows than all that are wrong beside it, they only come close.
    """
    scores = sorted(occurring, key=float)
    share = np.array([occurring[score] for score in scores], float) / max(1, occurring.total())
    allowed = np.array([[is_wrong(spec, b, a, min_distance) for b in scores] for a in scores], float)
    weights = np.ones(len(scores))
    for _ in range(1000):
        weights = np.sqrt(weights * share / np.maximum(allowed @ weights, 1e-12))
    return dict(zip(scores, weights.tolist(), strict=True))


def wrong_labels(
    spec: TaskSpec, gold: str, row_hash: int, wrong: int, min_distance: float, confusion: dict, weights: dict
) -> list[str]:
    """`wrong` labels (or all, if there are fewer) to reject: those most often confused with gold, then by chance.

    Args:
        confusion: task -> gold label -> predicted label -> count; may be empty.
        weights: for a score, `score_weights`; else empty: every label is as likely.
    """
    counts = confusion.get(spec.task.name, {}).get(gold, {})
    drawn = []
    for i, label in enumerate(weights or spec.task.labels):
        if is_wrong(spec, label, gold, min_distance):
            # The first of exponential waiting times is a draw by weight (Efraimidis and Spirakis 2006).
            uniform = (mix(row_hash, 100 + i) + 0.5) / 2**64
            waiting = -math.log(uniform) / max(weights.get(label, 1.0), 1e-300)
            drawn.append((-counts.get(label, 0), waiting, label))
    return [label for *_, label in sorted(drawn)[:wrong]]


def read_confusion(path: str, tasks: dict[str, Task]) -> dict:
    """A JSON file `{task: {gold: {predicted: count}}}`, checked."""
    confusion = read_json(path)
    if not isinstance(confusion, dict):
        raise UserError(f"{path}: expected task -> gold label -> predicted label -> count")
    for task, golds in confusion.items():
        if task not in tasks:
            raise UserError(f"{path}: key {task}: no such task, expected one of {', '.join(tasks)}")
        if not isinstance(golds, dict):
            raise UserError(f"{path}: key {task}: expected gold label -> predicted label -> count")
        for gold, row in golds.items():
            for label in (gold, *row) if isinstance(row, dict) else (gold, None):
                if label is None or read_label(respond(None, label), tasks[task]) != label:
                    raise UserError(f"{path}: key {task}.{gold}: found {label!r}, expected a label with counts")
            for label, count in row.items():
                if not isinstance(count, int | float):
                    raise UserError(f"{path}: key {task}.{gold}.{label}: found {count!r}, expected a count")
    return confusion


def corrupt(
    corruption: str, spec: TaskSpec, ask: Ask, donor: Ask | None, donor_rationale: str | None, cited: int
) -> str | None:
    """A worse rationale for the same label, or None if this corruption is not possible here.

    Corruptions: `other_row` (a rationale written for another row), `contentless` (cites nothing), `absent_words`
    (cites words that the input does not hold, `cited` of them at most). `donor` is another row of the same label.
    """
    claim = spec.claims.get(spec.label_class(ask.label), "this answer")
    if corruption == "contentless":
        return sentence([], claim, spec.pair)
    if donor is None:
        return None
    if corruption == "other_row":
        return donor_rationale
    own = set(words(f"{ask.text} {ask.text2}"))
    absent = sorted(set(words(donor.text)) - own - STOP_WORDS, key=lambda word: (-len(word), word))[:cited]
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
    if not rationale or not rationale.strip() or HALF.search(rationale):
        return False
    return _answer_line(task.answer).search(rationale) is None and _reads_back(task, label)
