"""Phase 1: sample responses to a batch of prompts from the policy."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from rllr.lm import models
from rllr.lm.generation import generate
from rllr.ppo.backbone import Backbone


@dataclass
class Rollout:
    """B sampled responses.

    Attributes:
        rows: the prompts' data rows.
        prompts, responses: B lists of token ids; a response ends with a stop token unless it ran out of room.
        logprobs: B lists, log-probability of each token under the distribution it was sampled from ("old").
        entropies: B lists, entropy of that distribution in nats.
    """

    rows: list[dict]
    prompts: list[list[int]]
    responses: list[list[int]]
    logprobs: list[list[float]]
    entropies: list[list[float]]


def uniforms(seed: int, epoch: int, indices: list[int], length: int) -> torch.Tensor:
    """(B, length) numbers in [0, 1) that depend on seed, epoch and prompt index alone.

    So a sample does not depend on the batch, the number of processes, or on where a run was interrupted.
    """
    # Not torch.Generator: its CPU engine reads only the low 32 bits of a seed.
    numbers = [np.random.default_rng([seed, epoch, index]).random(length) for index in indices]
    return torch.from_numpy(np.stack(numbers))


def roll_out(
    backbone: Backbone,
    rows: list[dict],
    prompts: list[list[int]],
    numbers: torch.Tensor,
    stops: Collection[int],
    pad: int,
    temperature: float,
    batch_size: int,
) -> Rollout:
    """Sample one response per prompt, `batch_size` side by side, from the whole distribution (no top-k, no top-p).

    Args:
        numbers: (B, max_new_tokens) from `uniforms`.
    """
    backbone.use("policy")
    backbone.model.eval()
    rollout = Rollout(rows, prompts, *([None] * len(prompts) for _ in range(3)))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with models.autocast(backbone.kind):
            result = generate(
                backbone.model, [prompts[i] for i in batch], stops, pad, numbers.shape[1], numbers[batch], temperature
            )
        for place, i in enumerate(batch):
            rollout.responses[i] = result.responses[place]
            rollout.logprobs[i] = result.logprobs[place]
            rollout.entropies[i] = result.entropies[place]
    return rollout
