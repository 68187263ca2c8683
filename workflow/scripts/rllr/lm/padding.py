"""Ragged token ids as rectangles."""

import torch


def fill(
    sequences: list[list[int]], pad: int, device: torch.device | str, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids, filled up with `pad` to the longest, and their (B, T) attention mask (1 on real tokens).

    Args:
        left: fill up on the left, as decoding needs it.
    """
    longest = max(map(len, sequences))
    gaps = [[pad] * (longest - len(s)) for s in sequences]
    ids = [gap + s if left else s + gap for s, gap in zip(sequences, gaps, strict=True)]
    ones = [[1] * len(s) for s in sequences]
    mask = [[0] * len(gap) + m if left else m + [0] * len(gap) for m, gap in zip(ones, gaps, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
