"""Whether one method is better than another on the same test rows: paired bootstrap, McNemar's test."""

from collections import defaultdict

import numpy as np

from rllr.metrics import RESAMPLES, numbers, pearson
from rllr.tasks import Task

EXACT = 25  # discordant rows
POWER = 2.8  # standard errors that a two-sided test at the 5% level finds with 80% power (1.96 + 0.84)


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
        draws, so these can be averaged over runs), discordant (rows of accuracy tasks that only we, that only they
        have right; None without such tasks) and mcnemar_p of these (two-sided; every row weighs the same, while the
        difference weighs every task the same), detectable (the difference that these rows show with 80% power at the
        5% level), and `noise`: the interval contains 0, or there are too few discordant rows for a bootstrap to be
        trusted and McNemar's exact p is above 0.05.

    Raises:
        ValueError: the methods were not tested on the same rows.
    """
    a, b = _by_task(ours), _by_task(theirs)
    if {t: [r["id"] for r in rows] for t, rows in a.items()} != {t: [r["id"] for r in rows] for t, rows in b.items()}:
        raise ValueError("the two methods were not tested on the same rows")
    generator = np.random.default_rng(0)
    observed, resampled, least = [], np.zeros(RESAMPLES), 0.0
    ours_alone = theirs_alone = counted = 0
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
            ours_alone += int((mine & ~other).sum())
            theirs_alone += int((other & ~mine).sum())
            counted += 1
            least += len(mine) ** -2  # two methods that agree everywhere still could have differed in a row
    resampled /= len(a)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    p = mcnemar(ours_alone, theirs_alone) if counted else None
    few = counted == len(a) and ours_alone + theirs_alone < EXACT
    return {
        "difference": float(np.mean(observed)),
        "ci95": [low, high],
        "resampled": resampled,
        "rows": tuple(row["id"] for rows in a.values() for row in rows),
        "discordant": (ours_alone, theirs_alone) if counted else None,
        "mcnemar_p": p,
        "detectable": POWER * max(float(resampled.std()), least**0.5 / len(a)),
        "noise": low <= 0 <= high or (few and p > 0.05),
    }


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """McNemar's two-sided p: exact binomial below EXACT discordant rows, else chi-squared, continuity-corrected."""
    from scipy.stats import binomtest, chi2

    n = only_ours + only_theirs
    if n == 0:
        return 1.0
    if n < EXACT:
        return float(binomtest(only_ours, n, 0.5).pvalue)
    return float(chi2.sf((max(abs(only_ours - only_theirs) - 1, 0)) ** 2 / n, 1))
