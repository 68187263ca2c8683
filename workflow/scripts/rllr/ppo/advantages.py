"""Phase 3: rewards per token, generalised advantage estimation, whitening, the adaptive KL weight."""

from dataclasses import dataclass

import torch

from rllr import ranks


def token_rewards(
    logprobs: torch.Tensor, reference: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """-beta * (log pi - log pi_ref) on every response token, plus the score at the last one.

    Args:
        logprobs, reference: (B, R). scores: (B,). mask: (B, R) bool, true on response tokens (a prefix of each row).

    Returns:
        (B, R) rewards, 0 on padding.
    """
    rewards = -beta * (logprobs - reference) * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); the value after the last token is 0.

    Args:
        rewards, values: (B, R), 0 on padding. mask: (B, R) bool.

    Returns:
        (B, R) advantages, 0 on padding; the returns are advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = (delta + gamma * lam * carried) * mask[:, t]  # padding carries nothing back
        advantages[:, t] = carried
        following = values[:, t]
    return advantages


def leave_one_out(rewards: torch.Tensor, samples: int) -> torch.Tensor:
    """Each response's reward less the mean of the others to its prompt (RLOO, Ahmadian et al. 2024, section 3.2).

    Args:
        rewards: (N,), the `samples` responses to a prompt next to each other.
    """
    groups = rewards.view(-1, samples)
    return ((groups - groups.mean(1, keepdim=True)) * samples / (samples - 1)).flatten()


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 (unbiased) over the response tokens of all processes; 0 on padding."""
    kept = values[mask].double()
    n, s = ranks.total(torch.stack([kept.new_tensor(len(kept)), kept.sum()])).tolist()
    mean = s / n
    squares = ranks.total(((kept - mean) ** 2).sum()).item()
    variance = squares / (n - 1) if n > 1 else 0.0
    return ((values - mean) * (variance + 1e-8) ** -0.5 * mask).to(values.dtype)


@dataclass
class AdaptiveKL:
    """The weight of the KL penalty, steered to a target KL (Ziegler et al. 2019, section 2.2)."""

    beta: float
    target: float
    horizon: int

    def update(self, kl: float, samples: int) -> None:
        """kl: mean over responses of the KL summed over their tokens. samples: responses in the batch."""
        error = max(-0.2, min(0.2, kl / self.target - 1))
        self.beta *= 1 + error * samples / self.horizon
