"""Print the metrics of a model's methods and where everything lies.

python workflow/scripts/show.py results/tiny
"""

from pathlib import Path

from rllr import cli
from rllr.files import read_json

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
    folder = parser.parse_args().folder
    found = sorted(folder.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise cli.UserError(f"{folder}: no metrics.json of any method yet")
    for path in found:
        metrics = read_json(path)
        if "reward_model" in metrics:
            print(f"{path.parent.name:>9}  pair accuracy {metrics['pair_accuracy']:.3f}, n {metrics['n']}")
            continue
        print(f"{metrics['method']:>9}  mean {metrics['score']:.3f}")
        for task, values in metrics["tasks"].items():
            low, high = values["ci95"]
            print(
                f"{'':>11}{task}: {values['metric']} {values['value']:.3f} [{low:.3f}, {high:.3f}], "
                f"n {values['n']}, unparsed {values['unparsed']}"
            )
    print(f"\nIn {folder}/<method>/:")
    for name, what in PLACES.items():
        if any(folder.glob(f"*/{name}")):
            print(f"  {name:<18} {what}")


if __name__ == "__main__":
    cli.run(main)
