"""Whether a reward model tells right from wrong among the policy's own samples, before and after RL.

    python workflow/scripts/reward_quality.py --config results/tiny/predict/config.yaml \\
        --base results/tiny/sft_wrat/merged --reward results/tiny/rm_rllr/adapter \\
        --policies sft_wrat rllr=results/tiny/rllr/adapter --data results/data/demo/validation.jsonl \\
        --tasks results/data/demo/tasks.json --out results/tiny/rm_rllr/quality.json

Pair accuracy is measured on responses that others wrote; RL only ever sees the policy's own. Writes quality.json (AUC,
rank correlation, accuracy by quintile of the reward) and beside it quality_samples.jsonl.
"""

from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np

from rllr import cli
from rllr.config import load_stage
from rllr.evaluate.label_metrics import wilson
from rllr.files import stage_lock, write_json, write_jsonl
from rllr.lm.tokens import Encoder
from rllr.predict.model_file import PredictConfig
from rllr.rows import read_prompts
from rllr.tasks import agrees, load_tasks, read_label

SAMPLES = 4  # per prompt
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


def policy(text: str) -> tuple[str, Path | None]:
    """`name` or `name=adapter folder`."""
    name, _, folder = text.partition("=")
    return name, Path(folder) if folder else None


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved predict config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--reward", type=Path, required=True, help="adapter of the reward model")
    parser.add_argument(
        "--policies", nargs="+", type=policy, required=True, help="name, or name=adapter; none: the merged model itself"
    )
    parser.add_argument("--data", type=Path, required=True, help="prompts with gold labels (validation.jsonl)")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--out", type=Path, required=True, help="quality.json")
    args = parser.parse_args()
    config = load_stage(PredictConfig, args.config)
    tasks = load_tasks(args.tasks)
    rows = read_prompts(args.data, tasks, need_labels=True)

    from rllr.lm import models, sampling
    from rllr.lm.generation import decoded, stop_ids

    kind = models.dtype(config.precision)
    tokenizer = models.load_tokenizer(args.base)
    encoder = Encoder(tokenizer, config.cutoff)
    prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in rows]
    ids = [row["id"] for row in rows]
    with stage_lock(args.out.parent):
        drawn = {}
        for name, adapter in args.policies:
            cli.log(f"sampling {SAMPLES} answers of {name} to {len(rows)} prompts")
            model = models.load_adapter(args.base, adapter, kind, config.attention)
            drawn[name] = sampling.sample(model, tokenizer, prompts, ids, SAMPLES, config, kind)
            stops = stop_ids(model, tokenizer)
            del model  # one backbone in memory at a time
        reward = sampling.load_reward(args.base, args.reward, kind, config.attention)
        lines, found = [], {}
        for name, responses in drawn.items():
            flat = [(i, response) for i, own in enumerate(responses) for response in own]
            values = sampling.scores(
                reward, tokenizer, [prompts[i] for i, _ in flat], [r for _, r in flat], config.batch_size, kind
            )
            answers = decoded(tokenizer, [r for _, r in flat], stops)
            own = []
            for (i, _), text, value in zip(flat, answers, values, strict=True):
                row, task = rows[i], tasks[rows[i]["task"]]
                right = agrees(read_label(text, task), row["label"], task)
                own.append({"id": row["id"], "task": task.name, "correct": right, "reward": value, "answer": text})
            found[name] = statistics(own)
            lines += [{"policy": name, **line} for line in own]
            cli.log(f"{name}: accuracy {found[name]['accuracy']:.3f}, AUC {found[name]['auc']}")
        write_jsonl(args.out.with_name("quality_samples.jsonl"), lines)
        write_json(args.out, {"reward_model": args.out.parent.name, "samples_per_prompt": SAMPLES, "policies": found})


if __name__ == "__main__":
    cli.run(main)
