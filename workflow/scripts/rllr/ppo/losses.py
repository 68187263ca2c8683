"""Phase 4: the clipped losses (Schulman et al. 2017), as sums over response tokens.

The caller divides by the number of response tokens of the whole optimiser batch, so that neither micro-batches
nor processes change the result.
"""

import torch


def policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate.

    Args:
        logprobs, old, advantages: (B, R). mask: (B, R) bool.

    Returns:
        sums over response tokens of the loss, and of the share where clipping binds.
    """
    ratio = torch.exp((logprobs - old) * mask)
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return (torch.maximum(plain, clipped) * mask).sum(), ((clipped > plain) * mask).sum().detach()


def group_policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate of whole responses: the ratio of their probabilities (Ahmadian et al. 2024; as in trl).

    Args:
        logprobs, old: (N, R). advantages: (N,). mask: (N, R) bool.

    Returns:
        sums over responses of the loss, and of the share where clipping binds.
    """
    ratio = torch.exp(((logprobs - old) * mask).sum(1))
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped).sum(), (clipped > plain).sum().detach()


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the larger of the plain and the clipped squared error, summed over response tokens; all (B, R)."""
    clipped = torch.clamp(values, old - clip, old + clip)
    errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * (errors * mask).sum()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns) over response tokens, both (N,); None when the returns do not vary."""
    values, returns = values.double(), returns.double()
    variance = returns.var(unbiased=False).item()
    return 1 - (returns - values).var(unbiased=False).item() / variance if variance else None
