"""Whether one method is better than another on the same test rows: paired bootstrap, McNemar's test."""

from collections import defaultdict

import numpy as np

from rllr.evaluate.label_metrics import numbers, pearson, resampled
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
        tasks (difference, rows and resampled of each), difference, ci95 (paired bootstrap: rows are resampled within
        each task, for both methods alike), rows (their ids) and resampled (the bootstrap's differences: any two methods
        tested on the same rows are given the same draws, so these can be averaged over runs), error (standard error
        over rows), discordant (rows of accuracy tasks that only we, that only they have right; None without such tasks)
        and mcnemar_p of these (two-sided; every row weighs the same, while the difference weighs every task the same),
        detectable (the difference that these rows show with 80% power at the 5% level), and `noise`: the interval
        contains 0, or there are too few discordant rows for a bootstrap to be trusted and McNemar's exact p is above
        0.05.

    Raises:
        ValueError: the methods were not tested on the same rows.
    """
    a, b = _by_task(ours), _by_task(theirs)
    if {t: [r["id"] for r in rows] for t, rows in a.items()} != {t: [r["id"] for r in rows] for t, rows in b.items()}:
        raise ValueError("the two methods were not tested on the same rows")
    generator = np.random.default_rng(0)
    found: dict[str, dict] = {}
    least = 0.0
    ours_alone = theirs_alone = counted = 0
    for task in a:
        picks = resampled(len(a[task]), generator)
        if tasks[task].metric == "pearson":
            (gold, mine), (_, other) = numbers(a[task], tasks[task]), numbers(b[task], tasks[task])
            observed = pearson(gold, mine) - pearson(gold, other)
            drawn = np.array([pearson(gold[p], mine[p]) - pearson(gold[p], other[p]) for b in picks for p in b])
        else:
            mine, other = (np.array([r["prediction"] == r["label"] for r in side[task]]) for side in (a, b))
            delta = mine.astype(float) - other
            observed = delta.mean()
            drawn = np.concatenate([delta[block].mean(1) for block in picks])
            ours_alone += int((mine & ~other).sum())
            theirs_alone += int((other & ~mine).sum())
            counted += 1
        ids = tuple(row["id"] for row in a[task])
        found[task] = {"difference": float(observed), "resampled": drawn, "rows": ids}
        least += len(a[task]) ** -2  # two methods that agree everywhere still could have differed in a row
    drawn = np.mean([own["resampled"] for own in found.values()], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    p = mcnemar(ours_alone, theirs_alone) if counted else None
    error = max(float(drawn.std()), least**0.5 / len(a))
    few = counted == len(a) and ours_alone + theirs_alone < EXACT
    return {
        "difference": float(np.mean([own["difference"] for own in found.values()])),
        "ci95": [low, high],
        "resampled": drawn,
        "rows": sum((own["rows"] for own in found.values()), ()),
        "tasks": found,
        "discordant": (ours_alone, theirs_alone) if counted else None,
        "mcnemar_p": p,
        "error": error,
        "detectable": POWER * error,
        "noise": low <= 0 <= high or (few and p is not None and p > 0.05),
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


def over_runs(differences: list[dict]) -> dict:
    """The mean difference over runs, with its 95% intervals.

    Args:
        differences: what `difference` gave for each run, or its entry of one task; at least one.

    Returns:
        difference; intervals: `rows`, a bootstrap over the test rows (if all runs were tested on the same ones), and
        `runs`, Student's t (only of several); runs: how many there are; noise: whether an interval holds 0, or a single
        run is noise by itself.
    """
    from scipy.stats import t

    values, intervals = [d["difference"] for d in differences], {}
    if len({d["rows"] for d in differences}) == 1:
        intervals["rows"] = np.quantile(np.mean([d["resampled"] for d in differences], axis=0), [0.025, 0.975]).tolist()
    if len(values) > 1:
        half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        intervals["runs"] = [float(np.mean(values) - half), float(np.mean(values) + half)]
    noise = any(low <= 0 <= high for low, high in intervals.values())
    noise |= len(values) == 1 and differences[0].get("noise", False)
    return {"difference": float(np.mean(values)), "intervals": intervals, "runs": len(values), "noise": noise}


def detectable_over_runs(differences: list[dict]) -> float | None:
    """The mean difference over runs that both of its intervals, over rows and over runs, show with about 80% power.

    Args:
        differences: what `difference` gave for each run. None unless there are several, all tested on the same rows.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    n = len(differences)
    if n < 2 or len({d["rows"] for d in differences}) > 1:
        return None
    drawn = np.mean([d["resampled"] for d in differences], axis=0)
    rows = max(float(drawn.std()), min(d["error"] for d in differences) / n**0.5)
    runs = float(np.std([d["difference"] for d in differences], ddof=1)) / n**0.5
    # The noncentrality with which Student's t leaves its central 95% four times in five: 2.8 only with many runs.
    found = brentq(lambda x: nct.sf(t.ppf(0.975, n - 1), n - 1, x) - 0.8, 2, 100)
    return max(POWER * rows, float(found) * runs)
