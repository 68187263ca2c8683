"""Figures (svg) of training logs, predictions and reward models. matplotlib is imported where it is used."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllr.files import atomic_file
from rllr.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels of the training curves: title -> keys drawn together. Only those that the log has are shown.
PANELS = {
    "loss": ["loss", "policy_loss", "value_loss"],
    "reward": ["reward", "label_reward", "rationale_reward"],
    "accuracy": ["label_accuracy", "validation_accuracy", "pair_accuracy", "mean_token_accuracy"],
    "share": ["unparsed_rate", "eos_rate", "capped_share", "clip_fraction"],
    "KL (nats per response)": ["kl"],
    "entropy (nats per token)": ["entropy"],
    "KL weight": ["beta"],
    "explained variance": ["explained_variance"],
    "response length (tokens)": ["length"],
    "gradient norm": ["grad_norm", "gradient_norm"],
    "learning rate": ["learning_rate"],
}
COLOURS = ["#1f6fb4", "#c4541a", "#2c8a4b", "#7a4fa3", "#a8841c", "#b83280", "#178f92", "#6b7280"]
WHOLE = 12  # whole numbers of a score's range that a confusion matrix shows one by one


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction, so that the first points are not drawn towards 0."""
    average, norm, result = 0.0, 0.0, []
    for value in values:
        average, norm = weight * average + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(average / norm)
    return result


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as svg that is the same for the same data."""
    import matplotlib
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "rllr", "svg.fonttype": "path"}), atomic_file(path, "wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def panels(count: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Any]]":
    """A figure of `count` panels, `columns` a line at most, each `width` x `height` inches: (figure, list of axes)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    columns = min(columns, count)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def curves(rows: list[dict], title: str, path: Path) -> None:
    """Small multiples of a training log: each step faint, its moving average bold.

    Args:
        rows: lines of train_log.jsonl; `step` or `iteration` is the x axis.
    """
    x_key = "iteration" if any("iteration" in row for row in rows) else "step"
    shown = {name: [k for k in keys if any(row.get(k) is not None for row in rows)] for name, keys in PANELS.items()}
    shown = {name: keys for name, keys in shown.items() if keys}
    figure, axes = panels(len(shown), 3, 4, 2.6)
    for axis, (name, keys) in zip(axes, shown.items(), strict=True):
        for colour, key in zip(COLOURS, keys):
            points = [(row[x_key], row[key]) for row in rows if row.get(key) is not None]
            x, y = zip(*points)
            if key == "validation_accuracy":  # few points: shown as they are
                axis.plot(x, y, "o-", color=colour, label="validation accuracy", markersize=4)
                continue
            if key in ("learning_rate", "beta"):  # no noise in them
                axis.plot(x, y, color=colour, linewidth=1.8)
                continue
            axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(x, smooth(list(y)), color=colour, linewidth=1.8, label=key.replace("_", " "))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(x_key, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if len(keys) > 1:
            axis.legend(fontsize=7)
    figure.suptitle(title)
    save(figure, path)


def differences(found: dict[str, dict[str, dict[str, dict]]], baseline: str, path: Path) -> None:
    """Every method's difference to a baseline, mean and tasks, one panel a model, narrow enough for a phone.

    Thick: the 95% interval over test rows; thin: the one over runs, where there are several. Of two runs it is so wide
    that nothing else could be read: the axis ends before it.

    Args:
        found: from `tables.against`.
    """
    heights = [sum(len(parts) + 1 for parts in methods.values()) for methods in found.values()]
    figure, axes = panels(max(1, len(found)), 1, 5, 1.1 + 0.14 * max(heights, default=2))
    if not found:
        axes[0].text(0.5, 0.5, f"no method beside {baseline}", ha="center", va="center")
        axes[0].axis("off")
    for axis, (model, methods) in zip(axes, found.items()):
        tasks = list(dict.fromkeys(task for parts in methods.values() for task in parts))
        colours = {task: "black" if task == "mean" else COLOURS[i % len(COLOURS)] for i, task in enumerate(tasks)}
        place, named, shown = 0, [], [0.0]
        for method, parts in methods.items():
            named.append((place - (len(parts) - 1) / 2, method))
            for task, values in parts.items():
                for kind, width in (("runs", 0.8), ("rows", 2.6)):
                    if kind in values["intervals"]:
                        low, high = (100 * x for x in values["intervals"][kind])
                        axis.plot([low, high], [place, place], color=colours[task], linewidth=width)
                        shown += [low, high] if kind == "rows" or values["runs"] > 2 else []
                marker, size = ("D", 5) if task == "mean" else ("o", 4)
                axis.plot(100 * values["difference"], place, marker, color=colours[task], markersize=size)
                shown.append(100 * values["difference"])
                place -= 1
            place -= 1
        axis.set_ylim(place + 0.3, 0.7)
        margin = 0.04 * (max(shown) - min(shown)) + 0.1
        axis.set_xlim(min(shown) - margin, max(shown) + margin)
        axis.axvline(0, color="gray", linewidth=1)
        axis.set_yticks([at for at, _ in named], [method for _, method in named], fontsize=9)
        for task, colour in colours.items():
            axis.plot([], [], "o-", color=colour, label=task, markersize=4)
        axis.set_xlabel(f"points more than {baseline}", fontsize=9)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.55 / axis.figure.get_figheight()), ncols=3)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(alpha=0.25, axis="x")
        axis.set_title(model, fontsize=10)
    save(figure, path)


def confusion(rows: list[dict], tasks: dict[str, Task], title: str, path: Path) -> None:
    """One matrix a task: gold labels down, labels read from the answers across; of scores the nearest whole numbers, or
    tenths of a wide range.

    Args:
        rows: lines of predictions.jsonl.
    """
    import numpy as np

    shown = [task for task in tasks.values() if any(row["task"] == task.name for row in rows)]
    figure, axes = panels(len(shown), 2, 5, 4)
    for axis, task in zip(axes, shown, strict=True):
        own = [row for row in rows if row["task"] == task.name]
        labels = list(task.labels)
        if task.kind == "score":
            whole = range(round(task.low), round(task.high) + 1)
            labels = [f"{v:g}" for v in (whole if len(whole) <= WHOLE else np.linspace(task.low, task.high, 11))]
        columns = [*labels, "unparsed"]

        def place(label: str | None, task: Task = task, labels: list[str] = labels) -> int:
            if label is None:
                return len(labels)
            if task.kind != "score":
                return labels.index(label)
            return labels.index(min(labels, key=lambda known: abs(float(known) - float(label))))

        counts = np.zeros((len(labels), len(columns)), int)
        for row in own:
            counts[place(row["label"]), place(row["prediction"])] += 1
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), count in np.ndenumerate(counts):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, count, ha="center", va="center", fontsize=9, color=colour)
        axis.set_xticks(range(len(columns)), columns, fontsize=8, rotation=30, ha="right")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_xlabel("answer", fontsize=9)
        axis.set_ylabel("gold", fontsize=9)
        axis.set_title(f"{task.name}, {len(own)} rows", fontsize=10)
    figure.suptitle(title)
    save(figure, path)


def coverage(rows: list[dict], tasks: dict[str, Task], title: str, path: Path) -> None:
    """Accuracy of the surest answers against the share of the rows that they are, a line a task with labels.

    Args:
        rows: lines of predictions.jsonl.
    """
    from rllr.evaluate.label_metrics import confidences, coverage_curve, shares

    figure, (axis,) = panels(1, 1, 6, 3.6)
    for colour, task in zip(itertools.cycle(COLOURS), tasks.values()):
        own = [row for row in rows if row["task"] == task.name]
        if any(shares(row) for row in own):
            covered, accuracy = coverage_curve(*confidences(own))
            axis.plot(covered, accuracy, color=colour, label=f"{task.name}: area {accuracy.mean():.3f}")
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the rows, the surest first", fontsize=9)
    axis.set_ylabel("accuracy", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    if axis.lines:
        axis.legend(fontsize=8)
    figure.suptitle(title)
    save(figure, path)


def pairs(rows: list[dict], title: str, path: Path) -> None:
    """Histograms of a reward model's scores of both sides of the held-out test pairs, one panel a kind of pair.

    Args:
        rows: lines of pair_scores.jsonl.
    """
    import numpy as np

    kinds = [kind for kind in dict.fromkeys(row["set"] for row in rows) if kind != "validation"]
    figure, axes = panels(len(kinds), 2, 5, 3.2)
    for axis, kind in zip(axes, kinds, strict=True):
        own = [row for row in rows if row["set"] == kind]
        bins = np.histogram_bin_edges([row[side] for row in own for side in ("chosen", "rejected")], bins=30)
        for side, colour in (("chosen", COLOURS[0]), ("rejected", COLOURS[1])):
            axis.hist([row[side] for row in own], bins, color=colour, alpha=0.5, label=side)
        wins = sum((r["chosen"] > r["rejected"]) + 0.5 * (r["chosen"] == r["rejected"]) for r in own) / len(own)
        axis.set_title(f"{kind.replace('_', '-')} pairs: {wins:.1%} of {len(own)} right", fontsize=10)
        axis.set_xlabel("reward", fontsize=9)
        axis.set_ylabel("responses", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    save(figure, path)


def reliability(policies: dict[str, dict], title: str, path: Path) -> None:
    """Accuracy of a policy's samples by quintile of their reward: a useful label reward climbs.

    Args:
        policies: `policies` of quality.json: name -> statistics.
    """
    figure, (axis,) = panels(1, 1, 6, 3.6)
    for colour, (name, values) in zip(itertools.cycle(COLOURS), policies.items()):
        fifths = values["quintiles"]
        x, y = [f["reward"] for f in fifths], [f["accuracy"] for f in fifths]
        sides = [[f["accuracy"] - f["ci95"][0], f["ci95"][1] - f["accuracy"]] for f in fifths]
        error = [[max(side, 0.0) for side in both] for both in zip(*sides)]  # rounding may leave -1e-17
        axis.errorbar(x, y, error, fmt="o-", color=colour, capsize=3, markersize=4, label=f"samples of {name}")
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("mean reward of the quintile", fontsize=9)
    axis.set_ylabel("share of right labels", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.suptitle(title)
    save(figure, path)
