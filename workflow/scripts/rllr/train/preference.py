"""Preference over pairs by likelihood: DPO's policy, and reward models that score claims.

loss = -log sigmoid(beta * (ratio of chosen - ratio of rejected)) + sft_weight * mean negative log-likelihood per token
of the chosen side, with ratio = log pi(response) - log pi_merged(response) (Rafailov et al. 2023, eq. 7). Without the
SFT term the chosen side's likelihood falls, too: enough for a reward, while a policy loses its form. A reward model of
claims has neither beta nor reference: its ratio is the likelihood of the claim alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rllr.lm import budget, models, rewards
from rllr.lm.claims import claim_ends, claim_of
from rllr.lm.packing import Packed, describe_sharing, shares_prompts
from rllr.train.batches import EveryRowOnce
from rllr.train.pairs import PairsStage, both_sides, differing, pairs_stage
from rllr.train.trainer import PreferenceConfig

if TYPE_CHECKING:
    from datasets import Dataset


def preference_loss(
    logprobs: torch.Tensor, merged: torch.Tensor, kept: torch.Tensor, beta: float, sft_weight: float
) -> torch.Tensor:
    """(B,) losses of pairs.

    Args:
        logprobs, kept: (2B, R), chosen and rejected in turn. merged: (2B,) log-likelihoods under the merged model.
    """
    ratio = logprobs.sum(1) - merged
    losses = -F.logsigmoid(beta * (ratio[::2] - ratio[1::2]))
    return losses - sft_weight * logprobs[::2].sum(1) / kept[::2].sum(1)


def add_reference(
    encoded: list[dict], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, dtype: torch.dtype
) -> None:
    """Give encoded pairs the log-likelihoods of both sides under the merged model, as `reference`."""
    plain, trunk = rewards.trunk_of(model)
    unembed = plain.get_output_embeddings()

    def likelihood(batch: Packed) -> torch.Tensor:
        hidden = trunk(**batch.inputs(), use_cache=False).last_hidden_state
        return rewards.log_likelihood(hidden, unembed, batch).sum(1)

    values = rewards.in_batches(likelihood, model, tokenizer, *both_sides(encoded), batch_size, dtype, "reference")
    for row, reference in zip(encoded, zip(values[::2], values[1::2]), strict=True):
        row["reference"] = list(reference)


def make_trainer(
    model: PreTrainedModel, pad: int, dtype: torch.dtype, beta: float, sft_weight: float, **arguments: Any
) -> "trl.DPOTrainer":
    """trl's DPOTrainer on batches in which both sides share their prompt, against references computed beforehand."""
    shared = shares_prompts(model)
    describe_sharing(shared, "sides of a pair")

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = Packed.build(*both_sides(rows), pad, "cpu", dtype, shared)
        reference = torch.tensor([value for row in rows for value in row["reference"]])
        own = {name: getattr(batch, name) for name in ("group", "predicts", "tokens", "kept")}
        return {**batch.inputs(), **own, "reference": reference}

    class PreferenceTrainer(EveryRowOnce, trl.DPOTrainer):
        def _prepare_dataset(self, dataset: "Dataset", *_: Any) -> "Dataset":
            return dataset  # token ids already

        def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return differing(batch["tokens"], batch["kept"]).any(1).sum()

        def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
            return super()._get_num_items_in_batch(batch_samples, device).clamp(min=1)  # claims may all be the same

        def loss_sum(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            names = ("group", "predicts", "tokens", "kept", "reference")
            group, predicts, tokens, kept, reference = (inputs.pop(name) for name in names)
            logits = self.logits_at(model, inputs, group.expand_as(kept)[kept], predicts[kept]).float()
            found = -F.cross_entropy(logits, tokens[kept], reduction="none")
            logprobs = torch.zeros(kept.shape, device=found.device).masked_scatter(kept, found)
            real = differing(tokens, kept).any(1)
            ratio = (logprobs.sum(1) - reference).detach()
            self.count_pairs(ratio[::2] > ratio[1::2], real)
            return (preference_loss(logprobs, reference, kept, beta, sft_weight) * real).sum()

    return PreferenceTrainer(model=model, data_collator=collate, **arguments)


def trainer_of(
    stage: PairsStage, arguments: dict, beta: float = 1.0, sft_weight: float = 0.0, claims: bool = False
) -> "trl.DPOTrainer":
    """A trainer on the stage's pairs, with the merged model's log-likelihoods computed once, beforehand.

    Args:
        arguments: of the trainer's config. claims: train a reward model of claims, which needs no reference.
    """
    config = stage.config
    model = models.load_causal(stage.base, stage.dtype, config.attention, training=True)
    if claims:
        ends = claim_ends(stage.tokenizer, model.config.vocab_size)
        for row in stage.encoded:
            row |= {side: claim_of(row[side], ends) for side in ("chosen_ids", "rejected_ids")}
            row["reference"] = [0.0, 0.0]
    else:
        add_reference(stage.encoded, model, stage.tokenizer, budget.UNTRAINED * config.micro_batch_size, stage.dtype)
    return make_trainer(
        model, stage.tokenizer.pad_token_id, stage.dtype, beta, sft_weight,
        args=trl.DPOConfig(**arguments, disable_dropout=False, remove_unused_columns=False),
        train_dataset=stage.dataset(), processing_class=stage.tokenizer,
        peft_config=models.lora_config(config.lora, "CAUSAL_LM"),
    )  # fmt: skip


def train_preference(
    config: PreferenceConfig, config_file: Path, base: Path, train_file: Path, rows: list[dict], out: Path
) -> None:
    """The run of a DPO stage; writes adapter/ and train_log.jsonl into `out`."""
    with pairs_stage(config, config_file, base, train_file, rows, out, "dpo") as stage:
        stage.train(out, lambda arguments: trainer_of(stage, arguments, config.beta, config.sft_weight))
