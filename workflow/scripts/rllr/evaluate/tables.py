"""The summary table, methods x tasks, and its forms: tab-separated, Markdown, HTML."""

import hashlib
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rllr.cli import UserError, log
from rllr.config import load_yaml
from rllr.evaluate import html
from rllr.evaluate.comparison import detectable_over_runs, difference, over_runs
from rllr.files import read_json, read_jsonl
from rllr.predict.model_file import find
from rllr.version import told

BASELINES = ["sft_wrat", "rlhf"]


def read_predictions(folder: Path) -> list[dict]:
    """The lines of a method's predictions.jsonl."""
    return [row for _, row in read_jsonl(folder / "predictions.jsonl")]


def table(results: Path, models: list[str], methods: list[str]) -> list[dict]:
    """One row per model and method: task metrics, their mean, and comparisons with the baselines that were run.

    No conclusion is drawn from a method of which a task's answers are mostly unparsed: no mean, no comparison.

    Args:
        results: a results folder, holding <model>/<method>/{metrics.json,predictions.jsonl,model.json}.

    Raises:
        UserError: two methods of a model were tested on different rows.
    """
    rows = []
    for model in models:
        _, tasks, *_ = find(results / model / methods[0])
        predictions = {method: read_predictions(results / model / method) for method in methods}
        tested = {method: tested_on(predictions[method]) for method in methods}
        for method in methods:
            if tested[method] != tested[methods[0]]:
                raise UserError(
                    f"{results / model}: {methods[0]} and {method} were tested on different rows; predict both anew"
                )
        measured = {method: read_json(results / model / method / "metrics.json") for method in methods}
        baselines = [b for b in BASELINES if b in methods and not mostly_unparsed(measured[b])]
        for method, metrics in measured.items():
            versus = {
                baseline: difference(predictions[method], predictions[baseline], tasks)
                for baseline in baselines
                if baseline != method and not mostly_unparsed(metrics)
            }
            named = {"model": model, "method": method, "data": metrics["data"], "n": metrics["n"]}
            named["tested_on"] = tested[method]
            named["made_with"] = told(read_json(results / model / method / "model.json").get("made_with"))
            score = None if mostly_unparsed(metrics) else metrics["score"]
            rows.append({**named, "score": score, "tasks": metrics["tasks"], "versus": versus})
    return rows


def tested_on(predictions: list[dict]) -> str:
    """A checksum of the test rows."""
    ids = sorted([row["task"], row["id"], row["label"]] for row in predictions)
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def unparsed(row: dict) -> int:
    return sum(task["unparsed"] for task in row["tasks"].values())


def mostly_unparsed(metrics: dict) -> list[str]:
    """The tasks of which more than half of the answers have no readable label: their numbers mean nothing."""
    return [task for task, values in metrics["tasks"].items() if 2 * values["unparsed"] > values["n"]]


def tsv(runs: dict[str, list[dict]]) -> str:
    """Every number as a fraction with four digits, one line per run, model and method; `runs`: name -> rows."""
    rows = [(run, row) for run, rows in runs.items() for row in rows]
    tasks = list(dict.fromkeys(task for _, row in rows for task in row["tasks"]))
    head = ["run", "model", "method", "n", "unparsed", *tasks, "mean"]
    for baseline in BASELINES:
        head += [f"vs_{baseline}", f"vs_{baseline}_low", f"vs_{baseline}_high", f"vs_{baseline}_mcnemar_p"]
    lines = [head]
    for run, row in rows:
        values = [row["tasks"].get(task, {}).get("value") for task in tasks]
        line = [run, row["model"], row["method"], row["n"], unparsed(row), *values, row["score"]]
        for baseline in BASELINES:
            d = row["versus"].get(baseline)
            line += [d["difference"], *d["ci95"], d["mcnemar_p"]] if d else [None] * 4
        lines.append(["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in line])
    lines = lines if len(runs) > 1 else [line[1:] for line in lines]  # one run needs no name
    return "\n".join("\t".join(line) for line in lines) + "\n"


@dataclass
class Table:
    """The table of one model as text: a cell is (what is read first, what qualifies it)."""

    model: str
    head: list[str]
    lines: list[list[tuple[str, str]]]
    note: str


def tables(rows: list[dict]) -> list[Table]:
    """One table a model, values in percent; a difference whose 95% interval contains 0 is called noise."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        tasks = list(own[0]["tasks"])
        baselines = [b for b in BASELINES if any(b in row["versus"] for row in own)]
        lines = []
        for row in own:
            cells = [(row["method"], ""), (str(unparsed(row)), ""), *(_share(row["tasks"][task]) for task in tasks)]
            mean = "–" if row["score"] is None else f"{100 * row['score']:.1f}"
            lines.append([*cells, (mean, ""), *(_versus(row["versus"].get(b)) for b in baselines)])
        lines.insert(0, [*_most_frequent(own, tasks, ["–"]), *[("", "")] * len(baselines)])
        head = ["method", "unparsed", *tasks, "mean", *(f"vs {b}" for b in baselines)]
        found.append(Table(model, head, lines, _note(own)))
    return found


def _most_frequent(rows: list[dict], tasks: list[str], between: list[str]) -> list[tuple[str, str]]:
    """The cells of an answer that needs no model: always the test rows' most frequent label (Pearson's r: 0)."""
    shares = [np.mean([r["tasks"][task]["most_frequent"] for r in rows if task in r["tasks"]]) for task in tasks]
    numbers = [f"{100 * share:.1f}" for share in [*shares, np.mean(shares)]]
    return [(cell, "") for cell in ("always the most frequent label", *between, *numbers)]


def _note(rows: list[dict]) -> str:
    note = f"{rows[0]['n']} test rows of {rows[0]['data']}; percent, with 95% intervals."
    differences = [d for row in rows for d in row["versus"].values()]
    if differences:
        note += (
            " vs: difference of the means in points, [95% interval of a paired bootstrap over the rows], McNemar's p"
            " (rows that only this method : only the baseline has right; tasks weigh by their rows here, alike in the"
            " mean). Called noise: the interval holds 0, or there are fewer than 25 such rows and p is above 0.05."
            f" This many rows can tell {_detectable([d['detectable'] for d in differences])}."
        )
    return note + _unread(rows) + _made_with(rows)


def _made_with(rows: list[dict]) -> str:
    return f" Predicted with {'; '.join(dict.fromkeys(row['made_with'] for row in rows))}."


def _unread(rows: list[dict]) -> str:
    """What the methods are that nothing is concluded from, and how an unparsed answer counts."""
    note = ""
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        if tasks := list(dict.fromkeys(task for row in own for task in mostly_unparsed(row))):
            note += (
                f" {method}: {sum(map(unparsed, own))} of {sum(row['n'] for row in own)} answers have no readable"
                f" label, most of those to {', '.join(tasks)}; no mean and no difference is drawn from it."
            )
    if any(map(unparsed, rows)):
        note += " An unparsed answer counts as wrong; for a score, as the end of the range that is farthest from gold."
    return note


def _detectable(values: list[float]) -> str:
    low, high = (f"{100 * f(values):.1f}" for f in (min, max))
    return (
        f"differences of about {low if low == high else f'{low} to {high}'} points or more from noise "
        "(80% power; it depends on how differently two methods answer)"
    )


def finished(results: Path, models: list[str], methods: list[str]) -> list[dict]:
    """`table` of those models and methods that a results folder already has."""
    rows = []
    for model in models:
        there = [method for method in methods if (results / model / method / "metrics.json").is_file()]
        rows += table(results, [model], there) if there else []
    return rows


def spread(runs: list[list[dict]]) -> list[Table]:
    """One table a model: means over the runs that have a method, and their standard deviation.

    A difference carries two 95% intervals: over the test rows (bootstrap of the mean over runs; none where the runs
    were tested on different rows) and over the runs (Student's t). It is called noise if either holds 0.
    """
    rows = [row for run in runs for row in run]
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        tasks = list(dict.fromkeys(task for row in own for task in row["tasks"]))
        baselines = [b for b in BASELINES if any(b in row["versus"] for row in own)]
        lines: list[list[tuple[str, str]]] = []
        detectable: list[float] = []
        for method in dict.fromkeys(row["method"] for row in own):
            same = [row for row in own if row["method"] == method]
            cells = [(method, ""), (str(len(same)), ""), (str(sum(map(unparsed, same))), "")]
            for task in tasks:
                cells.append(_mean([row["tasks"][task]["value"] for row in same if task in row["tasks"]]))
            cells.append(_mean([row["score"] for row in same if row["score"] is not None]))
            versus = [[row["versus"][b] for row in same if b in row["versus"]] for b in baselines]
            detectable += filter(None, map(detectable_over_runs, versus))
            cells += map(_over_runs, versus)
            lines.append(cells)
        lines.insert(0, [*_most_frequent(own, tasks, ["", "–"]), *[("", "")] * len(baselines)])
        tested = sorted({f"{row['n']} test rows of {row['data']}" for row in own})
        note = f"Percent; means over runs ± their standard deviation. {', '.join(tested)}."
        if len({row["tested_on"] for row in own}) > 1:
            note += " The runs were not tested on the same rows: their means do not compare."
        if baselines:
            note += (
                " vs: mean difference in points over the runs that have both methods, with 95% intervals over the test"
                " rows (bootstrap; the runs share them) and over the runs (Student's t). Neither alone is an interval"
                " for new rows and new runs; called noise if either holds 0."
            )
        if detectable:
            note += f" These rows and runs can tell {_detectable(detectable)}."
        note += _unread(own) + _made_with(own)
        head = ["method", "runs", "unparsed", *tasks, "mean", *(f"vs {b}" for b in baselines)]
        found.append(Table(model, head, lines, note))
    return found


def against(runs: list[list[dict]], baseline: str) -> dict[str, dict[str, dict[str, dict]]]:
    """model -> method -> task or "mean" -> `over_runs` of the differences to a baseline, for figures."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    rows = [row for run in runs for row in run if baseline in row["versus"]]
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        versus = [r["versus"][baseline] for r in rows if (r["model"], r["method"]) == (model, method)]
        tasks = [task for task in versus[0]["tasks"] if all(task in d["tasks"] for d in versus)]
        parts = {"mean": over_runs(versus)} if len(tasks) > 1 else {}
        parts |= {task: over_runs([d["tasks"][task] for d in versus]) for task in tasks}
        found.setdefault(model, {})[method] = parts
    return found


def _mean(values: list[float]) -> tuple[str, str]:
    if not values:
        return "–", ""
    deviation = f"± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}", deviation


def _over_runs(differences: list[dict]) -> tuple[str, str]:
    """Mean difference over runs with its intervals."""
    if not differences:
        return "–", ""
    found = over_runs(differences)
    intervals = found["intervals"].items()
    text = ", ".join(f"{name} [{100 * low:+.1f}, {100 * high:+.1f}]" for name, (low, high) in intervals)
    return f"{100 * found['difference']:+.1f}{' noise' if found['noise'] else ''}", text


def data_differences(runs: dict[str, list[dict]], models: list[str]) -> list[list[str]]:
    """Lines like those of `config_differences` for models that were not trained on the same data everywhere."""
    lines = []
    for model in models:
        names = [", ".join(sorted({row["data"] for row in run if row["model"] == model})) for run in runs.values()]
        if len({*names} - {""}) > 1:
            lines.append([model, "all", "data", *(name or "–" for name in names)])
    return lines


def config_differences(folders: list[Path], models: list[str]) -> list[list[str]]:
    """Lines (model, stages, key, value in each folder) of the stage configs that are not the same in all folders."""
    lines: dict[tuple, list[str]] = {}
    for model in models:
        stages = sorted({path.parent.name for folder in folders for path in (folder / model).glob("*/config.yaml")})
        for stage in stages:
            paths = [folder / model / stage / "config.yaml" for folder in folders]
            configs = [load_yaml(path) if path.is_file() else None for path in paths]  # None: not run there (yet)
            for key in dict.fromkeys(key for config in configs for key in config or ()):
                values = tuple(
                    "–" if not config or key not in config else json.dumps(config[key]) for config in configs
                )
                if len({value for value, config in zip(values, configs, strict=True) if config}) > 1:
                    lines.setdefault((model, key, values), []).append(stage)
    return [[model, ", ".join(stages), key, *values] for (model, key, values), stages in lines.items()]


def _share(metric: dict) -> tuple[str, str]:
    low, high = metric["ci95"]
    return f"{100 * metric['value']:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]"


def _versus(d: dict | None) -> tuple[str, str]:
    if d is None:
        return "–", ""
    low, high = (100 * x for x in d["ci95"])
    p = "" if d["mcnemar_p"] is None else f" p {d['mcnemar_p']:.2g} ({d['discordant'][0]} : {d['discordant'][1]})"
    return f"{100 * d['difference']:+.1f}{' noise' if d['noise'] else ''}", f"[{low:+.1f}, {high:+.1f}]{p}"


def verdicts(rows: list[dict], baseline: str = BASELINES[0]) -> list[str]:
    """A sentence for each method that was compared with the baseline, the best first: how much better, and how sure."""
    found = []
    compared = [row for row in rows if baseline in row["versus"]]
    for row in sorted(compared, key=lambda row: -row["versus"][baseline]["difference"]):
        d = row["versus"][baseline]
        points, (low, high) = 100 * d["difference"], (100 * x for x in d["ci95"])
        found.append(
            f"{row['method']} is {abs(points):.1f} points {'above' if points >= 0 else 'below'} {baseline} "
            f"(95% interval {low:+.1f} to {high:+.1f}): {'this may be chance' if d['noise'] else 'not by chance'}."
        )
    return found


def pipes(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [head, rule, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plain(found: list[Table]) -> str:
    """The tables for a terminal, in aligned columns."""
    parts = []
    for table in found:
        lines = [table.head, *([" ".join(filter(None, cell)) for cell in line] for line in table.lines)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        parts.append("\n".join([table.model, *(row.rstrip() for row in rows), "", textwrap.fill(table.note, 110)]))
    return "\n\n".join(parts) + "\n"


def markdown(found: list[Table]) -> str:
    parts = ["# Results"]
    for table in found:
        lines = [[" ".join(filter(None, cell)) for cell in line] for line in table.lines]
        parts.append(f"## {table.model}\n\n{table.note}\n\n{pipes(table.head, lines)}")
    return "\n\n".join(parts) + "\n"


def sections(found: list[Table]) -> str:
    """The tables as HTML, a heading each."""
    return "".join(
        f"<h3>{html.text(table.model)}</h3><p class=note>{html.text(table.note)}</p>"
        f"{html.table(table.head, table.lines)}"
        for table in found
    )


@dataclass
class Summary:
    """Attributes:
    files: summary.tsv and .md by name. tables: the same as HTML, for a page. runs: `table` of each results folder.
    """

    files: dict[str, str]
    tables: str
    runs: list[list[dict]]


def summary_of_run(results: Path, models: list[str], methods: list[str]) -> Summary:
    """The files about one results folder."""
    rows = table(results, models, methods)
    found = tables(rows)
    return Summary({"summary.tsv": tsv({"": rows}), "summary.md": markdown(found)}, sections(found), [rows])


def summary_of_runs(folders: list[Path], models: list[str], methods: list[str]) -> Summary:
    """The files about several runs; methods that a run does not have yet are left out of it."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"the same results folder twice: {', '.join(map(str, folders))}")
    runs = {str(path): finished(path, models, methods) for path in folders}
    if not any(runs.values()):
        raise UserError("none of the results folders has metrics.json of any of the methods yet")
    for run, rows in runs.items():
        there = {(row["model"], row["method"]) for row in rows}
        if absent := [f"{m}/{method}" for m in models for method in methods if (m, method) not in there]:
            log(f"{run}: no metrics.json yet of {', '.join(absent)}")
    found = spread(list(runs.values()))
    differing = data_differences(runs, models) + config_differences(folders, models)
    head = ["model", "stages", "key", *map(str, folders)]
    title = "Differences in configuration"
    page = f"{sections(found)}<h2>{title}</h2>{html.table(head, differing)}"
    text = f"{markdown(found)}\n## {title}\n\n{pipes(head, differing)}\n"
    return Summary({"summary.tsv": tsv(runs), "summary.md": text}, page, list(runs.values()))
