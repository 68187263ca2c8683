"""Whether a reward tells right from wrong among a policy's own samples."""

from collections import defaultdict
from itertools import product

import numpy as np

from rllr.evaluate.label_metrics import wilson

RESAMPLES = 1000


def auc(right: list[float], wrong: list[float]) -> float | None:
    """How often a right answer's reward exceeds a wrong one's (ties count half); None without both kinds."""
    if not right or not wrong:
        return None
    difference = np.subtract.outer(right, wrong)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def interval(above: np.ndarray, below: np.ndarray) -> list[float] | None:
    """95% percentile interval of a ratio over its resamples, those without anything below left out; None: none left."""
    share = above[below > 0] / below[below > 0]
    return np.quantile(share, [0.025, 0.975]).tolist() if len(share) else None


def statistics(rows: list[dict]) -> dict:
    """What a reward model's scores say about correctness in one policy's samples.

    Args:
        rows: id, task, correct (bool), reward of each sample.

    Returns:
        n, accuracy, mean_reward; spread_same_prompt, the standard deviation of the rewards of one prompt's samples,
        averaged over prompts: of two rewards that are added, the wider one decides; auc and spearman over all samples;
        auc_same_prompt over pairs of a right and a wrong sample of one prompt, which is all that RL can act on, and
        mixed_prompts, which have such pairs; quintiles by reward, and auc by task. Samples of one prompt resemble each
        other: the intervals of auc and auc_same_prompt come from a bootstrap over prompts, those of the quintiles
        count a prompt's samples there as one.
    """
    from scipy.stats import spearmanr

    def split(some: list[dict]) -> tuple[list[float], list[float]]:
        return [r["reward"] for r in some if r["correct"]], [r["reward"] for r in some if not r["correct"]]

    by_prompt, by_task = defaultdict(list), defaultdict(list)
    for row in rows:
        by_prompt[row["id"]].append(row)
        by_task[row["task"]].append(row)
    wins = [[(a > b) + 0.5 * (a == b) for a, b in product(*split(own))] for own in by_prompt.values()]
    pairs = np.array(list(map(len, wins)))
    rewards, correct = np.array([r["reward"] for r in rows]), np.array([r["correct"] for r in rows], float)
    varied = np.ptp(rewards) > 0 and np.ptp(correct) > 0
    number = {name: i for i, name in enumerate(by_prompt)}
    prompt = np.array([number[r["id"]] for r in rows])
    # How often each prompt is drawn, and so each of its samples: (RESAMPLES, prompts) and (RESAMPLES, n).
    drawn = np.random.default_rng(0).multinomial(len(number), np.full(len(number), 1 / len(number)), RESAMPLES)
    right, wrong = (drawn[:, prompt[correct == side]].astype(float) for side in (1, 0))
    by = np.subtract.outer(rewards[correct == 1], rewards[correct == 0])
    above = ((right @ ((by > 0) + 0.5 * (by == 0))) * wrong).sum(1)
    fifths = [part for part in np.array_split(np.argsort(rewards, kind="stable"), 5) if len(part)]
    return {
        "n": len(rows),
        "accuracy": float(correct.mean()),
        "mean_reward": float(rewards.mean()),
        "spread_same_prompt": float(np.mean([np.std([r["reward"] for r in own]) for own in by_prompt.values()])),
        "auc": auc(*split(rows)),
        "auc_ci95": interval(above, right.sum(1) * wrong.sum(1)),
        "auc_same_prompt": float(sum(map(sum, wins)) / pairs.sum()) if pairs.any() else None,
        "auc_same_prompt_ci95": interval(drawn @ np.array(list(map(sum, wins))), drawn @ pairs),
        "mixed_prompts": int((pairs > 0).sum()),
        "spearman": float(spearmanr(rewards, correct).statistic) if varied else None,
        "quintiles": [
            {
                "reward": float(rewards[part].mean()),
                "accuracy": float(correct[part].mean()),
                "ci95": wilson(correct[part].mean() * len(prompts), len(prompts)),
                "n": len(part),
            }
            for part, prompts in ((part, set(prompt[part])) for part in fifths)
        ],
        "tasks": {task: {"n": len(own), "auc": auc(*split(own))} for task, own in by_task.items()},
    }
