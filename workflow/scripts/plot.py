"""A figure (svg) of one result file: curves, confusion, accuracy by coverage, scores of pairs, reward and accuracy.

    python workflow/scripts/plot.py curves --data results/tiny/rllr_mix/train_log.jsonl --title "rllr_mix, tiny" \\
        --out results/tiny/rllr_mix/curves.svg
    python workflow/scripts/plot.py confusion --data results/tiny/rllr_mix/predictions.jsonl \\
        --tasks results/data/demo/tasks.json --title "rllr_mix, tiny" --out results/tiny/rllr_mix/confusion.svg
    python workflow/scripts/plot.py coverage --data results/tiny/rllr_mix/predictions.jsonl \\
        --tasks results/data/demo/tasks.json --title "rllr_mix, tiny" --out results/tiny/rllr_mix/coverage.svg
    python workflow/scripts/plot.py pairs --data results/tiny/rm_rllr/pair_scores.jsonl --title "rm_rllr, tiny" \\
        --out results/tiny/rm_rllr/pairs.svg
    python workflow/scripts/plot.py reliability --data results/tiny/rm_rllr/quality.json --title "rm_rllr, tiny" \\
        --out results/tiny/rm_rllr/reliability.svg
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate import plots
from rllr.files import read_json, read_jsonl
from rllr.tasks import load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "kind", choices=["curves", "confusion", "coverage", "pairs", "reliability"], help="what to draw"
    )
    parser.add_argument("--data", type=Path, required=True, help="the result file, as in the examples above")
    parser.add_argument("--tasks", type=Path, help="confusion, coverage: tasks.json of the data")
    parser.add_argument("--title", required=True, help="title of the figure")
    parser.add_argument("--out", type=Path, required=True, help="svg file")
    args = parser.parse_args()
    if args.kind == "reliability":
        plots.reliability(read_json(args.data)["policies"], args.title, args.out)
        return
    rows = [row for _, row in read_jsonl(args.data)]
    if args.kind in ("confusion", "coverage"):
        if not args.tasks:
            raise cli.UserError(f"{args.kind} needs --tasks, the tasks.json of the data")
        draw = {"confusion": plots.confusion, "coverage": plots.coverage}[args.kind]
        draw(rows, load_tasks(args.tasks), args.title, args.out)
    else:
        {"curves": plots.curves, "pairs": plots.pairs}[args.kind](rows, args.title, args.out)


if __name__ == "__main__":
    cli.run(main)
