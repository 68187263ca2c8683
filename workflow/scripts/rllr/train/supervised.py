"""Supervised fine-tuning: rows to token ids, the loss over response tokens, training."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from rllr import checkpoints, ranks
from rllr.files import stage_lock
from rllr.lm import budget, models
from rllr.lm.tokens import IGNORED, Encoder
from rllr.train.batches import EveryRowOnce
from rllr.train.trainer import TrainingConfig, train, trainer_arguments


def encode(rows: list[dict], encoder: Encoder) -> list[dict]:
    """Rows -> `input_ids` and `labels` (-100 but on answers and the EOS after each, earlier turns' included)."""
    encoded = []
    for row in rows:
        response = encoder.response(row["output"])
        prompt, labels = encoder.dialogue(row, room=len(response))
        ids = prompt + response
        encoded.append({"input_ids": ids, "labels": labels + response, "length": len(ids)})
    return encoded


def blank(eos: int) -> dict:
    """A row without response tokens: it fills up batches and weighs nothing."""
    return {"input_ids": [eos, eos], "labels": [IGNORED, IGNORED], "length": 2}


def make_trainer(**arguments):
    """trl's SFTTrainer with logits at response tokens only: its own loss also unembeds the prompt, half of the time."""
    from trl import SFTTrainer

    class ResponseTrainer(EveryRowOnce, SFTTrainer):
        def items(self, batch) -> torch.Tensor:
            return (batch["labels"][:, 1:] != IGNORED).sum()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            predicting["positions"] = rows, places
            logits = model(**inputs, use_cache=False).logits  # (N, V), N response tokens
            loss = F.cross_entropy(logits.float(), labels[rows, places + 1], reduction="sum") / num_items_in_batch
            return loss * self.accelerator.num_processes

    # Taken out on the way to the output layer, so that the call still goes through whatever wraps the model (DDP).
    predicting = {}
    trainer = ResponseTrainer(**arguments)
    unembed = trainer.accelerator.unwrap_model(trainer.model).get_base_model().get_output_embeddings()
    unembed.register_forward_pre_hook(lambda module, args: (args[0][predicting["positions"]],))
    return trainer


def fine_tune(config: TrainingConfig, config_file: Path, base: Path, data: Path, rows: list[dict], out: Path) -> None:
    """The run of one SFT stage; writes adapter/ and train_log.jsonl into `out`.

    Args:
        base: folder of the base model. rows: the rows of `data`.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig

    ranks.start()
    with stage_lock(out):
        folder = out / "checkpoints"
        kind = models.dtype(config.precision)
        tokenizer = models.load_tokenizer(base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder)
        encoder.report(str(data), [len(row["input_ids"]) for row in encoded])
        tokens = int(config.epochs * sum(len(row["input_ids"]) for row in encoded))
        budget.check(base, asdict(config), "sft", tokens, out)
        inputs = [config_file, base, data]
        checkpoints.prepare(folder, inputs)

        arguments = trainer_arguments(config, len(encoded), folder, kind)
        set_seed(config.seed)
        trainer = make_trainer(
            model=models.load_causal(base, kind, config.attention, training=True),
            args=SFTConfig(**arguments, remove_unused_columns=False),
            train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
            processing_class=tokenizer,
            peft_config=models.lora_config(config.lora, "CAUSAL_LM"),
        )
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, kind)
        train(trainer, folder, out)
        checkpoints.finish(folder, inputs)
