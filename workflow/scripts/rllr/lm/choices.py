"""How likely a model holds each of several continuations of a text."""

import torch
from transformers import PreTrainedModel

from rllr.lm.generation import Reading, positions_for, read
from rllr.lm.padding import fill


@torch.no_grad()
def continuation_logprobs(
    model: PreTrainedModel,
    prefixes: list[list[int]],
    continuations: list[list[list[int]]],
    pad: int,
    known: Reading | None = None,
    rests: list[list[int]] | None = None,
) -> list[list[float]]:
    """Log-probability of each continuation after its prefix: prefixes are read once, then all continuations at once.

    Args:
        model: a causal language model (PEFT or plain) in eval mode.
        prefixes: B lists of token ids. continuations: for each prefix lists of token ids, none of them empty.
        known: what was kept of reading the prefixes before. rests: B lists of token ids that stand between prefix and
            continuation.
    """
    device = next(model.parameters()).device
    known = known or read(model, prefixes, pad)
    cache, mask, positions = known.without_last()

    def more(tokens: list[list[int]], **extra: int | torch.Tensor) -> torch.Tensor:
        """Logits (rows, longest, V) of tokens behind what the cache holds."""
        nonlocal mask, positions
        ids, there = fill(tokens, pad, device)
        mask, places = torch.cat([mask, there], dim=1), positions + torch.arange(ids.shape[1], device=device)
        positions = positions + there.sum(1, keepdim=True)
        extra |= positions_for(model, places)
        return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits

    # Each prefix once, up to its last token, whose own prediction is what the first token of a continuation needs.
    ahead = [[*prefix[-1:], *rest] for prefix, rest in zip(prefixes, rests or [[]] * len(prefixes), strict=True)]
    if max(map(len, ahead)) > 1:
        more([tokens[:-1] for tokens in ahead], logits_to_keep=1)
    owner = [b for b, own in enumerate(continuations) for _ in own]
    flat = [continuation for own in continuations for continuation in own]
    rows = torch.tensor(owner, device=device)
    if cache.layers:
        cache.batch_select_indices(rows)
    mask, positions = mask[rows], positions[rows]
    logits = more([[ahead[b][-1], *continuation[:-1]] for b, continuation in zip(owner, flat, strict=True)])
    wanted, there = fill(flat, pad, device)
    found = logits.float().log_softmax(-1).gather(2, wanted[:, :, None])[:, :, 0] * there
    values = iter(found.sum(1).tolist())
    return [[next(values) for _ in own] for own in continuations]
