"""The registry: every method and reward model, told once. Rules, programs, schemas and documentation read it here.

A new method is one entry of METHODS.
"""

from dataclasses import asdict, dataclass, field

GOLD = "gold"  # a label reward of 1 for the gold label, else 0, in place of a reward model


@dataclass(frozen=True)
class Method:
    """How a model that answers is made.

    Attributes:
        section: the program and the section of config/stages.yaml that trains it: sft, ppo, dpo; None: nothing is
            trained.
        start: the model that its adapter belongs to, `base` or the merged model of `sft_wrat`.
        data: the data file that it is trained on.
        label_reward, rationale_reward: a reward model, GOLD, or None; PPO adds up both, the label reward capped.
        picked_by: the reward model that picks among several samples.
        voted: the label is the one that most of several samples give; else, without picked_by, the greedy answer's.
        like: a method whose section of the model's file it takes, below its own.
        settings: what makes the method itself, laid over the section of its kind, the model's too.
        recipe: in words, for tables and model cards.
    """

    section: str | None
    start: str
    data: str | None
    recipe: str
    label_reward: str | None = None
    rationale_reward: str | None = None
    picked_by: str | None = None
    voted: bool = False
    like: str | None = None
    settings: dict = field(default_factory=dict)

    @property
    def answers_like(self) -> str:
        """The data file whose responses its answers are like."""
        return self.data if self.section == "sft" and self.data else METHODS[self.start].answers_like

    @property
    def reward_models(self) -> list[str]:
        """The reward models that it reads, in training or in prediction; the value function starts from the first."""
        named = [self.label_reward, self.rationale_reward, self.picked_by]
        return [name for name in named if name and name != GOLD]


@dataclass(frozen=True)
class RewardModel:
    """A reward model: the pairs that it is trained on, and whether their two sides differ in the label."""

    data: str
    label_sensitive: bool
    recipe: str


GROUPS = {"samples_per_prompt": 4, "baseline": "leave_one_out"}

METHODS = {
    "sft": Method("sft", "base", "sft_train", "supervised fine-tuning on labels"),
    "sft_wrat": Method("sft", "base", "sft_with_rat_train", "supervised fine-tuning on a rationale and then the label"),
    "sft_wrat_all": Method(
        "sft", "base", "sft_with_rat_all", "sft_wrat on every labelled row that SFT or the label reward model saw",
        like="sft_wrat",
    ),
    "sft_wrat_bon": Method(
        None, "sft_wrat", None, "sft_wrat, the best of several samples by the label reward model", picked_by="rm_rllr"
    ),
    "sft_wrat_vote": Method(None, "sft_wrat", None, "sft_wrat, the label of most of several samples", voted=True),
    "rlhf": Method(
        "ppo", "sft_wrat", "unsupervised", "sft_wrat, then PPO against a reward model of rationales (RLHF)",
        rationale_reward="rm_rlhf",
    ),
    "rllr": Method(
        "ppo", "sft_wrat", "unsupervised", "sft_wrat, then PPO against a label-sensitive reward model (RLLR)",
        label_reward="rm_rllr",
    ),
    "rllr_mix": Method(
        "ppo", "sft_wrat", "unsupervised",
        "sft_wrat, then PPO against a label-sensitive reward, capped, plus a rationale reward (RLLR-mixed)",
        label_reward="rm_rllr", rationale_reward="rm_rlhf",
    ),
    "rllr_rloo": Method(
        "ppo", "sft_wrat", "unsupervised", "RLLR with groups of responses in place of a critic (RLOO)",
        label_reward="rm_rllr", settings=GROUPS,
    ),
    "rllr_mix_rloo": Method(
        "ppo", "sft_wrat", "unsupervised", "RLLR-mixed with groups of responses in place of a critic (RLOO)",
        label_reward="rm_rllr", rationale_reward="rm_rlhf", settings=GROUPS,
    ),
    "dpo": Method(
        "dpo", "sft_wrat", "rllr_reward_train", "sft_wrat, then DPO with an SFT term on label-sensitive pairs"
    ),
    "rlvr": Method(
        "ppo", "sft_wrat", "unsupervised", "sft_wrat, then PPO rewarded for the gold label", label_reward=GOLD
    ),
    "rlvr_mix": Method(
        "ppo", "sft_wrat", "unsupervised", "sft_wrat, then PPO rewarded for the gold label and for the rationale",
        label_reward=GOLD, rationale_reward="rm_rlhf",
        settings={"label_reward_threshold": 1.0},  # no reward model to take tau from: the reward of the gold label
    ),
}  # fmt: skip

REWARD_MODELS = {
    "rm_rlhf": RewardModel(
        "rlhf_reward_train", False, "rationale-sensitive pairs: one label, a better and a worse rationale"
    ),
    "rm_rllr": RewardModel("rllr_reward_train", True, "label-sensitive pairs: the gold label and a wrong one"),
}

# Every stage with a config of its own -> its section of config/stages.yaml, and the program that runs it.
SECTIONS = {
    **{name: method.section for name, method in METHODS.items() if method.section},
    **dict.fromkeys(REWARD_MODELS, "reward"),
    "predict": "predict",
    "quality": "predict",
}
PROGRAM_OF = {**{stage: f"{section}.py" for stage, section in SECTIONS.items()}, "quality": "sample_policy.py"}


def decides(stage: str) -> dict[str, object]:
    """What the entry of a method or reward model says of its result, beside settings, which its config holds."""
    entry = METHODS.get(stage) or REWARD_MODELS.get(stage)
    return {k: v for k, v in asdict(entry).items() if k not in ("recipe", "settings", "like")} if entry else {}


def trained_by(section: str) -> list[str]:
    """The methods that the program of `section` trains."""
    return [name for name, method in METHODS.items() if method.section == section]
