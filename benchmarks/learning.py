"""Validation accuracy over seconds and samples of training, by way of learning, from one start and its reward models.

    python benchmarks/learning.py --results runs/study/seed{1,2,3}/results --out runs/learning

Each folder of results is one seed of a run that has `rllr_mix` (`make study`): its merged sft_wrat model, its reward
models, its prompts. Every way of WAYS is trained from there, one after the other; a way that is finished is not trained
again. Where every run has `dpo`, its end stands beside them. Seconds are those of training: no validation, no loading.
Writes learning.md and learning.svg.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "workflow" / "scripts"
sys.path.insert(0, str(PROGRAMS))

from rllr.config import load_yaml  # noqa: E402
from rllr.files import read_jsonl  # noqa: E402
from rllr.tasks import agrees, load_tasks  # noqa: E402

GAIN = 0.05  # of validation accuracy over the start: what is waited for
EVERY = 5  # iterations between validations
PEER = "TRL's RLOO"

# What differs from the run's own rllr_mix. `None`: the published setting of config/stages.yaml.
WAYS: dict[str, dict] = {
    "PPO as published": dict.fromkeys(["learning_rate", "warmup_iterations", "baseline", "kl_beta", "updates"]),
    "PPO tuned": {"baseline": "value", "learning_rate": 5.0e-4, "updates": 1},
    "groups of 4": {"baseline": "leave_one_out", "samples_per_prompt": 4},
    "all labels": {},
}


def run(program: Path, **options: object) -> None:
    command = [sys.executable, str(program)]
    subprocess.run(
        command + [part for name, value in options.items() for part in (f"--{name}", str(value))], check=True
    )


def trained(way: str, results: Path, model: str, out: Path) -> Iterator[tuple[float, int, float]]:
    """Yield (seconds, samples, validation accuracy) of one way, trained where it is not."""
    stages = results / model
    config, published = load_yaml(stages / "rllr_mix/config.yaml"), load_yaml(ROOT / "config/stages.yaml")["ppo"]
    changes = {key: published[key] if value is None else value for key, value in WAYS.get(way, {}).items()}
    config = {key: value for key, value in config.items() if key != "rests_on"}
    config |= {**changes, "validate_iterations": EVERY}
    paths = {"base": stages / "sft_wrat/merged", "data": data_of(results), "rewards": stages, "out": out}
    log = out / "train_log.jsonl"
    if not log.is_file() or (out / "checkpoints").is_dir():  # never begun, or interrupted
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        program = ROOT / "benchmarks/learning_peer.py" if way == PEER else PROGRAMS / "ppo.py"
        run(program, config=out / "config.yaml", **paths)
    seconds, samples = 0.0, 0
    for _, row in read_jsonl(log):
        seconds += sum(value for key, value in row.items() if key.startswith("seconds_"))
        samples += row.get("samples", 0)
        if "validation_accuracy" in row:
            yield seconds, samples, row["validation_accuracy"]


def direct(results: Path, model: str, out: Path) -> tuple[float, int, float]:
    """(seconds, pairs, validation accuracy) of the run's finished dpo."""
    stages, data = results / model, data_of(results)
    tasks = load_tasks(data / "tasks.json")
    found = out / "predictions.jsonl"
    if not found.is_file():
        run(
            PROGRAMS / "predict.py", config=stages / "predict/config.yaml", base=stages / "sft_wrat/merged",
            adapter=stages / "dpo/adapter", data=data / "validation.jsonl", tasks=data / "tasks.json",
            responses=data / "sft_with_rat_train.jsonl", out=found,
        )  # fmt: skip
    rows, log = ([row for _, row in read_jsonl(path)] for path in (found, stages / "dpo/train_log.jsonl"))
    pairs = sum("loss" in row for row in log) * load_yaml(stages / "dpo/config.yaml")["batch_size"]
    return (
        log[-1]["train_runtime"],
        pairs,
        mean(agrees(row["prediction"], row["label"], tasks[row["task"]]) for row in rows),
    )


def data_of(results: Path) -> Path:
    (folder,) = (path.parent for path in results.glob("data/*/validation.jsonl"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="results of a run, one for each seed")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--ways", nargs="+", default=[*WAYS, PEER], choices=[*WAYS, PEER])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    curves = {way: [] for way in args.ways}
    ends, with_dpo = [], all((results / args.model / "dpo/adapter").is_dir() for results in args.results)
    for number, results in enumerate(args.results, 1):
        for way in args.ways:
            folder = args.out / str(number) / way.lower().replace(" ", "_").replace("'", "")
            curves[way].append([*trained(way, results.resolve(), args.model, folder)])
        if with_dpo:
            ends.append(direct(results.resolve(), args.model, args.out / str(number) / "dpo"))
    starts = [own[0][2] for own in curves[args.ways[0]]]
    (args.out / "learning.md").write_text(table(curves, ends, starts))
    draw(curves, ends, args.out / "learning.svg")
    print((args.out / "learning.md").read_text())


def table(curves: dict[str, list], ends: list[tuple], starts: list[float]) -> str:
    """One line a way, a value a seed; a dash where it never gained GAIN."""
    lines = [
        "| way | seconds until +5 points | samples until then | best | end | seconds in all |",
        "|---|---|---|---|---|---|",
    ]

    def told(values: list, form: str = "{:.0f}") -> str:
        return ", ".join("–" if value is None else form.format(value) for value in values)

    if ends:
        curves = {**curves, "DPO": [[(0.0, 0, start), end] for start, end in zip(starts, ends, strict=True)]}
    for way, runs in curves.items():
        first = [next((p for p in points if p[2] - points[0][2] > GAIN - 1e-9), (None, None)) for points in runs]
        lines.append(
            f"| {way} | {told([p[0] for p in first])} | {told([p[1] for p in first])} "
            f"| {told([100 * max(p[2] for p in points) for points in runs], '{:.1f}')} "
            f"| {told([100 * points[-1][2] for points in runs], '{:.1f}')} "
            f"| {told([points[-1][0] for points in runs])} |"
        )
    start = told([100 * value for value in starts], "{:.1f}")
    return f"Validation accuracy before: {start} (a value a seed).\n\n" + "\n".join(lines) + "\n"


def draw(curves: dict[str, list], ends: list[tuple], path: Path) -> None:
    """Accuracy over seconds, and over samples: a line a seed, a colour a way; DPO's ends, if any, as stars."""
    from rllr.evaluate import plots

    figure, axes = plots.panels(2, 2, 5, 3.6)
    for axis, place, name in zip(
        axes, (0, 1), ("seconds of training", "samples (of DPO: pairs)" if ends else "samples")
    ):
        for colour, (way, runs) in zip(plots.COLOURS, curves.items()):
            for number, points in enumerate(runs):
                label = way if number == 0 else None
                axis.plot([p[place] for p in points], [100 * p[2] for p in points], color=colour, label=label)
        if ends:
            axis.plot([p[place] for p in ends], [100 * p[2] for p in ends], "*k", label="DPO, at its end")
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("validation accuracy (%)")
    axes[1].legend(fontsize=7)
    plots.save(figure, path)


if __name__ == "__main__":
    main()
