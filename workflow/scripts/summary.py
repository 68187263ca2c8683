"""Methods x tasks of every model, with differences to sft_wrat and rlhf and how sure they are.

    python workflow/scripts/summary.py --results results --models tiny --methods sft sft_wrat rlhf rllr rllr_mix \\
        --out results

Several results folders give means and spread over runs, and what differs in their configurations:

    python workflow/scripts/summary.py --results runs/seed1/results runs/seed2/results runs/seed3/results \\
        --models tiny --methods sft_wrat rlhf rllr --out runs

Reads <results>/<model>/<method>/{metrics.json,predictions.jsonl,model.json}; writes <out>/summary.{tsv,md,html} and
<out>/differences.svg, every method's difference to sft_wrat.
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate import plots
from rllr.evaluate.html import page
from rllr.evaluate.page import differences_part, verdicts_part
from rllr.evaluate.tables import BASELINES, against, summary_of_run, summary_of_runs
from rllr.files import atomic_file


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="results folders, one a run")
    parser.add_argument("--models", nargs="+", required=True, help="models, in the order of the table")
    parser.add_argument("--methods", nargs="+", required=True, help="methods, in the order of the table")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    args = parser.parse_args()
    if len(args.results) > 1:
        found = summary_of_runs(args.results, args.models, args.methods)
    else:
        found = summary_of_run(args.results[0], args.models, args.methods)
    for name, content in found.files.items():
        with atomic_file(args.out / name) as file:
            file.write(content)
    svg = args.out / "differences.svg"
    plots.differences(against(found.runs, BASELINES[0]), BASELINES[0], svg)
    said = verdicts_part(found.runs[0]) if len(found.runs) == 1 else ""
    with atomic_file(args.out / "summary.html") as file:
        file.write(page("Results", f"<h1>Results</h1>{said}{differences_part(svg, len(found.runs))}{found.tables}"))


if __name__ == "__main__":
    cli.run(main)
