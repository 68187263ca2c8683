"""Print the table of a model's methods, where everything lies, and what to try next.

python workflow/scripts/show.py results/tiny
"""

from pathlib import Path

from rllr import cli
from rllr.evaluate.tables import finished, plain, tables
from rllr.files import read_json
from rllr.methods import METHODS, REWARD_MODELS

PLACES = {
    "adapter": "LoRA adapter of the method",
    "predictions.jsonl": "answers to the test prompts: rationale, label read from it, gold label",
    "metrics.json": "metrics of these answers",
    "train_log.jsonl": "training log, a line a step",
    "curves.svg": "training curves",
    "model.json": "what predict.py --model needs to know",
    "samples.jsonl": "sampled rollouts of PPO with their scores",
    "logs": "logs and benchmarks of the jobs",
}


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="results/<model>")
    parser.add_argument("methods", nargs="*", help="methods to show; all that are there unless given")
    args = parser.parse_args()
    folder: Path = args.folder
    there = [method for method in METHODS if (folder / method / "metrics.json").is_file()]
    methods = [method for method in there if not args.methods or method in args.methods]
    if not methods:
        raise cli.UserError(f"{folder}: no metrics.json of {', '.join(args.methods) or 'any method'} yet")
    print(plain(tables(finished(folder.parent, [folder.name], methods))))
    for name in REWARD_MODELS:
        if (folder / name / "metrics.json").is_file():
            metrics = read_json(folder / name / "metrics.json")
            sets = {"label-sensitive": metrics, "rationale-sensitive": metrics.get("rationale_sensitive")}
            told = [f"{100 * v['pair_accuracy']:.1f}% of {v['n']} {pairs}" for pairs, v in sets.items() if v]
            print(f"{name}: of the held-out pairs it ranks right {', '.join(told)}")
    print(f"\nIn {folder}/<method>/:")
    for name, what in PLACES.items():
        if any(folder.glob(f"*/{name}")):
            print(f"  {name:<18} {what}")
    report = folder.parent / "report.html"
    print("\nNext:")
    if report.is_file():
        print(f"  {report}  the report: curves, confusions, examples, reward quality")
    else:
        listed = f"'models=[{folder.name}]' 'methods=[{','.join(methods)}]'"
        print(f"  .venv/bin/snakemake --cores all --config {listed} -- {report}  # curves, confusions, examples")
        print("  .venv/bin/snakemake --cores all  # the other methods that config/config.yaml lists, with a report")
    task, fields = next(iter(read_json(folder / methods[-1] / "model.json")["tasks"].items()))
    second = ' --text2 "and another"' if "{text2}" in fields["input"] else ""
    program = ".venv/bin/python workflow/scripts/predict.py"
    print(f'  {program} --model {folder / methods[-1]} --task {task} --text "A text of yours"{second}')


if __name__ == "__main__":
    cli.run(main)
