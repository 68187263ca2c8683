"""Metrics of predictions, and how sure they are. An answer without a readable label counts as wrong."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from rllr.tasks import Task

RESAMPLES = 2000
BLOCK = 100  # resamples drawn at a time: all at once are GiBs where a task has tens of thousands of rows
BINS = 10  # of the expected calibration error


def resampled(n: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """RESAMPLES bootstrap samples of n rows, (BLOCK, n) places at a time."""
    return (generator.integers(0, n, (BLOCK, n)) for _ in range(RESAMPLES // BLOCK))


def wilson(right: float, n: int) -> list[float]:
    """95% Wilson score interval of a share."""
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [middle - half, middle + half]


def numbers(rows: list[dict], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Gold and predicted numbers; an unparsed answer is the end of the range farthest from gold."""
    gold = np.array([float(row["label"]) for row in rows])
    low = task.low if task.kind == "score" else min(map(float, task.labels))
    high = task.high if task.kind == "score" else max(map(float, task.labels))
    farthest = np.where(gold - low > high - gold, low, high)
    said = [row["prediction"] for row in rows]
    return gold, np.array([f if s is None else float(s) for s, f in zip(said, farthest, strict=True)])


def pearson(gold: np.ndarray, said: np.ndarray) -> float:
    """Pearson's r; 0 where one side does not vary (a constant answer says nothing)."""
    from scipy.stats import pearsonr

    return 0.0 if np.ptp(gold) == 0 or np.ptp(said) == 0 else float(pearsonr(gold, said).statistic)


def shares(row: dict) -> dict[str, float] | None:
    """Label -> how sure the answer is of it: its probability, or its share of the votes; None if neither is known."""
    return row.get("votes", row.get("probabilities"))


def confidences(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """How sure each answer is of its own label (0 if it has none), and whether that is right; both (n,)."""
    sure = np.array([(shares(row) or {}).get(row["prediction"], 0.0) for row in rows])
    return sure, np.array([row["prediction"] == row["label"] for row in rows])


def calibration_error(sure: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in BINS bins of one width (Guo et al. 2017, arXiv 1706.04599): mean distance of
    confidence and accuracy over bins, weighted by their rows.
    """
    bins = np.digitize(sure, np.linspace(0, 1, BINS + 1)[1:-1])
    gaps = np.bincount(bins, weights=sure - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(sure))


def brier(rows: list[dict], task: Task) -> float:
    """Brier score: mean squared distance of the label shares from the gold label's 0s and 1s, halved for two labels."""
    found = np.array([[(shares(row) or {}).get(label, 0.0) for label in task.labels] for row in rows])
    gold = np.array([[row["label"] == label for label in task.labels] for row in rows])
    return float(((found - gold) ** 2).sum(1).mean() / (2 if len(task.labels) == 2 else 1))


def coverage_curve(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, accuracy) of the k surest answers, k = 1..n; answers that are equally sure come in no order."""
    levels, group = np.unique(-sure, return_inverse=True)
    each = np.bincount(group, weights=right, minlength=len(levels)) / np.bincount(group, minlength=len(levels))
    k = np.arange(1, len(sure) + 1)
    return k / len(sure), np.cumsum(each[np.sort(group)]) / k


def sureness(rows: list[dict], task: Task) -> dict:
    """How far one can go by how sure the answers are; empty where none says so.

    `ece`; `brier`; `coverage_area`, the mean accuracy over all coverages (a perfect order of the answers gives more,
    none gives the accuracy itself); for a score `expectation_pearson` of the expected scores.
    """
    if task.kind == "score":
        own = [row for row in rows if "expectation" in row]
        if 2 * len(own) <= len(rows):
            return {}
        gold, said = np.array([[float(row["label"]), row["expectation"]] for row in own]).T
        return {"expectation_pearson": pearson(gold, said)}
    if not any(shares(row) for row in rows):
        return {}
    sure, right = confidences(rows)
    area = float(coverage_curve(sure, right)[1].mean())
    return {"ece": calibration_error(sure, right), "brier": brier(rows, task), "coverage_area": area}


def task_metrics(rows: list[dict], task: Task) -> dict:
    """All metrics of one task; `value` is the headline metric as a fraction, `ci95` its interval, `most_frequent` what
    the answer "always the most frequent label" gets.

    Args:
        rows: lines of predictions.jsonl of this task.
    """
    from sklearn.metrics import f1_score

    unparsed = sum(row["prediction"] is None for row in rows)
    result = {"metric": task.metric, "n": len(rows), "unparsed": unparsed, **sureness(rows, task)}
    if task.kind in ("score", "stars"):
        gold, said = numbers(rows, task)
        result["mean_absolute_error"] = float(np.abs(gold - said).mean())
    if task.kind == "score":
        from scipy.stats import spearmanr

        varied = np.ptp(gold) > 0 and np.ptp(said) > 0
        result["spearman"] = float(spearmanr(gold, said).statistic) if varied else 0.0
    if task.metric == "pearson":
        generator = np.random.default_rng(0)
        values = [pearson(gold[p], said[p]) for block in resampled(len(rows), generator) for p in block]
        interval = np.quantile(values, [0.025, 0.975]).tolist()
        return {**result, "value": pearson(gold, said), "ci95": interval, "most_frequent": 0.0}
    gold_labels = [row["label"] for row in rows]
    said_labels = [row["prediction"] or "(unparsed)" for row in rows]
    right = sum(g == s for g, s in zip(gold_labels, said_labels, strict=True))
    result |= {"value": right / len(rows), "ci95": wilson(right, len(rows))}
    result["most_frequent"] = Counter(gold_labels).most_common(1)[0][1] / len(rows)
    result["f1_macro"] = float(
        f1_score(gold_labels, said_labels, labels=list(task.labels), average="macro", zero_division=np.nan)
    )
    if task.f1:
        result["f1"] = float(f1_score([g == task.f1 for g in gold_labels], [s == task.f1 for s in said_labels]))
    return result


def method_metrics(rows: list[dict], tasks: dict[str, Task]) -> dict:
    """`score` (unweighted mean over tasks of the headline metrics), `n` and `tasks`, as metrics.json holds them."""
    by_task = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    found = {name: task_metrics(by_task[name], tasks[name]) for name in tasks if by_task[name]}
    score = sum(m["value"] for m in found.values()) / len(found)
    return {"n": len(rows), "score": score, "tasks": found}
