"""Answers to many prompts, batch by batch, greedy or sampled."""

import zlib
from collections.abc import Iterator

import numpy as np
import torch

from rllr.lm import models
from rllr.lm.generation import generate, stop_ids


def uniforms(seed: int, ids: list[str], samples: int, length: int) -> torch.Tensor:
    """(len(ids) * samples, length) numbers in [0, 1), a row's samples together; each depends on seed, id and place.

    So a sample does not depend on the batch, or on where a run was interrupted.
    """
    keys = [[seed, zlib.crc32(name.encode()), sample] for name in ids for sample in range(samples)]
    return torch.from_numpy(np.stack([np.random.default_rng(key).random(length) for key in keys]))


def respond(
    model,
    tokenizer,
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
    kind: torch.dtype,
    numbers: torch.Tensor | None = None,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield `(indices, responses)` batch by batch, longest prompts first (so the time left is not underestimated).

    Args:
        prompts: lists of token ids.
        numbers: (len(prompts), max_new_tokens) from `uniforms`; None decodes greedily.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        drawn = None if numbers is None else numbers[batch]
        with models.autocast(kind):
            result = generate(
                model,
                [prompts[i] for i in batch],
                stop_ids(model, tokenizer),
                tokenizer.pad_token_id,
                max_new_tokens,
                drawn,
            )
        yield batch, result.responses


def sample(model, tokenizer, prompts, ids: list[str], samples: int, config, kind) -> list[list[list[int]]]:
    """`samples` responses (token ids) to each prompt; `config` gives seed, batch_size and max_new_tokens."""
    numbers = uniforms(config.seed, ids, samples, config.max_new_tokens)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    found: list = [None] * len(repeated)
    for indices, responses in respond(
        model, tokenizer, repeated, config.batch_size, config.max_new_tokens, kind, numbers
    ):
        for i, response in zip(indices, responses, strict=True):
            found[i] = response
    return [found[i : i + samples] for i in range(0, len(found), samples)]
