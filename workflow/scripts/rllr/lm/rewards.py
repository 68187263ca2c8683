"""Trained reward models: what they are, loading one, and the scores that it gives to responses.

A reward model scores a response by a linear head on the hidden state of its last token (`head`, as published), or by
how much likelier its adapter makes the response than the merged model does (`log_ratio`, the implicit reward of DPO,
Rafailov et al. 2023, eq. 5): that one starts from what the model knows and needs fewer pairs.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from rllr.cli import UserError
from rllr.files import read_json
from rllr.lm import models
from rllr.lm.packing import Packed, by_size, shares_prompts

SCORE = "score.json"  # beside a log_ratio adapter: {"beta": ...}


def ratio_beta(adapter: Path | str) -> float | None:
    """beta of a log_ratio reward model's adapter; None: it has a head."""
    path = Path(adapter) / SCORE
    return read_json(path)["beta"] if path.is_file() else None


def trunk_of(model) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(the model without PEFT's wrapper, its layers without output layer or head)."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
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
    losses = F.cross_entropy(logits.float() / temperature, batch.tokens[batch.kept], reduction="none")
    return torch.zeros(batch.kept.shape, device=hidden.device).masked_scatter(batch.kept, -losses)


@dataclass
class Reward:
    """A loaded reward model.

    Attributes:
        model: PEFT model: a SEQ_CLS one, or a causal one whose adapters off give the merged model.
        beta: scale of the log-ratio; None: the model has a head.
    """

    model: torch.nn.Module
    beta: float | None

    def __call__(self, batch: Packed) -> torch.Tensor:
        """(N,) fp32 scores."""
        plain, trunk = trunk_of(self.model)

        def hidden() -> torch.Tensor:
            return trunk(**batch.inputs(), use_cache=False).last_hidden_state

        if self.beta is None:
            return plain.score(hidden()[batch.group, batch.last()])[:, 0, 0]
        unembed = plain.get_output_embeddings()
        own = log_likelihood(hidden(), unembed, batch)
        with self.model.disable_adapter():
            merged = log_likelihood(hidden(), unembed, batch)
        return self.beta * (own - merged).sum(1)


def load_reward(base: Path | str, adapter: Path | str, kind: torch.dtype, attention: str = "auto") -> Reward:
    """A trained reward model on the device, in eval mode.

    Raises:
        UserError: the adapter is not a reward model's.
    """
    from peft import PeftModel

    beta, found = ratio_beta(adapter), read_json(Path(adapter) / "adapter_config.json").get("task_type")
    if beta is None and found != "SEQ_CLS":
        raise UserError(f"{adapter}: expected the adapter of a reward model (task type SEQ_CLS), found {found}")
    load = models.load_scorer if beta is None else models.load_causal
    model = PeftModel.from_pretrained(load(base, kind, attention), adapter)
    models.cast_weights_not_activations(model)
    return Reward(model.to(models.device()).eval(), beta)


@torch.no_grad()
def in_batches(
    function, model, tokenizer, prompts: list[list[int]], responses: list[list[int]], batch_size: int, kind,
    progress: str = "",
) -> list[float]:  # fmt: skip
    """`function(Packed) -> (N,)` over any number of responses to prompts (token ids), `batch_size` side by side.

    Args:
        model: decides whether responses share their prompt. progress: what the progress bar says.
    """
    from tqdm import tqdm

    found, shared = [0.0] * len(prompts), shares_prompts(model)
    with tqdm(total=len(prompts), desc=progress, disable=not progress, mininterval=2) as bar:
        for numbers in by_size(prompts, responses, batch_size):
            own = ([part[i] for i in numbers] for part in (prompts, responses))
            batch = Packed.build(*own, tokenizer.pad_token_id, models.device(), kind, shared)
            with models.autocast(kind):
                values = function(batch)
            for i, value in zip(numbers, values.tolist(), strict=True):
                found[i] = value
            bar.update(len(numbers))
    return found


def scores(reward: Reward, tokenizer, prompts, responses, batch_size: int, kind, progress: str = "") -> list[float]:
    """The reward of each response to its prompt."""
    return in_batches(reward, reward.model, tokenizer, prompts, responses, batch_size, kind, progress)
