"""Phase 2: one scalar reward per response, from reward models or from the gold label."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from rllr.cli import UserError
from rllr.files import read_json
from rllr.methods import GOLD, METHODS
from rllr.tasks import Task, agrees, read_label

EPSILON = 1e-8


@dataclass
class Rewards:
    """Where the reward of a method comes from.

    Attributes:
        label: reward-model role of the label reward, "gold" for 1 / 0 by the gold label (times `threshold` in
            rlvr_mix), or None.
        rationale: reward-model role of the rationale reward, or None.
        threshold: tau, or None where nothing is capped.
    """

    label: str | None
    rationale: str | None
    threshold: float | None

    @property
    def gold(self) -> float:
        """What the gold label earns."""
        return 1.0 if self.threshold is None else self.threshold


@dataclass(frozen=True)
class Threshold:
    """tau, and where it comes from; None where the method caps nothing."""

    value: float | None
    origin: str


def threshold(name: str, setting: float | str, rewards: Path, of_claims: bool = False) -> Threshold:
    """tau of the method `name`.

    Args:
        setting: the config's number, or `auto`. rewards: folder that holds the reward models' stages.
        of_claims: what is rewarded is a claim's share (`LabelChoices`), 1 at most, which `auto` does not cap.

    Raises:
        UserError: `auto` without a label reward model, or without validation pairs.
    """
    label, rationale = METHODS[name].label_reward, METHODS[name].rationale_reward
    if not (label and rationale):
        return Threshold(None, "not used")
    if setting != "auto":
        return Threshold(float(setting), "config")
    if label == GOLD:
        raise UserError(f"{name}: label_reward_threshold: auto needs a label reward model; give a number")
    if of_claims:
        return Threshold(None, "not needed: what is rewarded is a claim's share of its prompt's claims")
    median = read_json(rewards / label / "metrics.json").get("chosen_median_validation")
    if median is None:
        raise UserError(
            f"{name}: label_reward_threshold: auto needs label_sensitive_pairs_for_validation.jsonl in the data; "
            "give a number instead"
        )
    return Threshold(median, f"median reward of chosen validation responses, {label}/metrics.json")


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
        threshold: tau on the raw scale of `label`, or None: no cap; only read when both are given.
    """
    if rationale is None:
        assert label is not None
        return label
    if label is None:
        return rationale
    return (label if threshold is None else label.clamp(max=threshold)) + rationale


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

    @property
    def scale(self) -> float:
        """What `normalise` divides by; 1 where all scores so far are one."""
        return self.std + EPSILON if self.std else 1.0

    def normalise(self, scores: torch.Tensor) -> torch.Tensor:
        """(score - mean) / (std + eps)."""
        return ((scores.double() - self.mean) / self.scale).float()
