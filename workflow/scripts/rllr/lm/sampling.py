"""Answers to many prompts, batch by batch, greedy or sampled."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rllr.lm import fitting, models
from rllr.lm.generation import Generated, generate, stop_ids


def uniforms(keys: list[list[int]], length: int) -> torch.Tensor:
    """(len(keys), length) numbers in [0, 1), each row a function of its key alone.

    So a sample does not depend on the batch, the number of processes, or on where a run was interrupted.
    """
    # Not torch.Generator: its CPU engine reads only the low 32 bits of a seed.
    return torch.from_numpy(np.stack([np.random.default_rng(key).random(length) for key in keys]))


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
    dtype: torch.dtype,
    numbers: torch.Tensor | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    keep_reading: bool = False,
) -> Iterator[tuple[list[int], Generated]]:
    """Yield `(indices, generated)` batch by batch, longest prompts first (so the time left is not underestimated).

    Args:
        prompts: lists of token ids.
        batch_size: responses side by side.
        numbers: (len(prompts) * samples, max_new_tokens) from `uniforms`; None decodes greedily.
        temperature: divides the logits, where responses are sampled.
        samples: responses to each prompt; indices count responses, those of a prompt next to each other.
        keep_reading: see `generate`.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

    def responses_of(batch: list[int]) -> list[int]:
        return [i * samples + j for i in batch for j in range(samples)]

    def answer(batch: list[int]) -> Generated:
        with models.autocast(dtype):
            return generate(
                model,
                [prompts[i] for i in batch],
                stop_ids(model, tokenizer),
                tokenizer.pad_token_id,
                max_new_tokens,
                None if numbers is None else numbers[responses_of(batch)],
                temperature,
                samples,
                keep_reading=keep_reading,
            )

    for batch, result in fitting.parts("decoding", order, max(1, batch_size // samples), answer):
        yield responses_of(batch), result


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], ids: list[str], samples: int,
    config: Any, dtype: torch.dtype,
) -> list[list[list[int]]]:  # fmt: skip
    """`samples` responses (token ids) to each prompt; `config` gives seed, batch_size and max_new_tokens."""
    keys = [[config.seed, zlib.crc32(name.encode()), sample] for name in ids for sample in range(samples)]
    numbers = uniforms(keys, config.max_new_tokens)
    found: list = [None] * len(keys)
    for indices, result in respond(
        model, tokenizer, prompts, config.batch_size, config.max_new_tokens, dtype, numbers, samples
    ):
        for i, response in zip(indices, result.responses, strict=True):
            found[i] = response
    return [found[i : i + samples] for i in range(0, len(found), samples)]
