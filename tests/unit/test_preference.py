"""Preference by log-ratio: the loss against a loop, a reward model that scores by it, and DPO as a stage."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.cli import UserError
from rllr.files import write_json, write_jsonl
from rllr.lm import models, rewards
from rllr.lm.claims import claims_by_label
from rllr.lm.packing import Packed
from rllr.ppo.backbone import Backbone
from rllr.ppo.labels import LabelChoices
from rllr.ppo.scoring import Rewards, RunningMoments, threshold
from rllr.tasks import Task
from rllr.train.preference import add_reference, preference_loss
from rllr.train.trainer import save_adapter
from test_ppo_engine import LORA, PROMPTS, RESPONSES, config, make_trainer, rows


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


def test_rollouts_are_scored_by_their_claims_alone(merged, claim_folder, tokenizer, demo_tasks):
    folders, rewarded = {"rm_rllr": claim_folder}, Rewards("rm_rllr", None, None)
    trainer = make_trainer(merged, folders, tokenizer, demo_tasks, rewarded, policy_std=0.3, rollout_batch_size=3)
    rollout = trainer.roll_out(rows(4), PROMPTS[:4], 0, list(range(4)))
    for response, text in zip(rollout.responses, ["a, b, c\n", "no end", "Good\nLabel: x", ","]):
        response[:] = tokenizer(text, add_special_tokens=False)["input_ids"]
    packed = []
    pack = trainer.backbone.pack
    trainer.backbone.pack = lambda *given: packed.append(pack(*given)) or packed[-1]
    _, raw, _ = trainer.score(rollout)
    reward = rewards.load_reward(merged, claim_folder, torch.float32)
    expected = rewards.scores(reward, tokenizer, rollout.prompts, rollout.responses, 4, torch.float32)
    assert raw["label"].tolist() == pytest.approx(expected, abs=1e-4)
    claims = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a,", "no end", "Good\n", ",")]
    assert sum(batch.kept.sum().item() for batch in packed) == sum(claims)  # nothing else was computed


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
        claims={"movie_reviews": {label: f"It is {label}," for label in tasks["movie_reviews"].labels}},
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
                reward, reference = likelihood("rm_rllr").item(), likelihood(None).item()
            terms.append((i, likelihood("policy"), reward, reference))
    together = {i: math.log(sum(math.exp(value) for j, _, value, _ in terms if j == i)) for i, *_ in terms}
    terms = [(i, logp, reward - together[i], reference) for i, logp, reward, reference in terms]
    for i, _, reward, _ in terms:
        floor_of[i] = min(floor_of.get(i, math.inf), reward)
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
            trainer.learn_labels(rollout, list(range(4)), trainer.judge(rollout))
    for (name, parameter), gradient in zip(backbone.trained().items(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6, rtol=1e-3), name


def test_with_several_responses_each_prompts_labels_count_once(merged, claim_folder, tokenizer, demo_tasks):
    """And a response's rationale is measured against the other responses to its prompt."""
    tasks = {"movie_reviews": demo_tasks["movie_reviews"]}
    trainer = make_trainer(
        merged, {"rm_rllr": claim_folder}, tokenizer, tasks, rewards=Rewards("rm_rllr", None, None), policy_std=0.3,
        baseline="all_labels", samples_per_prompt=2, kl_beta=0.5,
        claims={"movie_reviews": {label: f"It is {label}," for label in tasks["movie_reviews"].labels}},
    )  # fmt: skip
    rollout = trainer.roll_out(rows(3), PROMPTS[:3], 0, list(range(3)))
    texts, _, scores = trainer.score(rollout)
    batch, _ = trainer.advantages(rollout, texts, scores)
    assert batch.advantages.reshape(3, 2).sum(1).abs().max() < 1e-5 < batch.advantages.abs().max()
    seen = []
    trainer.learn_labels = lambda rollout, rows, _: seen.extend(rollout.rows[i]["id"] for i in rows) or {}
    trainer.optimise(batch)
    assert sorted(seen) == ["r0", "r1", "r2"]


@pytest.mark.parametrize(("baseline", "tau"), [("leave_one_out", None), ("leave_one_out", -0.8), ("all_labels", None)])
def test_a_sampled_claim_earns_its_share_and_anything_else_the_least(
    merged, claim_folder, reward_folders, tokenizer, demo_tasks, baseline, tau
):
    claims = {"movie_reviews": {label: f"It is {label}," for label in demo_tasks["movie_reviews"].labels}}
    trainer = make_trainer(
        merged, {"rm_rllr": claim_folder, "rm_rlhf": reward_folders["rm_rlhf"]}, tokenizer, demo_tasks,
        rewards=Rewards("rm_rllr", "rm_rlhf", tau), claims=claims,
        baseline=baseline, samples_per_prompt=3, rollout_batch_size=2, score_norm=False,
    )  # fmt: skip
    rollout = trainer.roll_out(rows(2), PROMPTS[:2], 0, [0, 1])
    said = ["It is positive, as x", "It is negative, as y", "It is a pity, as z", "positive", "It is positive,", ","]
    rollout.responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    reward = rewards.load_reward(merged, claim_folder, torch.float32)
    texts, expected = [*claims["movie_reviews"].values()], []
    for place, text in enumerate(said):
        ids = [tokenizer(claim, add_special_tokens=False)["input_ids"] for claim in texts]
        prompts = [rollout.prompts[place]] * len(ids)
        likelihoods = rewards.scores(reward, tokenizer, prompts, ids, 1, torch.float32)
        total = math.log(sum(math.exp(value) for value in likelihoods))
        shares = {claim: value - total for claim, value in zip(texts, likelihoods)}
        begun = [share for claim, share in shares.items() if text.startswith(claim)]
        expected.append(begun[0] if begun else min(shares.values()))
    _, raw, scores = trainer.score(rollout, trainer.judge(rollout))
    assert raw["label"].tolist() == pytest.approx(expected, abs=1e-4) and len(set(expected)) > 2
    if baseline == "all_labels":  # which has the labels' part of the gradient from all claims
        assert torch.equal(scores, raw["rationale"])
        return
    capped = [min(value, math.inf if tau is None else tau) for value in expected]
    assert (scores - raw["rationale"]).tolist() == pytest.approx(capped, abs=1e-4) and (capped == expected) == (
        tau is None
    )


@pytest.mark.parametrize(("baseline", "samples"), [("leave_one_out", 3), ("value", 1)])
def test_a_label_reward_of_claims_is_due_where_the_claim_ends(
    merged, claim_folder, reward_folders, tokenizer, demo_tasks, baseline, samples
):
    trainer = make_trainer(
        merged, {"rm_rllr": claim_folder, "rm_rlhf": reward_folders["rm_rlhf"]}, tokenizer, demo_tasks,
        rewards=Rewards("rm_rllr", "rm_rlhf", None), baseline=baseline, samples_per_prompt=samples, gae_lambda=1.0,
        policy_std=0.3, kl_beta=0.3, updates=2,
        claims={task: {label: f"It is {label}," for label in demo_tasks[task].labels} for task in demo_tasks},
    )  # fmt: skip
    rollout = trainer.roll_out(rows(6 // samples), PROMPTS[: 6 // samples], 0, list(range(6 // samples)))
    said = ["It is positive, as x", "It is negative, as y", "It is a pity", ",", "no end", "It is positive, so, so"]
    rollout.responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    rollout.logprobs = [[-0.1 * j - 1 for j in range(len(response))] for response in rollout.responses]
    texts, raw, scores = trainer.score(rollout, trainer.judge(rollout))
    batch, _ = trainer.advantages(rollout, texts, scores, raw["rationale"])
    reference = trainer.forward(rollout, lambda batch: trainer.backbone.logprobs(None, batch, 1.0)).tolist()
    to_go, ends = [], []
    for row, text in enumerate(said):
        claim, length = text.split(",")[0] + ("," if "," in text else ""), len(rollout.responses[row])
        ends.append(len(tokenizer(claim, add_special_tokens=False)["input_ids"]))
        late = raw["rationale"][row].item() / trainer.moments.std
        rewards = [-0.3 * (rollout.logprobs[row][t] - reference[row][t]) for t in range(length)]
        rewards[ends[row] - 1] += scores[row].item() - late
        rewards[length - 1] += late
        to_go.append([sum(rewards[t:]) for t in range(length)] + [0.0])
    for row in range(len(said)):
        length = len(rollout.responses[row])
        if baseline == "value":  # with lambda 1 returns are what is still to come
            expected, found = to_go[row][:length], batch.returns[row, :length]
        else:
            group = range(row // samples * samples, (row // samples + 1) * samples)
            whole, after = [to_go[i][0] for i in group], [to_go[i][ends[i]] for i in group]
            own = row % samples
            gains = [part[own] - (sum(part) - part[own]) / (samples - 1) for part in (whole, after)]
            expected, found = [gains[t >= ends[row]] for t in range(length)], batch.advantages[row, :length]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert trainer.update(batch, list(range(6)))["gradient_norm"] > 0


def test_an_iteration_of_both_rewards_without_tau(merged, claim_folder, reward_folders, tokenizer, demo_tasks):
    folders = {"rm_rllr": claim_folder, "rm_rlhf": reward_folders["rm_rlhf"]}
    trainer = make_trainer(
        merged, folders, tokenizer, demo_tasks, rewards=Rewards("rm_rllr", "rm_rlhf", None), baseline="all_labels",
        claims={task: {label: f"It is {label}," for label in demo_tasks[task].labels} for task in demo_tasks},
    )  # fmt: skip
    trainer.learn_labels = lambda *_: {}  # a random policy gives labels next to nothing
    metrics, _ = trainer.step(rows(4), PROMPTS[:4], 0, list(range(4)))
    assert metrics["reward"] == pytest.approx(metrics["label_reward"] + metrics["rationale_reward"], abs=1e-4)
    assert "capped_share" not in metrics


KINDS = {
    "topics": Task("topics", "label", ("sports", "world", "a cat")),
    "pairs": Task("pairs", "label", ("equivalent", "not equivalent")),
    "similar": Task("similar", "score", low=0.0, high=5.0, metric="pearson"),
}


def test_claims_are_found_in_the_training_rationales():
    said = [("topics", label, f'It is {label}, as "x" suggests.\nLabel: {label}') for label in ("sports", "world")]
    said += [("pairs", "equivalent", "Both say so, as x.\nLabel: equivalent")] * 30
    said += [("pairs", "not equivalent", "They differ, as x.\nLabel: not equivalent")] * 30
    said += [("pairs", "equivalent", "An odd one, once.\nLabel: equivalent")]
    words = {"0": "Nothing in common,", "0.5": "Nothing in common,", "4.2": "One and the same,"}
    said += [("similar", score, f"{claim} as x.\nLabel: {score}") for score, claim in words.items()]
    found = claims_by_label([(task, response) for task, _, response in said], KINDS)
    assert found["topics"] == {label: f"It is {label}," for label in KINDS["topics"].labels}  # the cat by their form
    assert found["pairs"] == {"equivalent": "Both say so,", "not equivalent": "They differ,"}
    assert found["similar"] == words


@pytest.mark.parametrize(
    "said",
    [
        [("topics", "sports", "Label: sports"), ("topics", "world", "Label: world")],  # no rationale
        [
            ("topics", "sports", "As x, y.\nLabel: sports"),
            ("topics", "world", "As x, z.\nLabel: world"),
        ],  # one for both
        [("topics", label, f"Free text {i}, a.\nLabel: {label}") for i in range(9) for label in ("sports", "world")],
        [("similar", f"{i / 10}", f"Free text {i}, a.\nLabel: {i / 10}") for i in range(50)],
        [("topics", "sports", "It is sports, as x.\nLabel: sports")],  # only one label was seen
    ],
)
def test_rationales_without_claims_have_none(said):
    assert claims_by_label([(task, response) for task, _, response in said], KINDS) == {}


@pytest.mark.parametrize(
    ("method", "score", "rationale", "why"),
    [
        ("rllr", "claim", "It is {}, as x", None),
        ("rlvr", "head", "It is {}, as x", None),
        ("rllr", "head", "It is {}, as x", "rm_rllr scores whole responses"),
        ("rllr", "claim", "Well then, it is {}", "rationales of movie_reviews do not begin with one"),
        ("rlhf", "claim", "It is {}, as x", "there is no label reward"),
    ],
)
def test_all_labels_only_where_data_and_reward_allow_it(tmp_path, demo_tasks, method, score, rationale, why):
    from rllr.ppo.run import Run

    texts = [(label, f"{rationale.format(label)}.\nLabel: {label}") for label in ("positive", "negative")]
    own = {"task": "movie_reviews", "instruction": "", "input": "x"}
    write_jsonl(
        tmp_path / "sft_with_rat_train.jsonl",
        [{"id": f"{i}", **own, "label": label, "output": text} for i, (label, text) in enumerate(texts)],
    )
    run = object.__new__(Run)
    run.config, run.data, run.tasks, run.rows = config(stage=method), tmp_path, demo_tasks, [own]
    run.folders = {"rm_rllr": tmp_path / "rm"}
    (tmp_path / "rm").mkdir()
    write_json(tmp_path / "rm" / rewards.SCORE, {"score": score})
    found, reason = run.claims()
    assert (found == {}) == bool(why) and (reason == "" if why is None else why in reason)
    tau = threshold("rllr_mix", "auto", tmp_path, of_claims=True)  # without a metrics.json
    assert tau.value is None and "not needed" in tau.origin
    assert threshold("rllr_mix", -0.1, tmp_path, of_claims=True).value == -0.1
    assert why or found["movie_reviews"] == {label: f"It is {label}," for label in ("positive", "negative")}


def test_the_gold_claim_of_a_score_is_the_nearest(tokenizer, merged):
    backbone = type("B", (), {"plain": models.load_causal(merged, torch.float32)})
    claims = {"similar": {"0": "Nothing,", "5": "All,"}, "topics": {"sports": "Ball,", "world": "Globe,"}}
    choices = LabelChoices.of(claims, tokenizer, Rewards("gold", None, None), backbone, True)
    assert choices.gold({"task": "similar", "label": "3.1"}) == "All,"
    assert choices.gold({"task": "topics", "label": "world"}) == "Globe,"
    assert choices.gold({"task": "topics", "label": "a cat"}) == ""


def test_the_gold_claim_earns_what_a_sampled_gold_label_does(tokenizer, merged):
    backbone = type("B", (), {"plain": models.load_causal(merged, torch.float32), "device": torch.device("cpu")})
    rollout = type("R", (), {"rows": [{"task": "topics", "label": "world"}]})
    claims = {"topics": {"sports": "Ball,", "world": "Globe,"}}
    for source, expected in ((Rewards("gold", None, None), 1.0), (Rewards("gold", "rm_rlhf", 3.0), 3.0)):
        choices = LabelChoices.of(claims, tokenizer, source, backbone, True)
        owners = [(0, "Ball,"), (0, "Globe,")]
        assert choices.rewards(rollout, owners, None, backbone).tolist() == [0.0, expected]


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
