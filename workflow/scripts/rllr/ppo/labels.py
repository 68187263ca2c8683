"""All labels of a prompt's task as the first words of its answer, and the reward of each.

Where an answer begins with its label, the label reward's expectation is a sum over a handful of labels: its gradient
is computed instead of estimated from samples, whose noise is what RL on labels waits for.
"""

from dataclasses import dataclass, field

import torch

from rllr import ranks
from rllr.cli import UserError
from rllr.lm.packing import Packed
from rllr.lm.rewards import claim_ends
from rllr.methods import GOLD
from rllr.ppo.backbone import Backbone
from rllr.ppo.rollout import Rollout
from rllr.ppo.scoring import Rewards, RunningMoments
from rllr.tasks import Task


@dataclass
class LabelChoices:
    """Attributes:
    claims: task -> label -> token ids of the claim, "It is label,".
    ends: (V,) the tokens that end a claim.
    source: where the label reward comes from. normalised: whether rewards are divided by their deviation so far,
        that of `moments`, of the capped label rewards.
    """

    claims: dict[str, dict[str, list[int]]]
    ends: torch.Tensor
    source: Rewards
    normalised: bool = True
    moments: RunningMoments = field(default_factory=RunningMoments)

    @property
    def scale(self) -> float:
        """Deviation of the label rewards so far: the unit of all rewards, where they are normalised."""
        return self.moments.std or 1.0

    @classmethod
    def of(
        cls, tasks: dict[str, Task], tokenizer, source: Rewards, backbone: Backbone, normalised: bool
    ) -> "LabelChoices":
        """Raises UserError where a task has no labels, or the label reward needs whole answers."""
        if source.label != GOLD and source.label not in backbone.claims:
            raise UserError(
                f"baseline: all_labels needs a label reward of claims (rm_rllr: {{score: claim}}) or of the gold "
                f"label, found {source.label}"
            )
        if without := [name for name, task in tasks.items() if not task.labels]:
            raise UserError(f"baseline: all_labels: task {without[0]} has no labels to sum over; use leave_one_out")
        claims = {
            name: {label: tokenizer(f"It is {label},", add_special_tokens=False)["input_ids"] for label in task.labels}
            for name, task in tasks.items()
        }
        return cls(claims, claim_ends(tokenizer, backbone.plain.config.vocab_size), source, normalised)

    def pack(self, rollout: Rollout, rows: list[int], backbone: Backbone, pad: int) -> tuple[list, Packed]:
        """(row, label) of each choice, and the choices after their prompts, which they share."""
        owners = [(i, label) for i in rows for label in self.claims[rollout.rows[i]["task"]]]
        prompts = [rollout.prompts[i] for i, _ in owners]
        choices = [self.claims[rollout.rows[i]["task"]][label] for i, label in owners]
        return owners, backbone.pack(prompts, choices, pad)

    def rewards(self, rollout: Rollout, owners: list, batch: Packed, backbone: Backbone) -> torch.Tensor:
        """(N,) label reward of each choice, capped at tau where the method has one."""
        if self.source.label == GOLD:
            right = [rollout.rows[i]["label"] == label for i, label in owners]
            found = torch.tensor(right, dtype=torch.float32, device=backbone.device)
        else:
            found = backbone.scores(str(self.source.label), batch)
        tau = self.source.threshold
        return found if tau is None or self.source.label == GOLD else found.clamp(max=tau)

    def gain(self, reward: torch.Tensor, owners: list) -> torch.Tensor:
        """(N,) rewards above the least of their prompt, in units of their deviation so far (N,) -> (N,)."""
        if self.normalised:
            self.moments.update(torch.tensor(ranks.gather(reward.tolist())))
        least: dict[int, float] = {}
        for (i, _), value in zip(owners, reward.tolist(), strict=True):
            least[i] = min(value, least.get(i, value))
        floor = torch.tensor([least[i] for i, _ in owners], device=reward.device)
        return (reward - floor) / self.scale
