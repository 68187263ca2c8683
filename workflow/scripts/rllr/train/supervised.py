"""Supervised fine-tuning: rows to token ids, the loss over response tokens, training."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from rllr import checkpoints, ranks
from rllr.files import stage_lock
from rllr.lm import budget, duration, fitting, models
from rllr.lm.padding import fill
from rllr.lm.tokens import IGNORED, Encoder, valid
from rllr.train.batches import EveryRowOnce
from rllr.train.trainer import SupervisedConfig, train

if TYPE_CHECKING:
    from trl import SFTTrainer


def encode(rows: list[dict], encoder: Encoder, label_weight: float = 1.0, quote_weight: float = 1.0) -> list[dict]:
    """Rows -> `input_ids`, `labels` (-100 but on answers and the EOS after each, earlier turns' too), `weights`."""
    encoded = []
    for row in rows:
        response = encoder.response(row["output"])
        prompt, labels = encoder.dialogue(row, room=len(response))
        ids = prompt + response
        weights = token_weights(row, response, encoder, label_weight, quote_weight)
        encoded.append(
            {
                "input_ids": ids,
                "labels": labels + response,
                "weights": [1.0] * len(prompt) + weights,
                "length": len(ids),
            }
        )
    return encoded


def token_weights(
    row: dict, response: list[int], encoder: Encoder, label_weight: float, quote_weight: float
) -> list[float]:
    """What each token of a response weighs in the loss.

    `label_weight` where the response names its label, `quote_weight` inside double quotes: which words a rationale
    cites can hardly be learned, and drowns the one decision that the label rests on. A response that holds the text of
    a control token is weighed evenly: its tokens are not those that the tokenizer gives places of.
    """
    weights = [1.0] * len(response)
    text = valid(row["output"])
    if label_weight == quote_weight == 1 or encoder.controls.anywhere.search(text):
        return weights
    spans = [(*match.span(1), quote_weight) for match in re.finditer(r'"([^"\n]*)"', text)]
    if label := row.get("label"):
        named = re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE)
        spans += [(*match.span(), label_weight) for match in named]
    offsets = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for start, end, weight in spans:
        for token, (first, last) in enumerate(offsets[: len(weights)]):
            if first < end and last > start:
                weights[token] = weight
    return weights


def blank(eos: int) -> dict:
    """A row without response tokens: it fills up batches and weighs nothing."""
    return {"input_ids": [eos, eos], "labels": [IGNORED, IGNORED], "weights": [0.0, 0.0], "length": 2}


def collate(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """Rows as rectangles, filled up on the right, where causal attention needs no mask."""
    return {
        "input_ids": fill([row["input_ids"] for row in rows], pad, "cpu")[0],
        "labels": fill([row["labels"] for row in rows], IGNORED, "cpu")[0],
        "weights": fill([row["weights"] for row in rows], 0, "cpu")[0],
    }


def make_trainer(**arguments: Any) -> "SFTTrainer":
    """trl's SFTTrainer with a weight for each token, and logits at response tokens only."""
    from trl import SFTTrainer

    class ResponseTrainer(EveryRowOnce, SFTTrainer):
        def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return (batch["weights"][:, 1:] * (batch["labels"][:, 1:] != IGNORED)).sum()

        def loss_sum(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            labels, weights = inputs.pop("labels"), inputs.pop("weights")
            rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            logits = self.logits_at(model, inputs, rows, places).float()
            losses = F.cross_entropy(logits, labels[rows, places + 1], reduction="none")
            return (losses * weights[rows, places + 1]).sum()

    pad = arguments["processing_class"].pad_token_id
    arguments["data_collator"] = lambda rows: collate(rows, pad)
    return ResponseTrainer(**arguments)


def fine_tune(config: SupervisedConfig, config_file: Path, base: Path, data: Path, rows: list[dict], out: Path) -> None:
    """The run of one SFT stage; writes adapter/ and train_log.jsonl into `out`.

    Args:
        base: folder of the base model. rows: the rows of `data`.
    """
    from datasets import Dataset
    from trl import SFTConfig

    ranks.start()
    with stage_lock(out):
        folder = out / "checkpoints"
        dtype = models.dtype_of(config.precision)
        tokenizer = models.load_tokenizer(base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder, config.label_weight, config.quote_weight)
        encoder.report(str(data), [len(row["input_ids"]) for row in encoded])
        work = duration.Work(trained=config.epochs * sum(len(row["input_ids"]) for row in encoded))
        config = fitting.settled(config, base, "sft")
        estimate = budget.check(base, asdict(config), "sft", work, out)
        inputs = [config_file, base, data]
        checkpoints.prepare(folder, inputs)

        def build(arguments: dict) -> "SFTTrainer":
            return make_trainer(
                model=models.load_causal(base, dtype, config.attention, training=True),
                args=SFTConfig(**arguments, remove_unused_columns=False),
                train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
                processing_class=tokenizer,
                peft_config=models.lora_config(config.lora, "CAUSAL_LM"),
            )

        train(config, len(encoded), folder, out, dtype, build)
        checkpoints.finish(folder, inputs)
        budget.report(estimate)
