"""The PPO iteration: 1. roll out, 2. score, 3. advantages, 4. optimise.

Semantics: Liao et al. 2024 (arXiv 2405.19763), engine after LLaMA-Factory on trl 0.7. One iteration takes
`batch_size` prompts and, by default, one optimiser step, so that the ratio starts at 1 and the clip is idle.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from rllr import ranks
from rllr.cli import UserError
from rllr.config import BoolOrAuto, IntOrAuto, shares
from rllr.lm import budget, fitting
from rllr.lm.claims import claim_part, scored_part
from rllr.lm.generation import decoded, stop_ids
from rllr.lm.packing import Packed
from rllr.lm.sampling import uniforms
from rllr.methods import GOLD
from rllr.ppo.advantages import AdaptiveKL, gae, leave_one_out, token_rewards, whiten
from rllr.ppo.backbone import Backbone
from rllr.ppo.labels import LabelChoices
from rllr.ppo.losses import explained_variance, group_policy_loss, policy_loss, value_loss
from rllr.ppo.rollout import Rollout, keys, roll_out
from rllr.ppo.scoring import Rewards, RunningMoments, is_correct, mix
from rllr.tasks import Task, read_label


@dataclass
class PPOConfig:
    """The resolved config of a PPO stage (workflow/schemas/model.schema.yaml describes the keys)."""

    model: str
    stage: str
    seed: int
    precision: str
    attention: str
    lora: dict
    learning_rate: float
    warmup_iterations: int
    epochs: int
    batch_size: int
    micro_batch_size: IntOrAuto  # auto, as the next one, until the run has seen the device
    rollout_batch_size: IntOrAuto
    cutoff: int
    max_new_tokens: IntOrAuto  # `auto` until the run has read the training responses
    temperature: float
    samples_per_prompt: int
    baseline: str
    label_reward_threshold: float | str
    score_norm: bool
    kl_beta: float
    kl_target: float
    kl_horizon: int
    gamma: float
    gae_lambda: float
    updates: int
    update_epochs: int
    clip: float
    value_clip: float
    value_coef: float
    ratio_limit: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: BoolOrAuto  # auto until the stage has seen the device
    save_iterations: int
    validate_iterations: int
    keep: str


# Place of a prompt's first response -> claim -> (its label reward, its log-probability by the reference)
Judged = dict[int, dict[str, tuple[float, float]]]


@dataclass
class Batch:
    """A scored rollout of B responses, longest first; tensors are (B, R) over response tokens unless said."""

    rollout: Rollout
    texts: list[str]
    mask: torch.Tensor  # bool
    old: torch.Tensor  # log-probabilities under the sampling distribution
    advantages: torch.Tensor  # whitened; without a value function not, and (B,) if of whole responses
    # With a value function:
    values: torch.Tensor | None = None
    returns: Any = None  # (B, R), where values are
    value_loss: torch.Tensor | None = None  # sum over response tokens, where `learn_values` has seen to it


@dataclass
class Trainer:
    """State of a PPO run.

    Attributes:
        claims: task -> label -> its claim (`claims_by_label`), where the label reward is one of claims; baseline
            all_labels needs them.
        iterations: of the whole run. iteration: those that are finished.
    """

    config: PPOConfig
    backbone: Backbone
    rewards: Rewards
    tasks: dict[str, Task]
    tokenizer: PreTrainedTokenizerBase
    iterations: int
    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    iteration: int = 0
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __post_init__(self) -> None:
        config = self.config
        shares(config.batch_size, "updates", config.updates, ranks.world())
        self.grouped = config.baseline != "value"  # no value function
        self.exact = config.baseline == "all_labels"
        if self.claims:
            self.choices = LabelChoices.of(self.claims, self.tokenizer, self.rewards, self.backbone, config.score_norm)
        self.of_claims = bool(self.claims) and not self.exact  # else the label reward is of whole responses
        self.single = config.updates * config.update_epochs == 1
        self.kl = AdaptiveKL(config.kl_beta, config.kl_target, config.kl_horizon)
        self.stops = stop_ids(self.backbone.plain, self.tokenizer)
        self.parameters = list(self.backbone.trained().values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        # fp16 gradients underflow without loss scaling; a no-op in bf16 and fp32.
        self.scaler = torch.amp.GradScaler(self.backbone.device.type, enabled=self.backbone.dtype == torch.float16)

    def step(self, rows: list[dict], prompts: list[list[int]], epoch: int, indices: list[int]) -> tuple[dict, list]:
        """One iteration on this process's share of the batch.

        Args:
            rows, prompts: the prompts' data rows and token ids. indices: their places in the prompt file, which,
                with seed and epoch, decide the samples.

        Returns:
            the iteration's metrics over all processes, and this process's scored samples.
        """
        clock = Clock()
        with clock("rollout"):
            rollout = self.roll_out(rows, prompts, epoch, indices)
        with clock("scoring"):
            claims = self.judge(rollout) if self.claims else None
            texts, raw, scores = self.score(rollout, claims)
        with clock("advantages"):
            batch, metrics = self.advantages(rollout, texts, scores, raw.get("rationale"))
        with clock("optimisation"):
            metrics |= self.optimise(batch, claims)
        metrics |= self.statistics(batch, raw, scores, clock)
        self.kl.update(metrics["kl"], int(metrics["samples"]))
        self.iteration += 1
        samples = [
            {
                "iteration": self.iteration,
                "id": row["id"],
                "label": row.get("label"),
                "response": text,
                "score": score,
                **rewards,
            }
            for row, text, score, rewards in zip(
                batch.rollout.rows, texts, scores.tolist(), by_response(raw), strict=True
            )
        ]
        return metrics, samples

    # 1. roll out

    def roll_out(self, rows: list[dict], prompts: list[list[int]], epoch: int, indices: list[int]) -> Rollout:
        """Sample responses; the result is sorted by length, longest first, so that later passes pad little."""
        config = self.config
        samples = config.samples_per_prompt
        numbers = uniforms(keys(config.seed, epoch, indices, samples), config.max_new_tokens)
        rollout = roll_out(
            self.backbone,
            rows,
            prompts,
            numbers,
            self.tokenizer,
            config.temperature,
            config.rollout_batch_size,
            samples,
        )
        for row, logprobs in zip(rollout.rows, rollout.logprobs):
            if not all(map(math.isfinite, logprobs)):
                raise self.fault("log-probabilities of the rollout", row)
        groups = [range(start, start + samples) for start in range(0, len(rollout.rows), samples)]
        groups.sort(key=lambda group: -len(rollout.prompts[group[0]]) - max(len(rollout.responses[i]) for i in group))
        order = [i for group in groups for i in group]
        return Rollout(*([part[i] for i in order] for part in vars(rollout).values()))

    # 2. score

    @torch.no_grad()
    def judge(self, rollout: Rollout) -> Judged:
        """What each prompt's claims earn, and under all_labels their log-probabilities by the reference."""
        known: Judged = {}

        def judged(prompts: list[int]) -> list[tuple]:
            owners, batch = self.choices.pack(rollout, prompts, self.backbone, self.tokenizer.pad_token_id)
            rewards = self.choices.rewards(rollout, owners, batch, self.backbone)
            reference = torch.zeros_like(rewards)
            if self.exact:
                reference = self.backbone.logprobs(None, batch, self.config.temperature).sum(1)
            return [*zip(owners, rewards.tolist(), reference.tolist(), strict=True)]

        for _, part in self.parts("scoring", [*range(0, len(rollout.rows), self.config.samples_per_prompt)], judged):
            for (prompt, claim), *found in part:
                known.setdefault(prompt, {})[claim] = tuple(found)
        return known

    def score(
        self, rollout: Rollout, claims: Judged | None = None
    ) -> tuple[list[str], dict[str, torch.Tensor], torch.Tensor]:
        """Texts, raw rewards by kind (each (B,)), and the scores (B,) after cap, sum and normalisation.

        Args:
            claims: what they earn, from `judge`, where the trainer has any.
        """
        answers = decoded(self.tokenizer, rollout.responses, self.stops)
        raw = {}
        for kind, role in (("label", self.rewards.label), ("rationale", self.rewards.rationale)):
            if role == GOLD:
                right = [is_correct(t, r, self.tasks[r["task"]]) for t, r in zip(answers, rollout.rows)]
                raw[kind] = self.rewards.gold * torch.tensor(right, dtype=torch.float32, device=self.backbone.device)
            elif kind == "label" and claims is not None:
                raw[kind] = self.claim_rewards(rollout, claims)
            elif role:
                read = replace(rollout, responses=scored_part(rollout.responses, self.backbone.claims.get(role)))
                raw[kind] = self.forward(read, partial(self.backbone.scores, role))
        for kind, rewards in raw.items():
            for row, reward in zip(rollout.rows, rewards.tolist()):
                if not math.isfinite(reward):
                    raise self.fault(f"{kind} reward ({reward})", row)
        scores = mix(raw.get("label"), raw.get("rationale"), self.rewards.threshold)
        if self.exact:  # the label's part is not sampled; what is left is measured in units of the label reward
            return answers, raw, raw.get("rationale", torch.zeros_like(scores)) / self.choices.scale
        if self.config.score_norm:
            self.moments.update(torch.tensor(ranks.gather(scores.tolist())))
            scores = self.moments.normalise(scores)
        return answers, raw, scores

    def claim_rewards(self, rollout: Rollout, claims: Judged) -> torch.Tensor:
        """(B,) label reward of each response, by its claim; what is no claim earns the least of its prompt's.

        A likelihood of its own would be far lower for the few answers that begin in other words than for any label, and
        these few would then decide most of a batch's advantages.
        """
        found, samples = [], self.config.samples_per_prompt
        for place, response in enumerate(rollout.responses):
            own = {claim: reward for claim, (reward, _) in claims[place - place % samples].items()}
            found.append(own.get(self.choices.claim(response), min(own.values())))
        return torch.tensor(found, device=self.backbone.device)

    # 3. advantages

    def advantages(
        self, rollout: Rollout, texts: list[str], scores: torch.Tensor, rationale: torch.Tensor | None = None
    ) -> tuple[Batch, dict]:
        """What each token, or each response as a whole, did better than expected; the KL to the reference.

        A label reward of claims is due where the claim ends: later tokens cannot change it, it would be noise to them.

        Args:
            rationale: (B,) raw rationale rewards, a part of `scores`; None: there are none.
        """
        config, device = self.config, self.backbone.device
        width = max(map(len, rollout.responses), default=0)
        old = torch.tensor([p + [0.0] * (width - len(p)) for p in rollout.logprobs], device=device)
        mask = torch.tensor([[j < len(r) for j in range(width)] for r in rollout.responses], device=device)
        reference = self.forward(rollout, lambda batch: self.backbone.logprobs(None, batch, config.temperature))
        divergence = ((old - reference) * mask).sum(1)
        late, claim = scores, None
        if self.of_claims:
            tokens = torch.tensor([r + [0] * (width - len(r)) for r in rollout.responses], device=device)
            claim = claim_part(tokens, mask, self.choices.ends)
            late = torch.zeros_like(scores) if rationale is None else rationale
            late = late / self.moments.scale if config.score_norm else late
        rewards = token_rewards(old, reference, late, mask, self.kl.beta)
        if claim is not None:
            rewards[torch.arange(len(scores), device=device), claim.sum(1) - 1] += scores - late
        if self.exact and config.samples_per_prompt == 1:
            everyone = torch.tensor(ranks.gather(rewards.sum(1).tolist()), device=device)
            batch = Batch(rollout, texts, mask, old, rewards.sum(1) - everyone.mean())
        elif self.grouped:
            advantages = leave_one_out(rewards.sum(1), config.samples_per_prompt)
            if claim is not None:
                after = leave_one_out((rewards * ~claim).sum(1), config.samples_per_prompt)
                advantages = torch.where(claim, advantages[:, None], after[:, None]) * mask
            batch = Batch(rollout, texts, mask, old, advantages)
        else:
            if self.single:
                values, loss = self.learn_values(rollout, rewards, mask)
            else:
                values, loss = self.forward(rollout, self.backbone.values), None
            advantages = gae(rewards, values, mask, config.gamma, config.gae_lambda)
            batch = Batch(rollout, texts, mask, old, whiten(advantages, mask), values, advantages + values, loss)
        kl, n = ranks.total(torch.stack([divergence.sum(), mask.new_tensor(len(mask), dtype=torch.float)]))
        return batch, {"kl": (kl / n).item(), "beta": self.kl.beta, "samples": int(n)}

    def learn_values(
        self, rollout: Rollout, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The values (B, R) and the value loss's gradient of the batch's only optimiser step, from one pass.

        Until that step old and new values are the same, and a response's returns need no other response's values.
        """
        config, values = self.config, torch.zeros_like(rewards)
        tokens = ranks.total(mask.sum().float())

        def learn(micro: list[int]) -> torch.Tensor:
            sequences = self.sequences(rollout, micro)
            width = sequences.kept.shape[1]
            new, kept = self.backbone.values(sequences), mask[micro, :width]
            old = new.detach()
            returns = gae(rewards[micro, :width], old, kept, config.gamma, config.gae_lambda) + old
            loss = value_loss(new, old, returns, kept, config.value_clip)
            self.backward(config.value_coef * loss / tokens, "value loss", rollout, micro)
            values[micro, :width] = old
            return loss.detach()

        return values, self.accumulate(list(range(len(mask))), learn) + torch.zeros((), device=rewards.device)

    # 4. optimise

    def optimise(self, batch: Batch, claims: Judged | None = None) -> dict:
        """`update_epochs` passes over the batch, each in `updates` optimiser steps; `claims` from `judge`."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        shuffle = np.random.default_rng([config.seed, self.iteration])
        samples, steps = config.samples_per_prompt, []
        for _ in range(config.update_epochs):
            order = shuffle.permutation(len(batch.mask) // samples).tolist()
            for part in range(config.updates):
                groups = sorted(order[part :: config.updates])
                indices = [group * samples + j for group in groups for j in range(samples)]
                if ranks.total(torch.tensor(float(len(indices)), device=self.backbone.device)):  # a short last batch
                    steps.append(self.update(batch, indices, claims))
        known = {key: [step[key] for step in steps if step[key] is not None] for key in steps[0]}
        mean = {key: sum(values) / len(values) if values else None for key, values in known.items()}
        return {**mean, "learning_rate": self.learning_rate()}

    def learning_rate(self) -> float:
        """Up to the peak in `warmup_iterations`, then a cosine down to 0 over the rest of the run."""
        config, warmup = self.config, self.config.warmup_iterations
        if self.iteration < warmup:
            return config.learning_rate * (self.iteration + 1) / warmup
        done = (self.iteration - warmup) / (self.iterations - warmup)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def update(self, batch: Batch, indices: list[int], claims: Judged | None = None) -> dict:
        """One optimiser step on the responses `indices` of the batch, micro-batch by micro-batch.

        Losses are normalised by the response tokens of the whole optimiser batch over all processes; those of whole
        responses by their number. With one step an iteration the ratio is taken to the step's own log-probabilities:
        the kernels that sampled differ from those that train by more than rounding (logged as `drift`).
        """
        config, device = self.config, self.backbone.device
        tokens, responses = ranks.total(torch.tensor([batch.mask[indices].sum().item(), len(indices)], device=device))
        whole = batch.advantages.dim() == 1
        loss_of, count = (group_policy_loss, responses) if whole else (policy_loss, tokens)

        def learn(micro: list[int]) -> torch.Tensor:
            sequences = self.sequences(batch.rollout, micro)
            width = sequences.kept.shape[1]
            mask, old = batch.mask[micro, :width], batch.old[micro, :width]
            advantages = batch.advantages[micro] if whole else batch.advantages[micro, :width]
            logprobs = self.backbone.logprobs("policy", sequences, config.temperature)
            drift = (logprobs.detach() - old) * mask
            ratio, drift = (drift.exp() * mask).sum(), drift.abs().sum()
            before = logprobs.detach() if self.single else old
            if self.exact:  # the claim's tokens have their gradient from all labels
                mask = mask & ~claim_part(sequences.tokens, sequences.kept, self.choices.ends)
            policy, clipped = loss_of(logprobs, before, advantages, mask, config.clip)
            self.backward(policy / count, "policy loss", batch.rollout, micro)
            value = torch.zeros((), device=device)
            if batch.values is not None and batch.value_loss is None:
                values, returns = batch.values[micro, :width], batch.returns[micro, :width]
                value = value_loss(self.backbone.values(sequences), values, returns, mask, config.value_clip)
                self.backward(config.value_coef * value / tokens, "value loss", batch.rollout, micro)
            return torch.stack([policy.detach(), clipped.float(), value.detach(), ratio, drift])

        sums = self.accumulate(indices, learn) + torch.zeros(5, device=device)  # also of a process without rows
        if batch.value_loss is not None:
            sums[2] = batch.value_loss
        label = {}
        if self.exact:
            label = self.learn_labels(batch.rollout, indices[:: config.samples_per_prompt], claims or {})
        counts = torch.stack([count, count, tokens, tokens, tokens])
        policy, clipped, value, ratio, drift = (ranks.total(sums) / counts).tolist()
        norm, skipped = self.reduce_gradients(batch, indices), ratio > config.ratio_limit
        scale = self.scaler.get_scale()
        if not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        overflowed = self.scaler.get_scale() < scale  # fp16
        if overflowed and self.scaler.get_scale() < 1:
            raise self.fault(
                "gradient in fp16, whatever the loss is scaled by,", *(batch.rollout.rows[i] for i in indices)
            )
        skipped |= overflowed
        critic = {} if self.grouped else {"value_loss": value}
        return {
            "policy_loss": policy,
            **critic,
            "loss": policy + config.value_coef * value,
            "ratio": ratio,
            "drift": drift,
            "clip_fraction": clipped,
            **label,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "skipped": float(skipped),
            **({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}),
        }

    def learn_labels(self, rollout: Rollout, prompts: list[int], claims: Judged) -> dict:
        """The gradient of the expected label reward less its KL penalty, over all claims of each prompt's task.

        sum_l pi(l) * (r_l - floor) / std, with r_l from `LabelChoices.rewards`: whatever is no claim earns the floor,
        the least of the prompt's rewards, so that the sum is over everything that the policy could say.

        Args:
            prompts: places of their first responses. claims: what theirs earn, from `judge`.
        """
        config = self.config
        cap = math.inf if self.rewards.threshold is None else self.rewards.threshold
        known = [((i, c), min(reward, cap), reference) for i in prompts for c, (reward, reference) in claims[i].items()]
        gains = self.choices.gain([reward for _, reward, _ in known], [owner for owner, *_ in known])
        found = {owner: (*values, gain) for (owner, *values), gain in zip(known, gains, strict=True)}
        n = ranks.total(torch.tensor(float(len(prompts)), device=self.backbone.device))

        def learn(micro: list[int]) -> torch.Tensor:
            owners, batch = self.choices.pack(rollout, micro, self.backbone, self.tokenizer.pad_token_id)
            values = torch.tensor([found[owner] for owner in owners], device=self.backbone.device)
            reward, reference, gain = values.unbind(1)
            logprobs = self.backbone.logprobs("policy", batch, config.temperature).sum(1)
            probability = logprobs.exp()
            penalty = self.kl.beta * (probability * (logprobs - reference)).sum()
            loss = (penalty - (probability * gain).sum()) / n
            self.backward(loss, "label loss", rollout, micro)
            return torch.stack([probability.sum(), (probability * reward).sum()]).detach()

        totals = self.accumulate(prompts, learn) + torch.zeros(2, device=self.backbone.device)
        mass, expected = (ranks.total(totals) / n).tolist()
        if mass < 0.1:
            raise UserError(
                f"baseline: all_labels needs answers that begin with a claim of the training rationales; the policy "
                f"gives these {mass:.1%} of its probability. Use leave_one_out, or train sft_wrat longer"
            )
        return {"label_mass": mass, "expected_label_reward": expected}

    def backward(self, loss: torch.Tensor, what: str, rollout: Rollout, micro: list[int]) -> None:
        if not torch.isfinite(loss):
            raise self.fault(f"{what} ({loss.item()})", *(rollout.rows[i] for i in micro))
        self.scaler.scale(loss).backward()

    def reduce_gradients(self, batch: Batch, indices: list[int]) -> float:
        """Sum gradients over processes, clip them to `max_grad_norm`, return the norm before clipping."""
        for parameter in self.parameters:
            if parameter.grad is None:  # a process without rows in this step
                parameter.grad = torch.zeros_like(parameter)
        if ranks.world() > 1:
            flat = ranks.total(torch.cat([p.grad.flatten() for p in self.parameters]))  # type: ignore[union-attr]  # set above
            for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
                parameter.grad = part.view_as(parameter)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise self.fault(f"gradient (norm {norm})", *(batch.rollout.rows[i] for i in indices))
        return norm

    # shared

    def accumulate(self, indices: list[int], learn: Callable[[list[int]], torch.Tensor]) -> torch.Tensor | float:
        """Gradients of micro-batches of `indices`; the sum of what `learn`, which makes them, returns."""

        def attempt(micro: list[int]) -> torch.Tensor:
            before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
            try:
                return learn(micro)
            except RuntimeError:  # out of memory half-way
                for parameter, gradient in zip(self.parameters, before):
                    parameter.grad = gradient
                raise

        return sum(total for _, total in fitting.parts("micro-batch", indices, self.config.micro_batch_size, attempt))

    def parts(self, what: str, indices: list[int], function: Callable) -> Iterator[tuple]:
        """`function` over parts of `indices`, as many as are sampled and scored side by side."""
        return fitting.parts(what, indices, self.config.rollout_batch_size, function)

    def sequences(self, rollout: Rollout, indices: list[int]) -> Packed:
        prompts, responses = ([part[i] for i in indices] for part in (rollout.prompts, rollout.responses))
        return self.backbone.pack(prompts, responses, self.tokenizer.pad_token_id)

    @torch.no_grad()
    def forward(self, rollout: Rollout, function: Callable[[Packed], torch.Tensor]) -> torch.Tensor:
        """`function` over the rollout in chunks, without gradients; (B, R) results padded to the widest response."""
        width = max(map(len, rollout.responses), default=0)
        indices = list(range(len(rollout.rows)))
        found = self.parts("scoring", indices, lambda some: function(self.sequences(rollout, some)))
        parts = [part for _, part in found]
        return torch.cat([part if part.dim() == 1 else F.pad(part, (0, width - part.shape[1])) for part in parts])

    def fault(self, what: str, *rows: dict) -> UserError:
        ids = ", ".join(row["id"] for row in rows)
        return UserError(
            f"iteration {self.iteration + 1}: {what} is not finite; prompt {ids}. The last checkpoint stays; "
            "lower the learning rate or use another precision"
        )

    def statistics(self, batch: Batch, raw: dict[str, torch.Tensor], scores: torch.Tensor, clock: "Clock") -> dict:
        """What the log shows of an iteration, over all processes."""
        rollout, tasks = batch.rollout, self.tasks
        threshold = self.rewards.threshold
        per_response = ranks.gather(
            [
                {
                    "score": score,
                    **rewards,
                    "correct": is_correct(text, row, tasks[row["task"]]),
                    "unparsed": read_label(text, tasks[row["task"]]) is None,
                    "length": len(response),
                    "eos": response[-1] in self.stops,
                    "entropy": sum(entropies) / len(entropies),
                }
                for row, text, response, entropies, score, rewards in zip(
                    rollout.rows,
                    batch.texts,
                    rollout.responses,
                    rollout.entropies,
                    scores.tolist(),
                    by_response(raw),
                    strict=True,
                )
            ]
        )

        def mean(key: str) -> float | None:
            values = [float(r[key]) for r in per_response if r.get(key) is not None]
            return sum(values) / len(values) if values else None

        known = ["score", "label_reward", "rationale_reward", "correct", "unparsed", "length", "eos", "entropy"]
        metrics = {name: mean(name) for name in known if mean(name) is not None}
        for old, new in (("correct", "label_accuracy"), ("unparsed", "unparsed_rate"), ("eos", "eos_rate")):
            if old in metrics:
                metrics[new] = metrics.pop(old)
        if "label" in raw:
            capped = math.inf if threshold is None or "rationale" not in raw else threshold
            labels = [r["label_reward"] for r in per_response]
            metrics["reward"] = sum(min(v, capped) for v in labels) / len(labels) + metrics.get("rationale_reward", 0.0)
            if capped < math.inf:
                metrics["capped_share"] = sum(v > capped for v in labels) / len(labels)
        else:
            metrics["reward"] = metrics["rationale_reward"]
        if batch.values is not None:
            parts = (batch.values, batch.returns)
            everywhere = [torch.tensor(ranks.gather(part[batch.mask].tolist())) for part in parts]
            metrics["explained_variance"] = explained_variance(*everywhere)
        seconds = sum(clock.seconds.values())
        return {
            **metrics,
            "samples_per_second": len(per_response) / seconds,
            **{f"seconds_{phase}": value for phase, value in clock.seconds.items()},
            "peak_memory_gib": budget.peak_memory() / 2**30,
        }

    def state(self) -> dict:
        """Everything but tensors that a resumed run needs."""
        labels = asdict(self.choices.moments) if self.exact else None
        return {"iteration": self.iteration, "beta": self.kl.beta, "moments": asdict(self.moments), "labels": labels}

    def restore(self, state: dict) -> None:
        self.iteration, self.kl.beta = state["iteration"], state["beta"]
        self.moments = RunningMoments(**state["moments"])
        if self.exact:
            self.choices.moments = RunningMoments(**state["labels"])


def by_response(raw: dict[str, torch.Tensor]) -> list[dict[str, float]]:
    """Raw rewards by kind, each (B,), as one `<kind>_reward` mapping for each response."""
    names, values = [f"{kind}_reward" for kind in raw], [rewards.tolist() for rewards in raw.values()]
    return [dict(zip(names, own, strict=True)) for own in zip(*values, strict=True)]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = time.perf_counter() - start
