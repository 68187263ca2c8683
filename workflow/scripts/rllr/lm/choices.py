"""How likely a model holds each of several continuations of a text."""

import inspect

import torch
from transformers.cache_utils import Cache

from rllr.lm import models
from rllr.lm.generation import RoomyLayer
from rllr.lm.padding import fill


@torch.no_grad()
def continuation_logprobs(
    model, prefixes: list[list[int]], continuations: list[list[list[int]]], pad: int
) -> list[list[float]]:
    """Log-probability of each continuation after its prefix: prefixes are read once, then all continuations at once.

    Args:
        model: a causal language model (PEFT or plain) in eval mode.
        prefixes: B lists of token ids. continuations: for each prefix lists of token ids, none of them empty.
    """
    device = next(model.parameters()).device
    plain = models.without_peft(model)
    takes_positions = "position_ids" in inspect.signature(plain.forward).parameters
    ids, mask = fill(prefixes, pad, device, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = Cache(layer_class_to_replicate=RoomyLayer)

    def read(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **extra) -> torch.Tensor:
        extra |= {"position_ids": positions} if takes_positions else {}
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return output.logits.float().log_softmax(-1)

    flat = [continuation for own in continuations for continuation in own]
    owner = torch.tensor([b for b, own in enumerate(continuations) for _ in own], device=device)
    first = read(ids, mask, positions, logits_to_keep=torch.tensor([-1], device=device))[:, -1]
    total = first[owner, torch.tensor([c[0] for c in flat], device=device)]
    if max(map(len, flat)) > 1:
        cache.batch_select_indices(owner)
        given, _ = fill([c[:-1] for c in flat], pad, device)
        wanted, there = fill([c[1:] for c in flat], pad, device)
        places = positions[owner, -1:] + 1 + torch.arange(given.shape[1], device=device)
        found = read(given, torch.cat([mask[owner], there], dim=1), places)
        total = total + (found.gather(2, wanted[:, :, None])[:, :, 0] * there).sum(1)
    found = iter(total.tolist())
    return [[next(found) for _ in own] for own in continuations]
