"""Phase 1: sample responses to a batch of prompts from the policy."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rllr.lm.sampling import respond
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


def keys(seed: int, epoch: int, indices: list[int], samples: int) -> list[list[int]]:
    """What decides each response to the prompts `indices`: seed, epoch, prompt and, of several, its number."""
    return [[seed, epoch, i, *([j] if samples > 1 else [])] for i in indices for j in range(samples)]


def roll_out(
    backbone: Backbone,
    rows: list[dict],
    prompts: list[list[int]],
    numbers: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    batch_size: int,
    samples: int = 1,
) -> Rollout:
    """Sample responses from the whole distribution (no top-k, no top-p), `batch_size` side by side.

    Args:
        numbers: (len(prompts) * samples, max_new_tokens) from `uniforms`.
        samples: responses to each prompt, next to each other in the result.
    """
    backbone.use("policy")
    backbone.model.eval()
    empty: list[Any] = [None] * len(numbers)
    repeated = [row for row in rows for _ in range(samples)], [prompt for prompt in prompts for _ in range(samples)]
    rollout = Rollout(*repeated, [*empty], [*empty], [*empty])
    drawn = respond(
        backbone.model, tokenizer, prompts, batch_size, numbers.shape[1], backbone.dtype, numbers, samples, temperature
    )
    for indices, result in drawn:
        for place, i in enumerate(indices):
            rollout.responses[i] = result.responses[place]
            rollout.logprobs[i] = result.logprobs[place]
            rollout.entropies[i] = result.entropies[place]
    return rollout
