"""Preference by log-ratio: the loss against a loop, a reward model that scores by it, and DPO as a stage."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.cli import UserError
from rllr.files import write_json
from rllr.lm import models, rewards
from rllr.lm.packing import Packed
from rllr.ppo.backbone import Backbone
from rllr.ppo.scoring import Rewards, RunningMoments
from rllr.train.preference import add_reference, preference_loss
from rllr.train.trainer import save_adapter
from test_ppo_engine import LORA, PROMPTS, RESPONSES, make_trainer, rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-8, 0), min_size=1, max_size=5), min_size=2, max_size=2), st.floats(0.01, 2))
def test_the_loss_equals_a_plain_loop(sides, beta):
    merged = [-3.0, -5.5]
    width = max(map(len, sides))
    logprobs = torch.tensor([side + [0.0] * (width - len(side)) for side in sides], dtype=torch.float64)
    kept = torch.tensor([[j < len(side) for j in range(width)] for side in sides])
    found = preference_loss(logprobs, torch.tensor(merged, dtype=torch.float64), kept, beta, 0.7).item()
    margin = beta * ((sum(sides[0]) - merged[0]) - (sum(sides[1]) - merged[1]))
    expected = math.log1p(math.exp(-margin)) - 0.7 * sum(sides[0]) / len(sides[0])
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def claim_folder(tmp_path_factory, merged):
    """A random reward model of claims, as the reward stage writes it."""
    from peft import get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(models.load_causal(merged, torch.float32), models.lora_config(LORA, "CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("rm_claim") / "adapter"
    save_adapter(model, folder)
    write_json(folder / rewards.SCORE, {"score": "claim"})
    return folder


def test_engine_and_evaluation_score_claims_alike(merged, tokenizer, claim_folder):
    texts = ["It is good, as ever.", "Good\nLabel: x", "no end", ",", "a,b,c"]
    claims = ["It is good,", "Good\n", "no end", ",", "a,"]
    responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]] * 2
    reward = rewards.load_reward(merged, claim_folder, torch.float32)
    found = rewards.scores(reward, tokenizer, prompts, responses, 3, torch.float32)
    backbone = Backbone(merged, LORA, {"rm_rllr": claim_folder}, "rm_rllr", torch.float32)
    batch = Packed.build(prompts, responses, 0, "cpu")
    with torch.no_grad():
        assert backbone.scores("rm_rllr", batch).tolist() == pytest.approx(found, abs=1e-4)
    assert not backbone.heads["value"].weight.any()  # no head to start the value function from
    for prompt, claim, score in zip(prompts, claims, found):
        ids = tokenizer(claim, add_special_tokens=False)["input_ids"]
        logp = reward.model(input_ids=torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
        expected = sum(logp[len(prompt) - 1 + j, token].item() for j, token in enumerate(ids))
        assert score == pytest.approx(expected, abs=1e-4)


def test_the_gradient_over_all_labels_equals_a_plain_one(merged, claim_folder, tokenizer, demo_tasks):
    tasks = {"movie_reviews": demo_tasks["movie_reviews"]}
    own = {"baseline": "all_labels", "kl_beta": 0.3, "micro_batch_size": 4}
    trainer = make_trainer(
        merged,
        {"rm_rllr": claim_folder},
        tokenizer,
        tasks,
        policy_std=0.3,
        rewards=Rewards("rm_rllr", None, None),
        **own,
    )
    trainer.choices.moments.update(torch.tensor([0.0, 2.0, 5.0]))
    rollout = trainer.roll_out(rows(4), PROMPTS[:4], 0, list(range(4)))
    backbone, floor_of, terms = trainer.backbone, {}, []
    for i, prompt in enumerate(rollout.prompts):
        for label in tasks["movie_reviews"].labels:
            ids = tokenizer(f"It is {label},", add_special_tokens=False)["input_ids"]

            def likelihood(adapter, prompt=prompt, ids=ids):
                backbone.use(adapter)
                logp = backbone.model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
                return sum(logp[len(prompt) - 1 + j, token] for j, token in enumerate(ids))

            with torch.no_grad():
                reward, reference = likelihood("rm_rllr"), likelihood(None)
            floor_of[i] = min(floor_of.get(i, math.inf), reward.item())
            terms.append((i, likelihood("policy"), reward.item(), reference.item()))
    moments = RunningMoments(**vars(trainer.choices.moments))
    moments.update(torch.tensor([reward for _, _, reward, _ in terms]))
    loss = (
        sum(
            -logp.exp() * (reward - floor_of[i]) / (moments.std + 1e-8) + 0.3 * logp.exp() * (logp - reference)
            for i, logp, reward, reference in terms
        )
        / 4
    )
    expected = torch.autograd.grad(loss, [p for n, p in backbone.trained().items()])
    trainer.config.micro_batch_size = 8  # one pass: the deviation is that of all four prompts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserError, "__init__", lambda *a: None)  # a random policy gives labels next to nothing
        with contextlib.suppress(UserError):
            trainer.learn_labels(rollout, list(range(4)))
    for (name, parameter), gradient in zip(backbone.trained().items(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6, rtol=1e-3), name


def test_all_labels_need_claims_and_labels(merged, reward_folders, tokenizer, demo_tasks):
    with pytest.raises(UserError, match="needs a label reward of claims"):
        make_trainer(merged, reward_folders, tokenizer, demo_tasks, baseline="all_labels")


def test_references_are_the_merged_models_likelihoods(merged, tokenizer):
    encoded = [
        {"prompt_ids": p, "chosen_ids": a, "rejected_ids": b} for p, a, b in zip(PROMPTS, RESPONSES, RESPONSES[1:])
    ]
    model = models.load_causal(merged, torch.float32)
    add_reference(encoded, model, tokenizer, 4, torch.float32)
    for row in encoded:
        for value, side in zip(row["reference"], ("chosen_ids", "rejected_ids")):
            logits = model(input_ids=torch.tensor([row["prompt_ids"] + row[side]])).logits[0].log_softmax(-1)
            expected = sum(logits[len(row["prompt_ids"]) - 1 + j, t].item() for j, t in enumerate(row[side]))
            assert value == pytest.approx(expected, abs=1e-4)
