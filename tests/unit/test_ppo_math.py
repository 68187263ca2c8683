"""Advantages, whitening, moments, KL controller and losses against naive float64 loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.ppo.advantages import AdaptiveKL, gae, token_rewards, whiten
from rllr.ppo.losses import explained_variance, policy_loss, value_loss
from rllr.ppo.scoring import RunningMoments, mix

FINITE = st.floats(-5, 5, width=32)


@st.composite
def ragged(draw, parts):
    """`parts` ragged (B, R) float64 tensors with one mask; rows of 1..6 tokens."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    width = max(lengths)
    mask = torch.tensor([[j < n for j in range(width)] for n in lengths])
    tensors = [
        torch.tensor([[draw(FINITE) if j < n else 0.0 for j in range(width)] for n in lengths], dtype=torch.float64)
        for _ in range(parts)
    ]
    return lengths, mask, tensors


@settings(max_examples=60, deadline=None)
@given(ragged(2), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_of_its_definition(data, gamma, lam):
    lengths, mask, (rewards, values) = data
    found = gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths):
        deltas = [
            rewards[i, t].item() + gamma * (values[i, t + 1].item() if t + 1 < n else 0.0) - values[i, t].item()
            for t in range(n)
        ]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n))
            assert found[i, t].item() == pytest.approx(expected, abs=1e-9)
        assert found[i, n:].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(ragged(2), st.floats(0, 2))
def test_token_rewards(data, beta):
    lengths, mask, (logprobs, reference) = data
    scores = torch.arange(len(lengths), dtype=torch.float64) - 1.5
    found = token_rewards(logprobs, reference, scores, mask, beta)
    for i, n in enumerate(lengths):
        for t in range(n):
            expected = -beta * (logprobs[i, t] - reference[i, t]).item() + (scores[i].item() if t == n - 1 else 0.0)
            assert found[i, t].item() == pytest.approx(expected, abs=1e-9)
        assert found[i, n:].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(ragged(1))
def test_whitening(data):
    _, mask, (values,) = data
    kept = [v for row, keep in zip(values.tolist(), mask.tolist()) for v, k in zip(row, keep) if k]
    mean = sum(kept) / len(kept)
    variance = sum((v - mean) ** 2 for v in kept) / (len(kept) - 1) if len(kept) > 1 else 0.0
    expected = [(v - mean) / math.sqrt(variance + 1e-8) for v in kept]
    assert whiten(values, mask)[mask].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert whiten(values, mask)[~mask].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=8), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_scores_so_far(batches):
    moments, seen = RunningMoments(), []
    for batch in batches:
        seen += batch
        moments.update(torch.tensor(batch, dtype=torch.float64))
        assert moments.mean == pytest.approx(np.mean(seen), abs=1e-9)
        assert moments.std == pytest.approx(np.std(seen, ddof=1) if len(seen) > 1 else 0.0, abs=1e-6)


def test_equal_scores_normalise_to_zero():
    moments = RunningMoments()
    scores = torch.full((4,), 3.25)
    moments.update(scores)
    assert moments.normalise(scores).tolist() == [0.0] * 4


def test_adaptive_kl_steers_to_the_target_within_its_bounds():
    kl = AdaptiveKL(0.2, 6.0, 10000)
    kl.update(60.0, 32)
    assert kl.beta == pytest.approx(0.2 * (1 + 0.2 * 32 / 10000))
    kl.update(6.6, 32)
    assert kl.beta == pytest.approx(0.2 * (1 + 0.2 * 32 / 10000) * (1 + 0.1 * 32 / 10000))
    low = AdaptiveKL(0.2, 6.0, 10000)
    low.update(0.0, 32)
    assert low.beta == pytest.approx(0.2 * (1 - 0.2 * 32 / 10000))


def test_mix_caps_the_label_reward_alone():
    label, rationale = torch.tensor([-1.0, 2.0, 9.0]), torch.tensor([0.5, 0.5, 0.5])
    assert mix(label, rationale, 3.0).tolist() == [-0.5, 2.5, 3.5]
    assert mix(label, rationale, None).tolist() == [-0.5, 2.5, 9.5]
    assert mix(label, None, None).tolist() == label.tolist()
    assert mix(None, rationale, None).tolist() == rationale.tolist()


@settings(max_examples=60, deadline=None)
@given(ragged(3), st.floats(0.05, 0.5))
def test_policy_loss(data, clip):
    lengths, mask, (logprobs, old, advantages) = data
    loss, clipped = policy_loss(logprobs, old, advantages, mask, clip)
    expected, bound = 0.0, 0
    for i, n in enumerate(lengths):
        for t in range(n):
            r, a = math.exp(logprobs[i, t].item() - old[i, t].item()), advantages[i, t].item()
            plain, cut = -a * r, -a * min(max(r, 1 - clip), 1 + clip)
            expected, bound = expected + max(plain, cut), bound + (cut > plain)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert clipped.item() == bound


@settings(max_examples=60, deadline=None)
@given(ragged(3), st.floats(0.05, 0.5))
def test_value_loss(data, clip):
    lengths, mask, (values, old, returns) = data
    expected = 0.0
    for i, n in enumerate(lengths):
        for t in range(n):
            v, o, r = (x[i, t].item() for x in (values, old, returns))
            cut = min(max(v, o - clip), o + clip)
            expected += 0.5 * max((v - r) ** 2, (cut - r) ** 2)
    assert value_loss(values, old, returns, mask, clip).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(ragged(2))
def test_explained_variance(data):
    _, mask, (values, returns) = data
    kept, predicted = returns[mask].numpy(), values[mask].numpy()
    found = explained_variance(values[mask], returns[mask])
    if np.var(kept) == 0:
        assert found is None
    else:
        assert found == pytest.approx(1 - np.var(kept - predicted) / np.var(kept), rel=1e-6, abs=1e-6)
