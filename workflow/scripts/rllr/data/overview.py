"""What is in the prepared files: report.json, a table in the log, and a plot."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rllr.cli import UserError, log
from rllr.data.catalogue import FILES
from rllr.data.spec import TaskSpec
from rllr.files import read_jsonl

SAMPLE = 1000  # rows a file whose tokens are counted
MOSTLY = 0.9  # share of one label from which on it is told
FEW = 200  # test rows below which it is told


def make_report(built: dict[str, Any], specs: dict[str, TaskSpec]) -> dict:
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
        "warnings": list(_warnings(files, specs)),
        "without reading": _unread(counts, specs),
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


def _quantiles(histogram: dict[int, int]) -> dict[str, float]:
    """The median, the 95% quantile and the maximum, in words."""
    if not histogram:
        return {}
    words = np.repeat(list(histogram), list(histogram.values()))
    return {name: float(np.quantile(words, q)) for name, q in (("median", 0.5), ("p95", 0.95), ("max", 1))}


def _warnings(files: dict[str, dict], specs: dict[str, TaskSpec]) -> Iterator[str]:
    """What one should know before anything is trained on the files."""
    for name, spec in specs.items():
        labels = list(spec.claims) if spec.task.kind == "score" else list(spec.task.labels)
        for claim in dict.fromkeys(spec.claims.values()):
            if len(alike := [label for label in labels if spec.claims.get(label) == claim]) > 1:
                yield f"{name}: labels {', '.join(alike)} have one claim, {claim!r}: rationales cannot tell them apart"
        if unknown := [label for label in spec.claims if label not in labels]:
            yield f"{name}: claims for {', '.join(unknown)}, which are no labels"
        for file, what in (("sft_train", "SFT"), ("test", "test")):
            found = files[file]["tasks"].get(name)
            if not found:
                continue
            if spec.task.kind != "score":
                if absent := [label for label in labels if label not in found["labels"]]:
                    yield f"{name}: none of {found['rows']} {what} rows has label {', '.join(absent)}"
                label, most = max(found["labels"].items(), key=lambda item: item[1])
                if most > MOSTLY * found["rows"]:
                    share = f"{most} of {found['rows']} {what} rows ({most / found['rows']:.0%})"
                    yield f"{name}: {share} have label {label}"
            if file == "test" and found["rows"] < FEW:
                half = 196 * (0.25 / found["rows"]) ** 0.5
                yield f"{name}: {found['rows']} test rows: an accuracy is known to about {half:.0f} points either way"


def _unread(counts: Counter, specs: dict[str, TaskSpec]) -> dict[str, dict]:
    """What one gets without reading a text: the share of test rows of the most frequent label, and of training pairs
    whose gold label is the one that is gold more often, wherever it occurs.
    """
    found: dict[str, dict] = {}
    for name, spec in specs.items():
        if spec.task.kind == "score":
            continue
        own = found[name] = {}
        labels = Counter({key[3]: n for key, n in counts.items() if key[:3] == ("label", "test", name)})
        if labels:
            label, most = labels.most_common(1)[0]
            own["most frequent label"] = {"label": label, "share": round(most / labels.total(), 4)}
        pairs = {key[3:]: n for key, n in counts.items() if key[:3] == ("pair", "rllr_reward_train", name)}
        if pairs:
            gold: Counter[str] = Counter()
            seen: Counter[str] = Counter()
            for (chosen, rejected), n in pairs.items():
                gold[chosen] += n
                seen.update({chosen: n, rejected: n})
            rate = {label: gold[label] / n for label, n in seen.items()}
            won = sum(n * ((rate[a] > rate[b]) + (rate[a] == rate[b]) / 2) for (a, b), n in pairs.items())
            own["more frequent side of a pair"] = {"share": round(won / sum(pairs.values()), 4)}
    return found


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
    result: dict[str, dict] = {}
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
    for task, found in report["without reading"].items():
        for what, of in found.items():
            log(f"{task}: without reading, the {what} is right in {of['share']:.1%}")
    for warning in report["warnings"]:
        log(f"warning: {warning}")


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
    right.set_xlabel("words of the input")
    right.set_xlim(left=0)
    right.legend(fontsize=8)
    figure.tight_layout()
    if told := "\n".join(textwrap.fill(warning, 160) for warning in report["warnings"]):
        figure.text(0.01, 0, told, va="top", fontsize=8)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
