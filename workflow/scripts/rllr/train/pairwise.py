"""Reward models: pairs to token ids, the pairwise loss of the recipe, training, evaluation on held-out pairs."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import trl
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rllr import cli, ranks
from rllr.files import write_json, write_jsonl
from rllr.lm import budget, models, rewards
from rllr.lm.claims import claim_ends, claims_by_label
from rllr.lm.packing import Packed, describe_sharing, shares_prompts
from rllr.lm.tokens import Encoder
from rllr.methods import REWARD_MODELS
from rllr.tasks import Task
from rllr.train import preference
from rllr.train.batches import EveryRowOnce
from rllr.train.pairs import both_sides, differing, encode, pairs_stage
from rllr.train.trainer import RewardConfig


def pairwise_loss(scores: torch.Tensor, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(chosen - rejected), averaged over a pair's tokens from the first that differs.

    The span ends with the longer side; past its end the shorter side counts with its last score (the published
    code, after LLaMA-Factory, reads scores of padding there).

    Args:
        scores, tokens, kept: (2B, R) per-token scores of the responses, their ids, true on response tokens; chosen and
            rejected in turn.

    Returns:
        (B,) losses; 0 for a pair of equal sides.
    """
    positions = torch.arange(scores.shape[1], device=scores.device)
    ends = kept.sum(1, keepdim=True)  # (2B, 1) lengths
    held = scores.gather(1, torch.minimum(positions[None], ends - 1))
    differ = differing(tokens, kept)
    first = differ.float().argmax(1, keepdim=True)
    longer = torch.maximum(ends[::2], ends[1::2])
    span = (positions >= first) & (positions < longer) & differ.any(1, keepdim=True)
    losses = -F.logsigmoid(held[::2] - held[1::2])
    return (losses * span).sum(1) / span.sum(1).clamp(min=1)


def make_trainer(model: PreTrainedModel, pad: int, dtype: torch.dtype, **arguments: Any) -> "trl.RewardTrainer":
    """trl's RewardTrainer with the recipe's loss over tokens instead of over the last score alone.

    The two sides of a pair share their prompt in one pass, where the architecture allows it.
    """
    shared = shares_prompts(model)
    describe_sharing(shared, "sides of a pair")

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = Packed.build(*both_sides(rows), pad, "cpu", dtype, shared)
        return {**batch.inputs(), **{name: getattr(batch, name) for name in ("group", "places", "tokens", "kept")}}

    class PairTrainer(EveryRowOnce, trl.RewardTrainer):
        def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return differing(batch["tokens"], batch["kept"]).any(1).sum()

        def loss_sum(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            group, places, tokens, kept = (inputs.pop(name) for name in ("group", "places", "tokens", "kept"))
            model(**inputs, use_cache=False)
            scores = captured["scores"].squeeze(-1)[group, places]
            last = scores.gather(1, kept.sum(1, keepdim=True) - 1)[:, 0]
            self.count_pairs(last[::2] > last[1::2], differing(tokens, kept).any(1))
            return pairwise_loss(scores, tokens, kept).sum()

    # The model's forward returns the last score only; the head's per-token output is caught on its way, so that
    # the call still goes through whatever wraps the model (DDP).
    captured: dict[str, torch.Tensor] = {}
    trainer = PairTrainer(model=model, data_collator=collate, **arguments)
    head = trainer.model.get_base_model().score.modules_to_save["default"]
    head.register_forward_hook(lambda module, args, output: captured.update(scores=output))
    return trainer


def evaluate(
    reward: rewards.Reward,
    rows_of: dict[str, list[dict]],
    encoded: dict[str, list[dict]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    dtype: torch.dtype,
) -> tuple[dict, list[dict]]:
    """metrics.json and the scores behind it; `encoded` are the pairs of `rows_of` as token ids."""
    metrics: dict[str, Any] = {}
    scored: list[dict] = []
    if ranks.sharded():  # scoring goes past the outermost module, which would gather embeddings, last norm and head
        reward.model.unshard()

    def sides_of(pairs: list[dict]) -> list[tuple[float, float]]:
        bar = "scoring pairs" if ranks.rank() == 0 else ""
        values = rewards.scores(reward, tokenizer, *both_sides(pairs), batch_size, dtype, bar)
        return [*zip(values[::2], values[1::2], strict=True)]

    for name, rows in rows_of.items():
        sides = torch.tensor(ranks.share_out(encoded[name], sides_of, together=ranks.sharded())).unbind(1)
        metrics[name] = pair_metrics(rows, *sides)
        if name == "validation":
            metrics["chosen_median_validation"] = sides[0].median().item()
        scored += [
            {"set": name, "id": row["id"], "task": row["task"], "chosen": c, "rejected": r}
            for row, c, r in zip(rows, *(side.tolist() for side in sides), strict=True)
        ]
    return {**metrics.pop("label_sensitive"), **metrics}, scored


def tell_by_claims(rows: list[dict], tasks: dict[str, Task]) -> bool:
    """Whether the rationales of all pairs begin with a claim that tells the label; if not, the log says so."""
    found = claims_by_label(((row["task"], side) for row in rows for side in row["output"]), tasks)
    if without := sorted({row["task"] for row in rows} - set(found)):
        cli.log(f"score claim: rationales of {without[0]} do not begin with one that tells the label; a head instead")
    return not without


def pair_metrics(rows: list[dict], chosen: torch.Tensor, rejected: torch.Tensor) -> dict:
    """Pair accuracy (ties count half) and mean margin, overall and per task."""
    wins = defaultdict(list)
    margins = defaultdict(list)
    for row, c, r in zip(rows, chosen.tolist(), rejected.tolist(), strict=True):
        for key in ("all", row["task"]):
            wins[key].append(float(c > r) + 0.5 * (c == r))
            margins[key].append(c - r)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def summary(key: str) -> dict:
        return {"pair_accuracy": mean(wins[key]), "mean_margin": mean(margins[key]), "n": len(wins[key])}

    return {**summary("all"), "tasks": {task: summary(task) for task in sorted(wins) if task != "all"}}


def train_reward_model(
    config: RewardConfig,
    config_file: Path,
    base: Path,
    train_file: Path,
    rows: list[dict],
    held_out: dict,
    tasks: dict[str, Task],
    out: Path,
) -> None:
    """The run of one reward model: training, its evaluation, and the files of both in `out`.

    Args:
        base: folder of the merged sft_wrat model. rows: the pairs of `train_file`. held_out: set -> its pairs.
    """
    with pairs_stage(config, config_file, base, train_file, rows, out, "reward") as stage:
        dtype, tokenizer = stage.dtype, stage.tokenizer
        encoder = Encoder(tokenizer, config.cutoff)  # before training, so that a row too long is told at once
        encoded = {name: encode(pairs, encoder) for name, pairs in held_out.items()}
        sensitive = REWARD_MODELS[config.stage].label_sensitive  # else both sides make the same claim
        claims = config.score == "claim" and sensitive and tell_by_claims(rows, tasks)

        def build(arguments: dict) -> "trl.DPOTrainer | trl.RewardTrainer":
            if claims:
                return preference.trainer_of(stage, arguments, claims=True)
            return make_trainer(
                models.load_scorer(base, dtype, config.attention, training=True), tokenizer.pad_token_id, dtype,
                args=trl.RewardConfig(**arguments, disable_dropout=False, remove_unused_columns=False),
                train_dataset=stage.dataset(), processing_class=tokenizer,
                peft_config=models.lora_config(config.lora, "SEQ_CLS"),
            )  # fmt: skip

        trainer = stage.train(out, build)
        model, ends = trainer.accelerator.unwrap_model(trainer.model).eval(), None
        if claims:
            ends = claim_ends(tokenizer, model.config.vocab_size)
        reward = rewards.Reward(model, ends)
        batch_size = budget.UNTRAINED * stage.config.micro_batch_size
        metrics, scored = evaluate(reward, held_out, encoded, tokenizer, batch_size, dtype)
        if ranks.rank() == 0:
            if claims:
                write_json(out / "adapter" / rewards.SCORE, {"score": "claim"})
            write_jsonl(out / "pair_scores.jsonl", scored)
            write_json(out / "metrics.json", {"model": config.model, "reward_model": config.stage, **metrics})
        cli.log(f"pair accuracy {metrics['pair_accuracy']:.3f}, mean margin {metrics['mean_margin']:.2f}")
