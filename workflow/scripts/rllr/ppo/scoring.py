"""Phase 2: one scalar reward per response, from reward models or from the gold label."""

import math
from dataclasses import dataclass

import torch

from rllr.tasks import Task, agrees, read_label

EPSILON = 1e-8


def is_correct(text: str, row: dict, task: Task) -> bool | None:
    """Whether the label read from a response is the gold one; None where the gold label is not known."""
    if "label" not in row:
        return None
    return agrees(read_label(text, task), row["label"], task)


def mix(label: torch.Tensor | None, rationale: torch.Tensor | None, threshold: float | None) -> torch.Tensor:
    """The reward of the method, Liao et al. 2024, (B,).

    rlhf: r_rationale; rllr and rlvr: r_label; rllr_mix and rlvr_mix: min(r_label, tau) + r_rationale.

    Args:
        label, rationale: (B,) raw rewards; None where the method has none.
        threshold: tau on the raw scale of `label`; only read when both are given.
    """
    if rationale is None:
        return label
    if label is None:
        return rationale
    return label.clamp(max=threshold) + rationale


@dataclass
class RunningMoments:
    """Mean and unbiased standard deviation of all scores so far (Chan et al.'s parallel update, in float64)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def update(self, scores: torch.Tensor) -> None:
        """Take in a batch of scores, (B,), over all processes."""
        scores = scores.double()
        n, mean = len(scores), scores.mean().item()
        delta = mean - self.mean
        self.m2 += ((scores - mean) ** 2).sum().item() + delta**2 * self.count * n / (self.count + n)
        self.count += n
        self.mean += delta * n / self.count

    @property
    def std(self) -> float:
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0

    def normalise(self, scores: torch.Tensor) -> torch.Tensor:
        """(score - mean) / (std + eps)."""
        return ((scores.double() - self.mean) / (self.std + EPSILON)).float()
