"""Methods x tasks of every model, with differences to sft_wrat and rlhf and how sure they are.

    python workflow/scripts/summary.py --results results --models tiny --methods sft sft_wrat rlhf rllr rllr_mix \\
        --out results

Several results folders give means and spread over runs, and what differs in their configurations:

    python workflow/scripts/summary.py --results runs/seed1/results runs/seed2/results runs/seed3/results \\
        --models tiny --methods sft_wrat rlhf rllr --out runs

Reads <results>/<model>/<method>/{metrics.json,predictions.jsonl,model.json}; writes <out>/summary.{tsv,md,html}.
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate import html
from rllr.evaluate.tables import (
    config_differences,
    data_differences,
    finished,
    markdown,
    pipes,
    sections,
    spread,
    table,
    tables,
    tsv,
)
from rllr.files import atomic_file


def one(results: Path, models: list[str], methods: list[str]) -> dict[str, str]:
    """The three files about one results folder."""
    rows = table(results, models, methods)
    found = tables(rows)
    page = html.page("Results", f"<h1>Results</h1>{sections(found)}")
    return {"summary.tsv": tsv({"": rows}), "summary.md": markdown(found), "summary.html": page}


def several(folders: list[Path], models: list[str], methods: list[str]) -> dict[str, str]:
    """The three files about several runs; methods that a run does not have yet are left out of it."""
    for folder in folders:
        if not folder.is_dir():
            raise cli.UserError(f"{folder}: no such folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise cli.UserError(f"the same results folder twice: {', '.join(map(str, folders))}")
    runs = {str(folder): finished(folder, models, methods) for folder in folders}
    if not any(runs.values()):
        raise cli.UserError("none of the results folders has metrics.json of any of the methods yet")
    for folder, rows in runs.items():
        there = {(row["model"], row["method"]) for row in rows}
        if absent := [f"{m}/{method}" for m in models for method in methods if (m, method) not in there]:
            cli.log(f"{folder}: no metrics.json yet of {', '.join(absent)}")
    found = spread(list(runs.values()))
    differing = data_differences(runs, models) + config_differences(folders, models)
    head = ["model", "stages", "key", *map(str, folders)]
    title = "Differences in configuration"
    page = html.page("Results", f"<h1>Results</h1>{sections(found)}<h2>{title}</h2>{html.table(head, differing)}")
    text = f"{markdown(found)}\n## {title}\n\n{pipes(head, differing)}\n"
    return {"summary.tsv": tsv(runs), "summary.md": text, "summary.html": page}


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="results folders, one a run")
    parser.add_argument("--models", nargs="+", required=True, help="models, in the order of the table")
    parser.add_argument("--methods", nargs="+", required=True, help="methods, in the order of the table")
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.tsv, summary.md and summary.html")
    args = parser.parse_args()
    many = len(args.results) > 1
    files = (
        several(args.results, args.models, args.methods) if many else one(args.results[0], args.models, args.methods)
    )
    for name, content in files.items():
        with atomic_file(args.out / name) as file:
            file.write(content)


if __name__ == "__main__":
    cli.run(main)
