"""All claims that a prompt's answer could begin with, one for each label, and the reward of each.

Where an answer begins by claiming its label, the label reward's expectation is a sum over a handful of claims: its
gradient is computed instead of estimated from samples, whose noise is what RL on labels waits for.
"""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from rllr import ranks
from rllr.lm.claims import claim_ends, claim_of
from rllr.lm.packing import Packed
from rllr.methods import GOLD
from rllr.ppo.backbone import Backbone
from rllr.ppo.rollout import Rollout
from rllr.ppo.scoring import Rewards, RunningMoments


@dataclass
class LabelChoices:
    """Attributes:
    claims: task -> label -> its claim, from `claims_by_label`. ids: a claim's token ids.
    ends: (V,) the tokens that end a claim.
    source: where the label reward comes from. normalised: whether rewards are divided by their deviation so far,
        that of `moments`, of the label rewards.
    """

    claims: dict[str, dict[str, str]]
    ids: dict[str, list[int]]
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
        cls,
        claims: dict[str, dict[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        source: Rewards,
        backbone: Backbone,
        normalised: bool,
    ) -> "LabelChoices":
        texts = {claim for by_label in claims.values() for claim in by_label.values()}
        ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
        return cls(claims, ids, claim_ends(tokenizer, backbone.plain.config.vocab_size), source, normalised)

    def gold(self, row: dict) -> str:
        """The claim of a row's own label, of a score that of the nearest one known; "" if there is none."""
        known, label = self.claims[row["task"]], row["label"]
        if label in known:
            return known[label]
        try:
            return known[min(known, key=lambda score: abs(float(score) - float(label)))]
        except ValueError:  # a label in words that no training rationale was written for
            return ""

    def pack(self, rollout: Rollout, indices: list[int], backbone: Backbone, pad: int) -> tuple[list, Packed]:
        """(row, claim) of each choice, and the choices after their prompts, which they share."""
        owners = [(i, c) for i in indices for c in dict.fromkeys(self.claims[rollout.rows[i]["task"]].values())]
        return owners, backbone.pack([rollout.prompts[i] for i, _ in owners], [self.ids[c] for _, c in owners], pad)

    def claim(self, response: list[int]) -> str:
        """The claim that a response begins with; "" if it begins with something else."""
        begun = claim_of(response, self.ends)
        return next((text for text, ids in self.ids.items() if ids == begun), "")

    def rewards(self, rollout: Rollout, owners: list, batch: Packed, backbone: Backbone) -> torch.Tensor:
        """(N,) label reward of each choice: what gold earns for the gold claim, 0 for others; or the logarithm of its
        share of the likelihood that the reward model gives all claims of its prompt.

        Shares, as the pairwise loss only compares: it leaves open how likely the claims are together, and that sinks
        by task and in some runs. A share cannot exceed 1, so that a right label stops earning by itself.
        """
        if self.source.label == GOLD:
            right = [self.gold(rollout.rows[i]) == claim for i, claim in owners]
            return self.source.gold * torch.tensor(right, dtype=torch.float32, device=backbone.device)
        found = backbone.scores(str(self.source.label), batch)
        together: dict[int, torch.Tensor] = {}
        for (i, _), value in zip(owners, found, strict=True):
            together[i] = torch.logaddexp(together[i], value) if i in together else value
        return found - torch.stack([together[i] for i, _ in owners])

    def gain(self, rewards: list[float], owners: list) -> list[float]:
        """Rewards above the least of their prompt, in units of their deviation so far, these included."""
        if self.normalised:
            self.moments.update(torch.tensor(ranks.gather(rewards)))
        least: dict[int, float] = {}
        for (i, _), value in zip(owners, rewards, strict=True):
            least[i] = min(value, least.get(i, value))
        return [(value - least[i]) / self.scale for (i, _), value in zip(owners, rewards, strict=True)]
