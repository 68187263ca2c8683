"""One process of the test of two: an iteration on stored rollouts; process 0 saves the result.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python tests/unit/ppo_rank.py state.pt result.pt
"""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "workflow" / "scripts"), str(HERE.parent)]

from rllr import ranks  # noqa: E402
from rllr.ppo.iteration import Trainer  # noqa: E402
from rllr.ppo.rollout import Rollout  # noqa: E402
from rllr.tasks import Task  # noqa: E402


def iteration(trainer: Trainer, stored: dict) -> dict:
    """Score, advantages and one update on this process's share of a stored rollout."""
    samples = trainer.config.samples_per_prompt
    share = [i for i in range(len(stored["responses"])) if i // samples % ranks.world() == ranks.rank()]
    parts = (stored[part] for part in ("rows", "prompts", "responses", "logprobs", "entropies"))
    rollout = Rollout(*([part[i] for i in share] for part in parts))
    if trainer.claims:
        trainer.choices.ids = stored["ids"]
    claims = trainer.judge(rollout) if trainer.claims else None
    texts, raw, scores = trainer.score(rollout, claims)
    batch, metrics = trainer.advantages(rollout, texts, scores, raw.get("rationale"))
    metrics |= trainer.optimise(batch, claims)
    return {
        "metrics": metrics,
        "parameters": {name: p.detach().clone() for name, p in trainer.backbone.trained().items()},
        "moments": vars((trainer.choices if trainer.exact else trainer).moments),
    }


def main() -> None:
    from transformers import AutoTokenizer

    from test_ppo_engine import make_trainer

    stored = torch.load(sys.argv[1], weights_only=True)
    ranks.start()
    tasks = {"movie_reviews": Task("movie_reviews", "label", ("negative", "positive"))}
    folders = {role: Path(path) for role, path in stored["rewards"].items()}
    tokenizer = AutoTokenizer.from_pretrained(stored["merged"])
    trainer = make_trainer(Path(stored["merged"]), folders, tokenizer, tasks, policy_std=0.3, **stored["changes"])
    result = iteration(trainer, stored)
    if ranks.rank() == 0:
        torch.save(result, sys.argv[2])
    ranks.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
