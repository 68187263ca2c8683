"""Metrics of one method's predictions.

    python workflow/scripts/metrics.py --predictions results/tiny/rllr_mix/predictions.jsonl \\
        --tasks results/data/demo/tasks.json --model tiny --method rllr_mix --data demo \\
        --out results/tiny/rllr_mix/metrics.json
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate.label_metrics import method_metrics
from rllr.files import read_jsonl, write_json
from rllr.tasks import load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.jsonl of the method")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    for name in ("model", "method", "data"):
        parser.add_argument(f"--{name}", required=True, help=f"name of the {name}, copied into the result")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json")
    args = parser.parse_args()
    rows, tasks = [], load_tasks(args.tasks)
    for number, row in read_jsonl(args.predictions):
        if missing := [field for field in ("id", "task", "label", "prediction") if field not in row]:
            raise cli.UserError(f"{args.predictions} line {number}: field {missing[0]} is missing")
        if row["task"] not in tasks:
            raise cli.UserError(
                f"{args.predictions} line {number}: unknown task {row['task']!r}; {args.tasks} has {', '.join(tasks)}"
            )
        rows.append(row)
    if not rows:
        raise cli.UserError(f"{args.predictions}: the file is empty; expected a line for each test row")
    names = {"model": args.model, "method": args.method, "data": args.data}
    metrics = {**names, **method_metrics(rows, tasks)}
    write_json(args.out, metrics)
    for task, values in metrics["tasks"].items():
        low, high = values["ci95"]
        cli.log(
            f"{args.method} {task}: {values['metric']} {values['value']:.3f} [{low:.3f}, {high:.3f}], "
            f"n {values['n']}, unparsed {values['unparsed']}"
        )


if __name__ == "__main__":
    cli.run(main)
