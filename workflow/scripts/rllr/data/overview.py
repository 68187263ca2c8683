"""What is in the prepared files: report.json, a table in the log, and a plot."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rllr.cli import UserError, log
from rllr.data import FILES
from rllr.data.counts import LENGTH_STEP
from rllr.files import read_jsonl

SAMPLE = 1000  # rows a file whose tokens are counted


def make_report(built: dict[str, Any]) -> dict:
    """The report of `build`'s results as plain JSON values."""
    counts = built["counts"]
    files: dict[str, dict] = {}
    for file in FILES:
        lengths = {key[2]: n for key, n in counts.items() if key[:2] == ("words", file)}
        files[file] = {
            "rows": sum(lengths.values()),
            "tasks": {
                task: {"rows": counts["rows", file, task], "labels": _labels(counts, file, task)}
                for task in built["sources"]
                if counts["rows", file, task]
            },
            "input words": _quantiles(lengths),
        }
        if rejected := {key[2]: n for key, n in sorted(counts.items(), key=str) if key[:2] == ("rejected by", file)}:
            files[file]["rejected by"] = rejected
    return {
        "files": files,
        "sources": {
            task: found | {key[2]: n for key, n in sorted(counts.items(), key=str) if key[:2] == ("dropped", task)}
            for task, found in built["sources"].items()
        },
        "asked but not there": {
            use: short
            for use, tasks in built["asked"].items()
            if (short := {task: asked - got for task, (asked, got) in tasks.items() if asked > got})
        },
        "shared rows": built["shared"],
        "annotator": built["annotator"],
    }


def _labels(counts: Counter, file: str, task: str) -> dict[str, int]:
    found = {key[3] or "unknown": n for key, n in counts.items() if key[:3] == ("label", file, task)}
    return dict(sorted(found.items()))


def _quantiles(histogram: dict[int, int]) -> dict[str, int]:
    """Upper bounds of the median, the 95% quantile and the maximum, in words."""
    if not histogram:
        return {}
    bars = sorted(histogram)
    upto = np.cumsum([histogram[bar] for bar in bars])
    at = {"median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: (bars[int(np.searchsorted(upto, q * upto[-1]))] + 1) * LENGTH_STEP for name, q in at.items()}


def token_lengths(folder: Path, tokenizers: dict[str, str], cutoff: int) -> dict:
    """Tokens of prompt and longest response, without template markers, on the first SAMPLE rows of the largest files.

    Raises:
        UserError: a tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    texts = {}
    for file in ("sft_with_rat_train", "rllr_reward_train", "test"):
        rows = [row for _, row in itertools.islice(read_jsonl(folder / f"{file}.jsonl"), SAMPLE)]
        texts[file] = [(f"{row['instruction']}\n{row['input']}", row.get("output", "")) for row in rows]
    result = {}
    for name, path in tokenizers.items():
        try:
            tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"tokenizers.{name}: {path}/tokenizer.json cannot be read ({error})") from None

        def tokens(text: str, tokenizer: Tokenizer = tokenizer) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False))

        result[name] = {"cutoff": cutoff}
        for file, pairs in texts.items():
            lengths = [tokens(p) + max(tokens(o) for o in ([out] if isinstance(out, str) else out)) for p, out in pairs]
            if lengths:
                result[name][file] = {
                    "sample": len(lengths),
                    **{q: int(np.quantile(lengths, x)) for q, x in (("median", 0.5), ("p95", 0.95), ("max", 1))},
                    "share over cutoff": round(float(np.mean(np.array(lengths) > cutoff)), 4),
                }
    return result


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
