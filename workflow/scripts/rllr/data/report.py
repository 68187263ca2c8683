"""What is in the prepared files: report.json, a table in the log, and a plot."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rllr.cli import log
from rllr.data import FILES
from rllr.data.build import LENGTH_STEP
from rllr.data.plan import USES, Plan

# Files whose overlap in rows matters, by the use that fills them.
OVERLAPS = ("sft", "label_pairs", "rationale_pairs", "unsupervised", "validation", "test")


def make_report(config: Any, built: dict[str, Any]) -> dict:
    """The report of `build`'s results as plain JSON values."""
    plan, counts = built["plan"], built["counts"]
    files: dict[str, dict] = {}
    for file in FILES:
        lengths = {key[2]: n for key, n in counts.items() if key[:2] == ("words", file)}
        files[file] = {
            "rows": sum(lengths.values()),
            "tasks": {
                task: {"rows": counts["rows", file, task], "labels": _labels(counts, file, task)}
                for task in config.specs
                if counts["rows", file, task]
            },
            "input words": _quantiles(lengths),
        }
        if rejected := {key[2]: n for key, n in sorted(counts.items()) if key[:2] == ("rejected by", file)}:
            files[file]["rejected by"] = rejected
    return {
        "files": files,
        "sources": {
            task: {**built["dropped"][task], **plan.hygiene[task]}
            | {key[2]: n for key, n in sorted(counts.items()) if key[:2] == ("dropped", task)}
            for task in config.specs
        },
        "asked but not there": {
            use: short
            for use, tasks in plan.asked.items()
            if (short := {task: asked - got for task, (asked, got) in tasks.items() if asked > got})
        },
        "shared rows": overlaps(plan),
        "annotator": built["annotator"],
    }


def overlaps(plan: Plan) -> dict[str, dict[str, int]]:
    """Rows that two uses share; on the diagonal the rows of a use."""
    masks = {use: plan.uses & USES[use] > 0 for use in OVERLAPS}
    return {a: {b: int(np.sum(masks[a] & masks[b])) for b in OVERLAPS} for a in OVERLAPS}


def _labels(counts: Counter, file: str, task: str) -> dict[str, int]:
    return {key[3]: n for key, n in sorted(counts.items()) if key[:3] == ("label", file, task)}


def _quantiles(histogram: dict[int, int]) -> dict[str, int]:
    """Upper bounds of the median, the 95% quantile and the maximum, in words."""
    if not histogram:
        return {}
    bars = sorted(histogram)
    upto = np.cumsum([histogram[bar] for bar in bars])
    at = {"median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: (bars[int(np.searchsorted(upto, q * upto[-1]))] + 1) * LENGTH_STEP for name, q in at.items()}


def log_table(report: dict) -> None:
    width = max(map(len, report["files"]))
    for file, entry in report["files"].items():
        tasks = ", ".join(f"{task} {of['rows']}" for task, of in entry["tasks"].items())
        log(f"{file:<{width}} {entry['rows']:>8}  {tasks}")
    for task, found in report["sources"].items():
        for what, n in found.items():
            if n:
                log(f"{task}: {what}: {n}")
    for task, of in report["files"]["sft_train"]["tasks"].items():
        share = max(of["labels"].values()) / of["rows"]
        if len(of["labels"]) > 1 and share > 0.8:
            log(f"{task}: imbalanced, {share:.0%} of the SFT rows carry one label")


def plot(report: dict, path: Path) -> None:
    """Rows of each file, coloured by task, and how many words the inputs have."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "report"  # equal data, equal file
    from matplotlib import pyplot

    files = {file: entry for file, entry in report["files"].items() if entry["rows"]}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.4 * len(files) + 1.5), sharey=True)
    base = np.zeros(len(files))
    for task in report["sources"]:
        rows = np.array([entry["tasks"].get(task, {}).get("rows", 0) for entry in files.values()])
        left.barh(list(files), rows, left=base, label=task)
        base += rows
    left.invert_yaxis()
    left.set_xlabel("rows")
    left.legend(fontsize=8)
    for name, marker in (("median", "o"), ("p95", "s"), ("max", "x")):
        right.plot([entry["input words"][name] for entry in files.values()], list(files), marker, label=name)
    right.set_xlabel("words of the input (upper bound)")
    right.set_xlim(left=0)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
