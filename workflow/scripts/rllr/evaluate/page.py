"""The parts of the results page: methods with their metrics and examples, reward models, training."""

from dataclasses import dataclass
from pathlib import Path

from rllr.evaluate.html import figure, table, text
from rllr.evaluate.tables import verdicts
from rllr.files import read_json
from rllr.methods import METHODS, trained_by
from rllr.tasks import Task, agrees

EXAMPLES = 3  # shown of each kind and task


@dataclass
class Run:
    """The results of one model.

    Attributes:
        folder: results/<model>.
        rows: the test rows by id.
        predictions: lines of predictions.jsonl by method.
    """

    folder: Path
    tasks: dict[str, Task]
    rows: dict[str, dict]
    predictions: dict[str, list[dict]]


def reading(methods: list[str]) -> str:
    """What each method is."""
    said = "".join(f"<li><b>{text(name)}</b>: {text(METHODS[name].recipe)}</li>" for name in methods)
    return f"<ul>{said}</ul><p class=note>An answer that no label can be read from counts as wrong.</p>"


def differences_part(svg: Path, runs: int = 1) -> str:
    """The figure that a page begins with: `plots.differences`."""
    told = (
        "How much better than sft_wrat each method answers the same test rows: the mean over tasks in black, each "
        "task in a colour, with 95% intervals; one that crosses the line at 0 may be chance."
    )
    return figure(svg, told + (" Thick lines: over the test rows; thin ones: over the runs." if runs > 1 else ""))


def verdicts_part(rows: list[dict]) -> str:
    """How much better each method is, in words; `rows`: from `tables.table`. Empty where nothing was compared."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    said = ""
    for model in models:
        name = f"{model}: " if len(models) > 1 else ""
        said += "".join(f"<li>{text(name + told)}</li>" for told in verdicts([r for r in rows if r["model"] == model]))
    return said and (
        f"<ul>{said}</ul><p class=note>Points of accuracy, or of a hundred times Pearson's r, over the test rows of "
        "one run; another seed gives other numbers.</p>"
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"


def between(interval: list[float] | None) -> str:
    return "" if interval is None else f"[{percent(interval[0])}, {percent(interval[1])}]"


def metrics_table(metrics: dict) -> str:
    """Every metric of a method, a line a task."""
    extra = {
        "f1_macro": ("macro F1", percent), "f1": ("F1", percent), "spearman": ("Spearman", percent),
        "mean_absolute_error": ("mean absolute error", number),
        "expectation_pearson": ("Pearson of the expected score", percent), "ece": ("calibration error", percent),
        "brier": ("Brier score", number), "coverage_area": ("accuracy over coverages", percent),
    }  # fmt: skip
    shown = [key for key in extra if any(key in values for values in metrics["tasks"].values())]
    head = ["task", "metric", "value", *(extra[key][0] for key in shown), "rows", "unparsed"]
    lines = []
    for task, values in metrics["tasks"].items():
        line = [task, values["metric"], (percent(values["value"]), between(values["ci95"]))]
        line += [extra[key][1](values.get(key)) for key in shown]
        lines.append([*line, str(values["n"]), str(values["unparsed"])])
    return table(head, lines)


def example(run: Run, row: dict, answers: dict[str, tuple[str, bool]]) -> str:
    """A test row with the answers of some methods: name -> (answer, whether it is right)."""
    prompt = run.rows[row["id"]]
    said = "".join(
        f'<p class=answer><span class="tag {"won" if right else "lost"}">{text(name)}: '
        f"{'right' if right else 'wrong'}</span>{text(answer.strip()) or '(empty)'}</p>"
        for name, (answer, right) in answers.items()
    )
    asked = text(prompt["input"] or prompt["instruction"])
    head = f"<p><span class=tag>{text(row['task'])}, gold: {text(row['label'])}</span>{asked}</p>"
    return f"<div class=example>{head}{said}</div>"


def examples(run: Run, method: str) -> str:
    """Rows that a method answers right and sft_wrat wrong, the other way round, and answers without a label."""
    theirs = {row["id"]: row for row in run.predictions.get("sft_wrat", [])}
    won: list[tuple] = []
    lost: list[tuple] = []
    unread: list[tuple] = []
    for row in run.predictions[method]:
        task = run.tasks[row["task"]]
        right = agrees(row["prediction"], row["label"], task)
        if row["prediction"] is None:
            unread.append((row, {method: (row["answer"], False)}))
        other = theirs.get(row["id"])
        if other and method != "sft_wrat":
            before = agrees(other["prediction"], other["label"], task)
            if right != before:
                both = {"sft_wrat": (other["answer"], before), method: (row["answer"], right)}
                (won if right else lost).append((row, both))
    parts = [
        ("Won: right here, wrong with sft_wrat", won),
        ("Lost: wrong here, right with sft_wrat", lost),
        ("Unparsed: no label can be read", unread),
    ]
    return "".join(_examples(run, title, found) for title, found in parts if found)


def _examples(run: Run, title: str, found: list[tuple[dict, dict]]) -> str:
    shown = []
    for task in run.tasks:
        shown += [pair for pair in found if pair[0]["task"] == task][:EXAMPLES]
    count = f"{len(found)}" if len(shown) == len(found) else f"{len(found)}; the first of each task are shown"
    body = "".join(example(run, row, answers) for row, answers in shown)
    return f"<details><summary>{text(title)} ({count})</summary>{body}</details>"


def methods_part(run: Run) -> str:
    parts = ["<h3>Methods</h3>"]
    for method in run.predictions:
        parts += [f"<h4>{text(method)}</h4>", metrics_table(read_json(run.folder / method / "metrics.json"))]
        caption = (
            f"{method}: gold labels down, labels read from the answers across. All but the diagonal is wrong; a column "
            "that is dark from top to bottom is a label given whatever the text."
        )
        parts += [figure(run.folder / method / "confusion.svg", caption), examples(run, method)]
        caption = (
            f"{method}: accuracy of the answers that are surest of their label, by its probability (calibrated on the "
            "validation slice) or by its share of the votes. Where the line falls from left to right, it is the unsure "
            "answers that are better left to somebody else."
        )
        parts.append(figure(run.folder / method / "coverage.svg", caption))
        if fitted := read_json(run.folder / method / "model.json")["temperatures"]:
            told = ", ".join(f"{task} {value:.2f}" for task, value in fitted.items())
            parts.append(f"<p class=note>Temperatures fitted to the validation slice: {text(told)}.</p>")
    return "".join(parts)


def rewards_part(run: Run, reward_models: list[str]) -> str:
    """Reward models on pairs, and on the policy's own samples."""
    pair_lines, sample_lines, figures = [], [], []
    for name in reward_models:
        metrics = read_json(run.folder / name / "metrics.json")
        label = {key: metrics[key] for key in ("pair_accuracy", "mean_margin", "n", "tasks")}
        sets = {"label-sensitive": label, "rationale-sensitive": metrics.get("rationale_sensitive")}
        for kind, found in sets.items():
            for task, values in {"all tasks": found, **found["tasks"]}.items() if found else ():
                accuracy, margin = percent(values["pair_accuracy"]), number(values["mean_margin"])
                pair_lines.append([name, kind, task, accuracy, margin, str(values["n"])])
        for policy, values in read_json(run.folder / name / "quality.json")["policies"].items():
            aucs = [(percent(values[key]), between(values[f"{key}_ci95"])) for key in ("auc", "auc_same_prompt")]
            tasks = ", ".join(f"{task} {percent(own['auc'])}" for task, own in values["tasks"].items())
            numbers = [number(values[key]) for key in ("spearman", "mean_reward", "spread_same_prompt")]
            counts = [str(values["n"]), str(values["mixed_prompts"])]
            sample_lines.append([name, policy, percent(values["accuracy"]), *aucs, tasks, *numbers, *counts])
        figures += [
            figure(
                run.folder / name / "pairs.svg",
                f"{name}: rewards of both sides of the held-out test pairs; the less the two hills overlap, the better "
                "it tells them apart.",
            ),
            figure(
                run.folder / name / "reliability.svg",
                f"{name}: the policies' samples in fifths by their reward; the share with the right label climbs "
                "where the reward is of use.",
            ),
        ]
    return "".join(
        [
            "<h3>Reward models</h3><p>On held-out pairs. Label-sensitive pairs differ in the label, "
            "rationale-sensitive pairs in the rationale alone; 50% is chance.</p>",
            table(["reward model", "pairs", "task", "pair accuracy, %", "mean margin", "pairs"], pair_lines),
            "<p>On the policy's own samples for the validation prompts, before RL (sft_wrat) and after: what RL has to "
            "work with. AUC is how often a right answer's reward exceeds a wrong one's, over all samples and between "
            "samples of one prompt, with 95% intervals from a bootstrap over prompts; 50% is chance. Mixed prompts "
            "have right and wrong samples. The spread is the standard deviation among samples of one prompt: of two "
            "rewards that are added, as for rllr_mix, the wider one decides.</p>",
            table(
                [
                    "reward model",
                    "samples of",
                    "right, %",
                    "AUC, %",
                    "AUC, same prompt, %",
                    "AUC by task, %",
                    "Spearman",
                    "mean reward",
                    "spread, same prompt",
                    "samples",
                    "mixed prompts",
                ],
                sample_lines,
            ),
            *figures,
        ]
    )


def training_part(run: Run, stages: list[str]) -> str:
    parts = ["<h3>Training</h3><p>Each step faint, its moving average bold.</p>"]
    for stage in stages:
        config = (run.folder / stage / "config.yaml").read_text(encoding="utf-8")
        healthy = (
            "reward and label accuracy should climb together; where the reward climbs alone, it is being hacked."
            if stage in trained_by("ppo")
            else "the loss should fall and then flatten."
        )
        caption = f"Training of {stage}: {healthy}"
        parts += [f"<h4>{text(stage)}</h4>", figure(run.folder / stage / "curves.svg", caption)]
        parts.append(f"<details><summary>Configuration</summary><pre>{text(config)}</pre></details>")
    return "".join(parts)
