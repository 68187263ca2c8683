"""Whether one method is better than another on the same test rows: paired bootstrap, McNemar's test."""

from collections import defaultdict

import numpy as np

from rllr.metrics import RESAMPLES, numbers, pearson
from rllr.tasks import Task


def _by_task(rows: list[dict]) -> dict[str, list[dict]]:
    grouped = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        grouped[row["task"]].append(row)
    return grouped


def difference(ours: list[dict], theirs: list[dict], tasks: dict[str, Task]) -> dict:
    """ours - theirs in the mean over tasks of the headline metric.

    Args:
        ours, theirs: lines of two predictions.jsonl over the same test rows.

    Returns:
        difference, ci95 (paired bootstrap: rows are resampled within each task, for both methods alike), rows (their
        ids) and resampled (the bootstrap's differences: any two methods tested on the same rows are given the same
        draws, so these can be averaged over runs), mcnemar_p (two-sided, over the rows of accuracy tasks; None without
        such rows), detectable (the smallest difference that this many rows with this share of discordant answers show
        with 80% power at the 5% level; None without accuracy tasks), and `noise`: whether the interval contains 0.
    """
    a, b = _by_task(ours), _by_task(theirs)
    if {t: [r["id"] for r in rows] for t, rows in a.items()} != {t: [r["id"] for r in rows] for t, rows in b.items()}:
        raise ValueError("the two methods were not tested on the same rows")
    generator = np.random.default_rng(0)
    observed, resampled, variances = [], np.zeros(RESAMPLES), []
    only_ours = only_theirs = 0
    for task in a:
        picks = generator.integers(0, len(a[task]), (RESAMPLES, len(a[task])))
        if tasks[task].metric == "pearson":
            (gold, mine), (_, other) = numbers(a[task], tasks[task]), numbers(b[task], tasks[task])
            observed.append(pearson(gold, mine) - pearson(gold, other))
            resampled += [pearson(gold[p], mine[p]) - pearson(gold[p], other[p]) for p in picks]
        else:
            mine, other = (np.array([r["prediction"] == r["label"] for r in side[task]]) for side in (a, b))
            delta = mine.astype(float) - other
            observed.append(delta.mean())
            resampled += delta[picks].mean(1)
            only_ours += int((mine & ~other).sum())
            only_theirs += int((other & ~mine).sum())
            # Two methods that agree everywhere still could have differed: one discordant row at least.
            variances.append(max((mine != other).mean(), 1 / len(mine)) / len(mine))
    resampled /= len(a)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return {
        "difference": float(np.mean(observed)),
        "ci95": [low, high],
        "resampled": resampled,
        "rows": tuple(row["id"] for rows in a.values() for row in rows),
        "mcnemar_p": mcnemar(only_ours, only_theirs) if variances else None,
        "detectable": float(2.8 * np.sqrt(sum(variances)) / len(a)) if len(variances) == len(a) else None,
        "noise": low <= 0 <= high,
    }


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """McNemar's two-sided p: exact binomial below 25 discordant rows, else chi-squared with continuity correction."""
    from scipy.stats import binomtest, chi2

    n = only_ours + only_theirs
    if n == 0:
        return 1.0
    if n < 25:
        return float(binomtest(only_ours, n, 0.5).pvalue)
    return float(chi2.sf((max(abs(only_ours - only_theirs) - 1, 0)) ** 2 / n, 1))
