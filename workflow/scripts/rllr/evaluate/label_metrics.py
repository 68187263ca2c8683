"""Metrics of predictions, and how sure they are. An answer without a readable label counts as wrong."""

import math
from collections import defaultdict

import numpy as np

from rllr.tasks import Task

RESAMPLES = 2000


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


def task_metrics(rows: list[dict], task: Task) -> dict:
    """All metrics of one task; `value` is the headline metric as a fraction, `ci95` its interval.

    Args:
        rows: lines of predictions.jsonl of this task.
    """
    from sklearn.metrics import f1_score

    unparsed = sum(row["prediction"] is None for row in rows)
    result = {"metric": task.metric, "n": len(rows), "unparsed": unparsed}
    if task.kind in ("score", "stars"):
        gold, said = numbers(rows, task)
        result["mean_absolute_error"] = float(np.abs(gold - said).mean())
    if task.kind == "score":
        from scipy.stats import spearmanr

        varied = np.ptp(gold) > 0 and np.ptp(said) > 0
        result["spearman"] = float(spearmanr(gold, said).statistic) if varied else 0.0
    if task.metric == "pearson":
        generator = np.random.default_rng(0)
        picks = generator.integers(0, len(rows), (RESAMPLES, len(rows)))
        values = [pearson(gold[p], said[p]) for p in picks]
        interval = np.quantile(values, [0.025, 0.975]).tolist()
        return {**result, "value": pearson(gold, said), "ci95": interval}
    gold_labels = [row["label"] for row in rows]
    said_labels = [row["prediction"] or "(unparsed)" for row in rows]
    right = sum(g == s for g, s in zip(gold_labels, said_labels, strict=True))
    result |= {"value": right / len(rows), "ci95": wilson(right, len(rows))}
    result["f1_macro"] = float(
        f1_score(gold_labels, said_labels, labels=list(task.labels), average="macro", zero_division=0)
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
