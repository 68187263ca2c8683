"""Reward models: the pairwise loss of the recipe, scores of responses, and their evaluation on pairs."""

from collections import defaultdict

import torch
from torch.nn import functional as F


def response_scores(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The score of each sequence: the head's output at the last token its mask covers, EOS included.

    Args:
        scores: (B, T) per-token scores. mask: (B, T), 1 on real tokens; padding may stand on either side.

    Returns:
        (B,) scores.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.long() * positions).argmax(dim=1)
    return scores.gather(1, last[:, None])[:, 0]


def pairwise_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_ids: torch.Tensor, rejected_ids: torch.Tensor, pad: int
) -> torch.Tensor:
    """-log sigmoid(chosen - rejected), averaged over a pair's tokens from the first that differs, then over pairs.

    The span ends with the longer side; past its end the shorter side counts with its last score (the published
    code, after LLaMA-Factory, reads scores of padding there).

    Args:
        chosen, rejected: (B, T) per-token scores, right-padded. chosen_ids, rejected_ids: (B, T) token ids.

    Returns:
        (B,) losses; 0 for a pair of equal sides.
    """
    positions = torch.arange(chosen.shape[1], device=chosen.device)
    ends = torch.stack([(ids != pad).sum(1) for ids in (chosen_ids, rejected_ids)])  # (2, B) lengths
    held = [s.gather(1, torch.minimum(positions[None], end[:, None] - 1)) for s, end in zip((chosen, rejected), ends)]
    differ = chosen_ids != rejected_ids
    first = differ.float().argmax(1)
    span = (positions >= first[:, None]) & (positions < ends.max(0).values[:, None]) & differ.any(1, keepdim=True)
    losses = -F.logsigmoid(held[0] - held[1])
    return (losses * span).sum(1) / span.sum(1).clamp(min=1)


def pad_right(sequences: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and attention mask of ragged sequences."""
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=device)
    return ids, mask


@torch.no_grad()
def score_sequences(model, sequences: list[list[int]], pad: int, batch_size: int, progress: str = "") -> torch.Tensor:
    """Scores of whole sequences (prompt + response) by a SEQ_CLS reward model, length-sorted; (N,) fp32 on the CPU.

    The model's own `logits` already are the head's output at the last token that is not padding.
    """
    from tqdm import tqdm

    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    scores = torch.empty(len(sequences))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=not progress, mininterval=2):
        batch = order[start : start + batch_size]
        ids, mask = pad_right([sequences[i] for i in batch], pad, model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        scores[batch] = logits[:, 0].float().cpu()
    return scores


def pair_metrics(rows: list[dict], chosen: torch.Tensor, rejected: torch.Tensor) -> dict:
    """Pair accuracy (ties count half) and mean margin, overall and per task; all pairs' scores for plots."""
    wins = defaultdict(list)
    margins = defaultdict(list)
    for row, c, r in zip(rows, chosen.tolist(), rejected.tolist(), strict=True):
        for key in ("all", row["task"]):
            wins[key].append(float(c > r) + 0.5 * (c == r))
            margins[key].append(c - r)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def summary(key: str) -> dict:
        return {"pair_accuracy": mean(wins[key]), "mean_margin": mean(margins[key]), "n": len(wins[key])}

    return {**summary("all"), "tasks": {task: summary(task) for task in sorted(wins) if task != "all"}}
