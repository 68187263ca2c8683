"""Reward models: pairs to token ids, the pairwise loss of the recipe, training, evaluation on held-out pairs."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from rllr import checkpoints, cli, ranks
from rllr.files import stage_lock, write_json, write_jsonl
from rllr.lm import budget, models
from rllr.lm.rewards import score_sequences
from rllr.lm.tokens import Encoder
from rllr.train.batches import EveryRowOnce
from rllr.train.trainer import TrainingConfig, train, trainer_arguments


def encode(rows: list[dict], encoder: Encoder) -> list[dict]:
    """Pairs -> `chosen_ids`, `rejected_ids`, with one prompt that leaves room for the longer side."""
    encoded = []
    for row in rows:
        chosen, rejected = (encoder.response(text) for text in row["output"])
        longer = max(len(chosen), len(rejected))
        prompt = encoder.prompt(row, room=longer)
        ids = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        encoded.append({**ids, "length": len(prompt) + longer})
    return encoded


def blank(eos: int) -> dict:
    """A pair of equal sides: it fills up batches and weighs nothing."""
    return {"chosen_ids": [eos], "rejected_ids": [eos], "length": 1}


def response_scores(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The score of each sequence: the head's output at the last token its mask covers, EOS included.

    Args:
        scores: (B, T) per-token scores. mask: (B, T), 1 on real tokens; padding may stand on either side.

    Returns:
        (B,) scores.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.long() * positions).argmax(dim=1)
    return scores.gather(1, last[:, None])[:, 0]


def pairwise_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_ids: torch.Tensor, rejected_ids: torch.Tensor, pad: int
) -> torch.Tensor:
    """-log sigmoid(chosen - rejected), averaged over a pair's tokens from the first that differs, then over pairs.

    The span ends with the longer side; past its end the shorter side counts with its last score (the published
    code, after LLaMA-Factory, reads scores of padding there).

    Args:
        chosen, rejected: (B, T) per-token scores, right-padded. chosen_ids, rejected_ids: (B, T) token ids.

    Returns:
        (B,) losses; 0 for a pair of equal sides.
    """
    positions = torch.arange(chosen.shape[1], device=chosen.device)
    ends = torch.stack([(ids != pad).sum(1) for ids in (chosen_ids, rejected_ids)])  # (2, B) lengths
    held = [s.gather(1, torch.minimum(positions[None], end[:, None] - 1)) for s, end in zip((chosen, rejected), ends)]
    differ = chosen_ids != rejected_ids
    first = differ.float().argmax(1)
    span = (positions >= first[:, None]) & (positions < ends.max(0).values[:, None]) & differ.any(1, keepdim=True)
    losses = -F.logsigmoid(held[0] - held[1])
    return (losses * span).sum(1) / span.sum(1).clamp(min=1)


def make_trainer(model, pad: int, **arguments):
    """trl's RewardTrainer with the recipe's loss over tokens instead of over the last score alone."""
    from trl import RewardTrainer

    def differ(ids):  # (2B, T) chosen, then rejected -> (B,) bool: all but blank pairs
        chosen, rejected = ids.chunk(2)
        return (chosen != rejected).any(1)

    class PairTrainer(EveryRowOnce, RewardTrainer):
        def items(self, batch) -> torch.Tensor:
            return differ(batch["input_ids"]).sum()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            model(**inputs, use_cache=False)
            chosen, rejected = captured["scores"].squeeze(-1).chunk(2)
            chosen_ids, rejected_ids = inputs["input_ids"].chunk(2)
            wins = response_scores(chosen, chosen_ids != pad) > response_scores(rejected, rejected_ids != pad)
            real = differ(inputs["input_ids"])
            right, pairs = ranks.total(torch.stack([(wins & real).sum(), real.sum()]).float()).tolist()
            if pairs:
                self._metrics["train"]["pair_accuracy"].append(right / pairs)
            losses = pairwise_loss(chosen, rejected, chosen_ids, rejected_ids, pad)
            return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    # The model's forward returns the last score only; the head's per-token output is caught on its way, so that
    # the call still goes through whatever wraps the model (DDP).
    captured = {}
    trainer = PairTrainer(model=model, **arguments)
    head = trainer.model.get_base_model().score.modules_to_save["default"]
    head.register_forward_hook(lambda module, args, output: captured.update(scores=output))
    return trainer


def evaluate(model, rows_of: dict[str, list[dict]], encoder: Encoder, batch_size: int) -> tuple[dict, list[dict]]:
    """metrics.json and the scores behind it."""
    pad, metrics, scored = encoder.tokenizer.pad_token_id, {}, []
    for name, rows in rows_of.items():
        encoded = encode(rows, encoder)
        sides = [
            score_sequences(model, [row[side] for row in encoded], pad, batch_size, f"scoring {name}")
            for side in ("chosen_ids", "rejected_ids")
        ]
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
        lengths = [len(row[side]) for row in encoded for side in ("chosen_ids", "rejected_ids")]
        encoder.report(str(train_file), lengths)
        budget.check(base, asdict(config), "reward", int(config.epochs * sum(lengths)), out)
        inputs = [config_file, base, train_file]
        checkpoints.prepare(folder, inputs)

        arguments = trainer_arguments(config, len(encoded), folder, kind)
        set_seed(config.seed)
        trainer = make_trainer(
            models.load_scorer(base, kind, config.attention),
            tokenizer.pad_token_id,
            args=RewardConfig(**arguments, disable_dropout=False, remove_unused_columns=False),
            train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
            processing_class=tokenizer,
            peft_config=models.lora_config(config.lora, "SEQ_CLS"),
        )
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, kind)
        train(trainer, folder, out)

        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        with models.autocast(kind):
            metrics, scored = evaluate(model, held_out, Encoder(tokenizer, config.cutoff), 2 * config.micro_batch_size)
        if ranks.rank() == 0:
            write_jsonl(out / "pair_scores.jsonl", scored)
            write_json(out / "metrics.json", {"model": config.model, "reward_model": config.stage, **metrics})
        cli.log(f"pair accuracy {metrics['pair_accuracy']:.3f}, mean margin {metrics['mean_margin']:.2f}")
        checkpoints.finish(folder, inputs)
