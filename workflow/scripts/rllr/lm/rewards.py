"""Trained reward models: what they are, loading one, and the scores that it gives to responses.

A reward model scores a response by a linear head on the hidden state of its last token (`head`, as published), or by
how likely its adapter holds the response's claim, its first words up to a comma or a line break (`claim`): where
rationales begin with what they claim, that is the label. The second starts from what the policy knows, needs fewer
pairs, and is not distracted by what else the response says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rllr.cli import UserError
from rllr.files import read_json
from rllr.lm import fitting, models
from rllr.lm.claims import claim_ends, claim_part, scored_part
from rllr.lm.packing import Packed, by_size, shares_prompts

SCORE = "score.json"  # beside an adapter: {"score": "claim"}; without it the adapter has a head


def scores_claims(adapter: Path | str) -> bool:
    """Whether a reward model's adapter scores by the claim's likelihood."""
    path = Path(adapter) / SCORE
    return path.is_file() and read_json(path)["score"] == "claim"


def trunk_of(model: PreTrainedModel) -> tuple[Any, Any]:
    """(the model without PEFT's wrapper, its layers without output layer or head)."""
    plain = models.without_peft(model)
    return plain, getattr(plain, plain.base_model_prefix)


def log_likelihood(
    hidden: torch.Tensor, unembed: torch.nn.Module, batch: Packed, temperature: float = 1.0
) -> torch.Tensor:
    """(N, R) log-probabilities of the response tokens, 0 on padding; logits at those positions only.

    Args:
        hidden: (G, T, H) last hidden states.
    """
    rows = batch.group.expand_as(batch.kept)[batch.kept]
    logits = unembed(hidden[rows, batch.predicts[batch.kept]])
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    losses = F.cross_entropy(logits, batch.tokens[batch.kept], reduction="none")
    return torch.zeros(batch.kept.shape, device=hidden.device).masked_scatter(batch.kept, -losses)


@dataclass
class Reward:
    """A loaded reward model.

    Attributes:
        model: PEFT model: a SEQ_CLS one, or a causal one that scores claims.
        ends: (V,) from `claim_ends`; None: the model has a head.
    """

    model: Any
    ends: torch.Tensor | None

    def __call__(self, batch: Packed) -> torch.Tensor:
        """(N,) fp32 scores."""
        plain, trunk = trunk_of(self.model)
        hidden = trunk(**batch.inputs(), use_cache=False).last_hidden_state
        if self.ends is None:
            return plain.score(hidden[batch.group, batch.last()])[:, 0, 0]
        found = log_likelihood(hidden, plain.get_output_embeddings(), batch)
        return (found * claim_part(batch.tokens, batch.kept, self.ends)).sum(1)


def load_reward(base: Path | str, adapter: Path | str, dtype: torch.dtype, attention: str = "auto") -> Reward:
    """A trained reward model on the device, in eval mode.

    Raises:
        UserError: the adapter is not a reward model's.
    """
    from peft import PeftModel

    claims, found = scores_claims(adapter), read_json(Path(adapter) / "adapter_config.json").get("task_type")
    if not claims and found != "SEQ_CLS":
        raise UserError(f"{adapter}: expected the adapter of a reward model (task type SEQ_CLS), found {found}")
    plain = (models.load_causal if claims else models.load_scorer)(base, dtype, attention)
    ends = claim_ends(models.load_tokenizer(base), plain.config.vocab_size) if claims else None
    model = PeftModel.from_pretrained(plain, adapter)
    models.cast_weights_not_activations(model)
    return Reward(model.to(models.device()).eval(), ends)


@torch.no_grad()
def in_batches(
    function: Callable[[Packed], torch.Tensor], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]], responses: list[list[int]], batch_size: int, dtype: torch.dtype, progress: str = "",
) -> list[float]:  # fmt: skip
    """`function(Packed) -> (N,)` over any number of responses to prompts (token ids), `batch_size` side by side.

    Args:
        model: decides whether responses share their prompt. progress: what the progress bar says.
    """
    from torch.distributed.fsdp import FSDPModule
    from tqdm import tqdm

    found, shared, sharded = [0.0] * len(prompts), shares_prompts(model), isinstance(model, FSDPModule)

    def values_of(numbers: list[int]) -> list[float]:
        own, answers = ([part[i] for i in numbers] for part in (prompts, responses))
        batch = Packed.build(own, answers, tokenizer.pad_token_id, models.device(), dtype, shared)
        with models.autocast(dtype):
            return function(batch).tolist()

    with tqdm(total=len(prompts), desc=progress, disable=not progress, mininterval=2) as bar:
        for batch in by_size(prompts, responses, batch_size):
            for numbers, values in fitting.parts("scoring", batch, batch_size, values_of, sharded):
                for i, value in zip(numbers, values, strict=True):
                    found[i] = value
                bar.update(len(numbers))
    return found


def scores(
    reward: Reward, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], responses: list[list[int]],
    batch_size: int, dtype: torch.dtype, progress: str = "",
) -> list[float]:  # fmt: skip
    """The reward of each response to its prompt."""
    read = scored_part(responses, reward.ends)
    return in_batches(reward, reward.model, tokenizer, prompts, read, batch_size, dtype, progress)
