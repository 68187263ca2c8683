"""Figures (svg) of training logs and reward models. matplotlib is imported where it is used."""

from pathlib import Path

from rllr.files import atomic_file

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
COLOURS = ["#1f6fb4", "#c4541a", "#2c8a4b", "#7a4fa3"]


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction, so that the first points are not drawn towards 0."""
    average, norm, result = 0.0, 0.0, []
    for value in values:
        average, norm = weight * average + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(average / norm)
    return result


def save(figure, path: Path) -> None:
    """Write a figure as svg that is the same for the same data."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rllr", "svg.fonttype": "path"}), atomic_file(path, "wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")


def curves(rows: list[dict], title: str, path: Path) -> None:
    """Small multiples of a training log: each step faint, its moving average bold.

    Args:
        rows: lines of train_log.jsonl; `step` or `iteration` is the x axis.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    x_key = "iteration" if any("iteration" in row for row in rows) else "step"
    panels = {name: [k for k in keys if any(k in row for row in rows)] for name, keys in PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if keys}
    columns = 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, keys) in zip(axes.flat, panels.items()):
        for colour, key in zip(COLOURS, keys):
            points = [(row[x_key], row[key]) for row in rows if row.get(key) is not None]
            x, y = zip(*points)
            if key == "validation_accuracy":  # few points: shown as they are
                axis.plot(x, y, "o-", color=colour, label=key, markersize=4)
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
    plt.close(figure)
