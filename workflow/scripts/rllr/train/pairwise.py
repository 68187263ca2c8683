"""Reward models: pairs to token ids, the pairwise loss of the recipe, training, evaluation on held-out pairs."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from rllr import checkpoints, cli, ranks
from rllr.files import stage_lock, write_json, write_jsonl
from rllr.lm import budget, models, rewards
from rllr.lm.packing import Packed, shares_prompts
from rllr.lm.tokens import Encoder
from rllr.train.batches import EveryRowOnce
from rllr.train.trainer import TrainingConfig, train, trainer_arguments


def encode(rows: list[dict], encoder: Encoder) -> list[dict]:
    """Pairs -> `prompt_ids`, which leave room for the longer side, and the responses `chosen_ids`, `rejected_ids`."""
    encoded = []
    for row in rows:
        chosen, rejected = (encoder.response(text) for text in row["output"])
        prompt = encoder.prompt(row, room=max(len(chosen), len(rejected)))
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        encoded.append({**ids, "length": len(prompt) + len(chosen) + len(rejected)})
    return encoded


def blank(eos: int) -> dict:
    """A pair of equal sides: it fills up batches and weighs nothing."""
    return {"prompt_ids": [eos], "chosen_ids": [eos], "rejected_ids": [eos], "length": 3}


def both_sides(rows: list[dict]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of encoded pairs: chosen, rejected, chosen, ..."""
    prompts = [row["prompt_ids"] for row in rows for _ in range(2)]
    return prompts, [row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]


def differing(tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(B, R) where the two sides of a pair differ; both (2B, R), chosen and rejected in turn."""
    return (tokens[::2] != tokens[1::2]) & (kept[::2] | kept[1::2]) | (kept[::2] != kept[1::2])


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


def make_trainer(model, pad: int, kind: torch.dtype, **arguments):
    """trl's RewardTrainer with the recipe's loss over tokens instead of over the last score alone.

    The two sides of a pair share their prompt in one pass, where the architecture allows it.
    """
    from trl import RewardTrainer

    shared = shares_prompts(model)
    cli.log(f"prompts of pairs: {'computed once for both sides' if shared else 'computed for each side (ALiBi)'}")

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = Packed.build(*both_sides(rows), pad, "cpu", kind, shared)
        return {**batch.inputs(), **{name: getattr(batch, name) for name in ("group", "places", "tokens", "kept")}}

    class PairTrainer(EveryRowOnce, RewardTrainer):
        def items(self, batch) -> torch.Tensor:
            return differing(batch["tokens"], batch["kept"]).any(1).sum()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            group, places, tokens, kept = (inputs.pop(name) for name in ("group", "places", "tokens", "kept"))
            model(**inputs, use_cache=False)
            scores = captured["scores"].squeeze(-1)[group, places]
            last = scores.gather(1, kept.sum(1, keepdim=True) - 1)[:, 0]
            real = differing(tokens, kept).any(1)
            right, pairs = ranks.total(
                torch.stack([((last[::2] > last[1::2]) & real).sum(), real.sum()]).float()
            ).tolist()
            if pairs:
                self._metrics["train"]["pair_accuracy"].append(right / pairs)
            losses = pairwise_loss(scores, tokens, kept)
            return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    # The model's forward returns the last score only; the head's per-token output is caught on its way, so that
    # the call still goes through whatever wraps the model (DDP).
    captured = {}
    trainer = PairTrainer(model=model, data_collator=collate, **arguments)
    head = trainer.model.get_base_model().score.modules_to_save["default"]
    head.register_forward_hook(lambda module, args, output: captured.update(scores=output))
    return trainer


def evaluate(
    model, rows_of: dict[str, list[dict]], encoder: Encoder, batch_size: int, kind: torch.dtype
) -> tuple[dict, list[dict]]:
    """metrics.json and the scores behind it."""
    metrics, scored = {}, []
    for name, rows in rows_of.items():
        prompts, responses = both_sides(encode(rows, encoder))
        values = rewards.scores(model, encoder.tokenizer, prompts, responses, batch_size, kind, f"scoring {name}")
        sides = torch.tensor(values[::2]), torch.tensor(values[1::2])
        metrics[name] = pair_metrics(rows, *sides)
        if name == "validation":
            metrics["chosen_median_validation"] = sides[0].median().item()
        scored += [
            {"set": name, "id": row["id"], "task": row["task"], "chosen": c, "rejected": r}
            for row, c, r in zip(rows, *(side.tolist() for side in sides), strict=True)
        ]
    return {**metrics.pop("label_sensitive"), **metrics}, scored


def pair_metrics(rows: list[dict], chosen: torch.Tensor, rejected: torch.Tensor) -> dict:
    """Pair accuracy (ties count half) and mean margin, overall and per task; all pairs' scores for plots."""
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
    config: TrainingConfig, config_file: Path, base: Path, train_file: Path, rows: list[dict], held_out: dict, out: Path
) -> None:
    """The run of one reward model: training, its evaluation, and the files of both in `out`.

    Args:
        base: folder of the merged sft_wrat model. rows: the pairs of `train_file`. held_out: set -> its pairs.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig

    ranks.start()
    with stage_lock(out):
        folder = out / "checkpoints"
        kind = models.dtype(config.precision)
        tokenizer = models.load_tokenizer(base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder)
        lengths = [
            len(row["prompt_ids"]) + len(row[side]) for row in encoded for side in ("chosen_ids", "rejected_ids")
        ]
        encoder.report(str(train_file), lengths)
        budget.check(base, asdict(config), "reward", int(config.epochs * sum(lengths)), out)
        inputs = [config_file, base, train_file]
        checkpoints.prepare(folder, inputs)

        arguments = trainer_arguments(config, len(encoded), folder, kind)
        set_seed(config.seed)
        trainer = make_trainer(
            models.load_scorer(base, kind, config.attention, training=True),
            tokenizer.pad_token_id,
            kind,
            args=RewardConfig(**arguments, disable_dropout=False, remove_unused_columns=False),
            train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
            processing_class=tokenizer,
            peft_config=models.lora_config(config.lora, "SEQ_CLS"),
        )
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, kind)
        train(trainer, folder, out)

        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        # Without gradients: more rows fit than in training.
        batch_size = 8 * config.micro_batch_size
        metrics, scored = evaluate(model, held_out, Encoder(tokenizer, config.cutoff), batch_size, kind)
        if ranks.rank() == 0:
            write_jsonl(out / "pair_scores.jsonl", scored)
            write_json(out / "metrics.json", {"model": config.model, "reward_model": config.stage, **metrics})
        cli.log(f"pair accuracy {metrics['pair_accuracy']:.3f}, mean margin {metrics['mean_margin']:.2f}")
        checkpoints.finish(folder, inputs)
