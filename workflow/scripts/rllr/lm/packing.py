"""Prompts and their responses as one forward pass, in which what several responses share is computed once.

A group is a prompt with its responses side by side; each response sees the prompt and itself, at positions that run on
from the prompt. Outputs and gradients are those of separate passes (Prefix Grouper, arXiv 2506.05433), for the samples
of a prompt as for the two sides of a pair.
"""

import inspect
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from rllr.base import NO_SHARING
from rllr.cli import log
from rllr.lm import models


@dataclass
class Packed:
    """N responses in G groups.

    Attributes:
        ids: (G, T) prompt, its responses one after the other, padding.
        positions: (G, T) position of each token; None: its column.
        mask: (G, 1, T, T) to be added to attention weights; None: each group has one response, and since padding comes
            last, causal attention needs no mask.
        group: (N, 1) the group of each response.
        predicts: (N, R) column whose hidden state predicts response token j (for padding: column 0).
        places: (N, R) column of response token j (for padding: column 0).
        tokens: (N, R) response token ids.
        kept: (N, R) bool, true on response tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor | None
    mask: torch.Tensor | None
    group: torch.Tensor
    predicts: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor
    kept: torch.Tensor

    @classmethod
    def build(
        cls,
        prompts: list[list[int]],
        responses: list[list[int]],
        pad: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        shared: bool = True,
    ) -> "Packed":
        """Lay out N prompts and responses (token ids); neighbours with the same prompt become one group.

        Args:
            dtype: of the mask: the backbone's. shared: False makes every response a group of its own.
        """
        numbers = range(len(prompts))
        groups = [list(g) for _, g in groupby(numbers, key=lambda i: prompts[i])] if shared else [[i] for i in numbers]
        width = max(map(len, responses))
        rows, positions, segments = [], [], []
        group, predicts, places = [], [], []
        for number, members in enumerate(groups):
            prompt = prompts[members[0]]
            row, at, segment = list(prompt), list(range(len(prompt))), [0] * len(prompt)
            for place, i in enumerate(members, 1):
                start, length = len(row), len(responses[i])
                gap = [0] * (width - length)
                places.append([*range(start, start + length), *gap])
                predicts.append([len(prompt) - 1, *range(start, start + length - 1), *gap][:width])
                group.append([number])
                row += responses[i]
                at += range(len(prompt), len(prompt) + length)
                segment += [place] * length
            rows.append(row)
            positions.append(at)
            segments.append(segment)
        longest = max(map(len, rows))

        def tensor(lists: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([part + [filler] * (longest - len(part)) for part in lists], device=device)

        mask = columns = None
        if len(groups) < len(prompts):
            columns, part = tensor(positions, 0), tensor(segments, -1)
            seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
            hidden = ~(seen & torch.ones(longest, longest, dtype=torch.bool, device=device).tril())
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            mask = mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]
        filled = [r + [pad] * (width - len(r)) for r in responses]
        kept = [[j < len(r) for j in range(width)] for r in responses]
        rest = (torch.tensor(part, device=device) for part in (group, predicts, places, filled, kept))
        return cls(tensor(rows, pad), columns, mask, *rest)

    def inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        extra = {} if self.mask is None else {"position_ids": self.positions, "attention_mask": self.mask}
        return {"input_ids": self.ids, **extra}

    def last(self) -> torch.Tensor:
        """(N, 1) column of each response's last token, EOS included."""
        return self.places.gather(1, self.kept.sum(1, keepdim=True) - 1)


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether a model computes groups: it takes positions, and a mask of one's own (not ALiBi, not flash-attention)."""
    plain = models.without_peft(model)
    takes = "position_ids" in inspect.signature(plain.forward).parameters
    return takes and plain.config.model_type not in NO_SHARING and "flash" not in plain.config._attn_implementation


def describe_sharing(shared: bool, what: str) -> None:
    """A line in the log: whether the prompt of several `what` is computed once."""
    apart = "for each of them (ALiBi or flash-attention: no mask of one's own)"
    log(f"{what}: their prompt is computed {'once' if shared else apart}")


def by_size(prompts: list[list[int]], responses: list[list[int]], batch_size: int) -> list[list[int]]:
    """Numbers of responses in batches of at most `batch_size`, longest first; those of one prompt stay together.

    A prompt with more responses than that is split.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    parts = [g[start : start + batch_size] for g in groups.values() for start in range(0, len(g), batch_size)]
    parts.sort(key=lambda part: -len(prompts[part[0]]) - sum(len(responses[i]) for i in part))
    batches: list[list[int]] = []
    for part in parts:
        if batches and len(batches[-1]) + len(part) <= batch_size:
            batches[-1] += part
        else:
            batches.append(list(part))
    return batches
