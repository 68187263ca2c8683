"""Pairs of responses as token ids."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from rllr import checkpoints, ranks
from rllr.files import stage_lock
from rllr.lm import budget, duration, fitting, models
from rllr.lm.tokens import Encoder
from rllr.train.trainer import TrainingConfig, train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer


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


@dataclass
class PairsStage:
    """What the stages that train on pairs have in common.

    Attributes:
        config: of the stage, with a number for micro_batch_size.
        base: folder of the merged sft_wrat model. encoded: pairs as token ids. folder: where checkpoints are kept.
    """

    config: TrainingConfig
    base: Path
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    encoded: list[dict]
    folder: Path

    def dataset(self) -> "Dataset":
        """The pairs, and a blank one to fill up batches."""
        from datasets import Dataset

        last = blank(self.tokenizer.eos_token_id)
        more = {key: value for key, value in self.encoded[0].items() if key not in last}
        return Dataset.from_list([*self.encoded, last | more])

    def train(self, out: Path, build: Callable[[dict], "Trainer"]) -> "Trainer":
        """The trainer that `build` makes of its arguments, at the end of training; see `train`."""
        return train(self.config, len(self.encoded), self.folder, out, self.dtype, build)


@contextmanager
def pairs_stage(
    config: TrainingConfig, config_file: Path, base: Path, train_file: Path, rows: list[dict], out: Path, section: str
) -> Iterator[PairsStage]:
    """Hold the stage's folder, prepare its pairs and checkpoints; on leaving without an error the latter go."""
    ranks.start()
    with stage_lock(out):
        dtype, tokenizer = models.dtype_of(config.precision), models.load_tokenizer(base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder)
        prompts, responses = both_sides(encoded)
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        encoder.report(str(train_file), lengths)
        config = fitting.settled(config, base, section)
        estimate = budget.check(base, asdict(config), section, duration.Work(trained=config.epochs * sum(lengths)), out)
        inputs, folder = [config_file, base, train_file], out / "checkpoints"
        checkpoints.prepare(folder, inputs)
        yield PairsStage(config, base, dtype, tokenizer, encoded, folder)
        checkpoints.finish(folder, inputs)
        budget.report(estimate)
