"""Preference by log-ratio: the loss against a loop, a reward model that scores by it, and DPO as a stage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.files import write_json
from rllr.lm import models, rewards
from rllr.lm.packing import Packed
from rllr.ppo.backbone import Backbone
from rllr.train.preference import add_reference, preference_loss
from rllr.train.trainer import save_adapter
from test_ppo_engine import LORA, PROMPTS, RESPONSES


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
def ratio_folder(tmp_path_factory, merged):
    """A random reward model that scores by its log-ratio, as the reward stage writes it."""
    from peft import get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(models.load_causal(merged, torch.float32), models.lora_config(LORA, "CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("rm_ratio") / "adapter"
    save_adapter(model, folder)
    write_json(folder / rewards.SCORE, {"beta": 0.5})
    return folder


def test_engine_and_evaluation_give_the_same_log_ratio(merged, tokenizer, ratio_folder):
    reward = rewards.load_reward(merged, ratio_folder, torch.float32)
    found = rewards.scores(reward, tokenizer, PROMPTS, RESPONSES, 3, torch.float32)
    backbone = Backbone(merged, LORA, {"rm_rllr": ratio_folder}, "rm_rllr", torch.float32)
    batch = Packed.build(PROMPTS, RESPONSES, 0, "cpu")
    with torch.no_grad():
        assert backbone.scores("rm_rllr", batch).tolist() == pytest.approx(found, abs=1e-4)
    assert not backbone.heads["value"].weight.any()  # no head to start the value function from

    def likelihood(model, prompt, response):
        logp = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        return sum(logp[len(prompt) - 1 + j, token].item() for j, token in enumerate(response))

    for prompt, response, score in zip(PROMPTS, RESPONSES, found):
        own = likelihood(reward.model, prompt, response)
        with reward.model.disable_adapter():
            assert score == pytest.approx(0.5 * (own - likelihood(reward.model, prompt, response)), abs=1e-4)


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
