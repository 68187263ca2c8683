"""Methods x tasks of every model, with differences to sft_wrat and rlhf and how sure they are.

    python workflow/scripts/summary.py --results results --models tiny --methods sft sft_wrat rlhf rllr rllr_mix \\
        --tasks results/data/demo/tasks.json --out results

Reads <results>/<model>/<method>/{metrics.json,predictions.jsonl}; writes <out>/summary.tsv and <out>/summary.md.
"""

from pathlib import Path

from rllr import cli
from rllr.compare import difference
from rllr.files import atomic_file, read_json, read_jsonl
from rllr.tasks import load_tasks

BASELINES = ["sft_wrat", "rlhf"]


def table(results: Path, models: list[str], methods: list[str], tasks_of: dict[str, Path]) -> list[dict]:
    """One row per model and method: task values, their mean, and comparisons with the baselines that were run."""
    rows = []
    for model in models:
        tasks = load_tasks(tasks_of[model])
        metrics = {m: read_json(results / model / m / "metrics.json") for m in methods}
        predictions = {m: [row for _, row in read_jsonl(results / model / m / "predictions.jsonl")] for m in methods}
        for method in methods:
            row = {"model": model, "method": method, "n": metrics[method]["n"], "score": metrics[method]["score"]}
            row["tasks"] = metrics[method]["tasks"]
            row["versus"] = {
                baseline: difference(predictions[method], predictions[baseline], tasks)
                for baseline in BASELINES
                if baseline in methods and baseline != method
            }
            rows.append(row)
    return rows


def tsv(rows: list[dict]) -> str:
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    head = ["model", "method", "n", "unparsed", *tasks, "mean"]
    for baseline in BASELINES:
        head += [f"vs_{baseline}", f"vs_{baseline}_low", f"vs_{baseline}_high", f"vs_{baseline}_mcnemar_p"]
    lines = [head]
    for row in rows:
        values = [row["tasks"].get(task, {}).get("value") for task in tasks]
        line = [row["model"], row["method"], row["n"], sum(t["unparsed"] for t in row["tasks"].values())]
        line += [*values, row["score"]]
        for baseline in BASELINES:
            d = row["versus"].get(baseline)
            line += [d["difference"], *d["ci95"], d["mcnemar_p"]] if d else [None] * 4
        lines.append(["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in line])
    return "\n".join("\t".join(line) for line in lines) + "\n"


def markdown(rows: list[dict]) -> str:
    """One table a model, values in percent; a difference whose 95% interval contains 0 is called noise."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        tasks = list(own[0]["tasks"])
        baselines = [b for b in BASELINES if any(b in row["versus"] for row in own)]
        head = ["method", *tasks, "mean", *(f"vs {b} (95% interval; McNemar p)" for b in baselines), "unparsed"]
        lines = [head, ["---", *["---:"] * (len(tasks) + 1), *["---"] * len(baselines), "---:"]]
        for row in own:
            cells = [row["method"], *(_share(row["tasks"][t]) for t in tasks), f"{100 * row['score']:.1f}"]
            cells += [_versus(row["versus"].get(b)) for b in baselines]
            lines.append([*cells, str(sum(t["unparsed"] for t in row["tasks"].values()))])
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        detectable = [row["versus"][b]["detectable"] for row in own for b in row["versus"]]
        note = f"{own[0]['n']} test rows; values in percent with 95% intervals."
        if detectable and None not in detectable:
            note += (
                f" With this many rows only differences of about {100 * min(detectable):.1f} to "
                f"{100 * max(detectable):.1f} points or more can be told from noise (80% power)."
            )
        parts.append(f"## {model}\n\n{text}\n\n{note}\n")
    return "# Results\n\n" + "\n".join(parts)


def _share(metric: dict) -> str:
    low, high = metric["ci95"]
    return f"{100 * metric['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _versus(d: dict | None) -> str:
    if d is None:
        return "-"
    low, high = (100 * x for x in d["ci95"])
    p = "" if d["mcnemar_p"] is None else f"; p {d['mcnemar_p']:.2g}"
    return f"{100 * d['difference']:+.1f} [{low:+.1f}, {high:+.1f}{p}]{' noise' if d['noise'] else ''}"


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of the models' results")
    parser.add_argument("--models", nargs="+", required=True, help="models, in the order of the table")
    parser.add_argument("--methods", nargs="+", required=True, help="methods, in the order of the table")
    parser.add_argument("--tasks", nargs="+", type=Path, required=True, help="tasks.json of each model's data")
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.tsv and summary.md")
    args = parser.parse_args()
    rows = table(args.results, args.models, args.methods, dict(zip(args.models, args.tasks, strict=True)))
    for name, text in (("summary.tsv", tsv(rows)), ("summary.md", markdown(rows))):
        with atomic_file(args.out / name) as file:
            file.write(text)


if __name__ == "__main__":
    cli.run(main)
