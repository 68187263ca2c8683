"""One self-contained page about a run: which method is better, by how much, how sure that is, and why.

    python workflow/scripts/report.py --results results --models tiny --methods sft sft_wrat rlhf rllr rllr_mix \\
        --reward-models rm_rlhf rm_rllr --stages sft sft_wrat rm_rlhf rm_rllr rlhf rllr rllr_mix \\
        --data results/data/demo --bases results/tiny/base --out results/report.html

Reads what the stages left in <results>/<model>/<stage>/; needs no network, and the page needs no script.
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate.html import page, text
from rllr.evaluate.page import Run, differences_part, methods_part, reading, rewards_part, training_part, verdicts_part
from rllr.evaluate.tables import read_predictions, sections, tables
from rllr.evaluate.tables import table as summary_rows
from rllr.files import atomic_file, read_json, read_jsonl
from rllr.tasks import load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of the models' results")
    parser.add_argument("--models", nargs="+", required=True, help="models, in the order of the page")
    parser.add_argument("--methods", nargs="+", required=True, help="methods, in the order of the page")
    parser.add_argument("--reward-models", nargs="*", required=True, help="reward models that the methods read")
    parser.add_argument("--stages", nargs="+", required=True, help="trained stages, in the order of the page")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folder of each model's prepared data")
    parser.add_argument("--bases", nargs="+", type=Path, required=True, help="folder of each base model")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    args = parser.parse_args()
    if not len(args.models) == len(args.data) == len(args.bases):
        parser.error("--models, --data and --bases: expected as many of each")

    tasks_of = {m: load_tasks(data / "tasks.json") for m, data in zip(args.models, args.data, strict=True)}
    measured = summary_rows(args.results, args.models, args.methods)
    links = "".join(f'<li><a href="#{text(m)}">{text(m)}</a></li>' for m in args.models)
    parts = [
        f"<header><h1>{text(', '.join(args.models))}: results</h1></header>",
        f'<nav><ul><li><a href="#summary">Summary</a></li>{links}</ul></nav>',
        f"<h2 id=summary>Summary</h2>{verdicts_part(measured)}{differences_part(args.results / 'differences.svg')}",
        f"{reading(args.methods)}{sections(tables(measured))}",
    ]
    for model, data, base in zip(args.models, args.data, args.bases, strict=True):
        folder, origin = args.results / model, read_json(base / "origin.json")
        rows = {row["id"]: row for _, row in read_jsonl(data / "test.jsonl")}
        predictions = {method: read_predictions(folder / method) for method in args.methods}
        run = Run(folder, tasks_of[model], rows, predictions)
        parts.append(
            f'<h2 id="{text(model)}">{text(model)}</h2><p class=note>Base model: {text(origin["id"])}, '
            f"{origin['parameters'] / 1e6:,.1f} million parameters, licence {text(origin['licence'])}. "
            f"Data: {text(data.name)}, {len(rows)} test rows.</p>"
        )
        parts += [methods_part(run), rewards_part(run, args.reward_models) if args.reward_models else ""]
        parts.append(training_part(run, args.stages))
    with atomic_file(args.out) as file:
        file.write(page(f"Results of {', '.join(args.models)}", "\n".join(parts)))


if __name__ == "__main__":
    cli.run(main)
