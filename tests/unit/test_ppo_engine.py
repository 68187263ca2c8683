"""The engine against the reward models' own evaluation, the plain model, and a plain re-implementation of PPO."""

import copy
import math
import statistics

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import two_processes
from rllr.cli import UserError
from rllr.lm import models
from rllr.lm.packing import Packed
from rllr.lm.sampling import uniforms
from rllr.ppo.backbone import Backbone
from rllr.ppo.iteration import PPOConfig, Trainer
from rllr.ppo.rollout import keys, roll_out
from rllr.ppo.scoring import Rewards, RunningMoments

LORA = {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
PROMPTS = [[10, 11, 12], [20, 21, 22, 23, 24, 25], [30], [40, 41], [50, 51, 52, 53], [60, 61, 62], [70, 71], [80]]
RESPONSES = [[5, 6, 2], [7], [8, 9, 10, 11, 2], [2], [12, 13], [14, 15, 16, 2], [9, 9, 9], [33, 2]]
CLAIMS = {"movie_reviews": {"negative": "Dull,", "positive": "Bright and warm,"}}


def config(**changes) -> PPOConfig:
    values = dict(
        model="tiny", stage="rllr_mix", seed=1, precision="fp32", attention="auto",
        lora=LORA, learning_rate=1e-3, warmup_iterations=0, epochs=1, batch_size=8,
        micro_batch_size=8, rollout_batch_size=8, cutoff=128, max_new_tokens=6, temperature=1.0,
        samples_per_prompt=1, baseline="value",
        label_reward_threshold=0.5, score_norm=True, kl_beta=0.2, kl_target=6.0, kl_horizon=10000, gamma=1.0,
        gae_lambda=0.95, updates=1, update_epochs=1, clip=0.2, value_clip=0.2, value_coef=0.1, ratio_limit=10.0,
        weight_decay=0.01, max_grad_norm=1.0, gradient_checkpointing=False, save_iterations=5, validate_iterations=0,
        keep="last",
    )  # fmt: skip
    return PPOConfig(**{**values, **changes})


def test_the_learning_rate_climbs_and_falls(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, learning_rate=1.0, warmup_iterations=4)
    rates = []
    for trainer.iteration in range(10):
        rates.append(trainer.learning_rate())
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 6)) for i in range(6)])
    trainer.config.warmup_iterations = 0  # as published
    trainer.iteration = 5
    assert trainer.learning_rate() == pytest.approx(0.5)


def make_backbone(
    merged, reward_folders, dtype=torch.float32, checkpointing=False, policy_std=0.0, lora=LORA, critic=True
) -> Backbone:
    torch.manual_seed(7)
    backbone = Backbone(merged, lora, reward_folders, "rm_rllr", dtype, checkpointing, critic=critic)
    if policy_std:
        for name, parameter in backbone.trained().items():
            if "lora_B.policy" in name:
                torch.nn.init.normal_(parameter, std=policy_std)
    return backbone


def make_trainer(
    merged, reward_folders, tokenizer, demo_tasks, rewards=None, policy_std=0.0, dtype=torch.float32, claims=None,
    **changes,
):  # fmt: skip
    checkpointing = changes.get("gradient_checkpointing", False)
    critic, lora = changes.get("baseline", "value") == "value", changes.pop("lora", LORA)
    backbone = make_backbone(merged, reward_folders, dtype, checkpointing, policy_std, lora, critic)
    rewards = rewards or Rewards("rm_rllr", "rm_rlhf", 0.5)
    return Trainer(config(**changes), backbone, rewards, demo_tasks, tokenizer, 10, claims or {})


def rows(n=8):
    labels = ["positive", "negative"]
    return [{"id": f"r{i}", "task": "movie_reviews", "label": labels[i % 2]} for i in range(n)]


def sequences(backbone, indices=range(8)):
    return Packed.build([PROMPTS[i] for i in indices], [RESPONSES[i] for i in indices], 0, backbone.device)


def plain_logprobs(model, prompt, response):
    """Independent: one sequence, no padding, all logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    logp = logits.log_softmax(-1)
    return [logp[len(prompt) - 1 + j, token].item() for j, token in enumerate(response)]


def test_reference_logprobs_are_the_merged_models(merged, reward_folders):
    backbone = make_backbone(merged, reward_folders, policy_std=0.5)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        found = backbone.logprobs(None, sequences(backbone), 1.0)
    for i in range(8):
        expected = plain_logprobs(model, PROMPTS[i], RESPONSES[i])
        assert found[i, : len(expected)].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("role", ["rm_rllr", "rm_rlhf"])
def test_rewards_are_those_of_the_reward_models_own_evaluation(merged, reward_folders, role):
    backbone = make_backbone(merged, reward_folders, policy_std=0.5)
    scorer = AutoModelForSequenceClassification.from_pretrained(merged, num_labels=1, dtype=torch.float32)
    scorer = PeftModel.from_pretrained(scorer, reward_folders[role]).eval()
    with torch.no_grad():
        together = backbone.scores(role, sequences(backbone))
        for i in range(8):
            own = scorer(input_ids=torch.tensor([PROMPTS[i] + RESPONSES[i]])).logits.item()
            alone = backbone.scores(role, sequences(backbone, [i])).item()
            assert together[i].item() == pytest.approx(own, abs=1e-5)
            assert alone == pytest.approx(own, abs=1e-5)


def test_rewards_in_bf16_agree_within_its_rounding(merged, reward_folders):
    from rllr.lm import models

    backbone = make_backbone(merged, reward_folders, torch.bfloat16)
    scorer = PeftModel.from_pretrained(models.load_scorer(merged, torch.bfloat16), reward_folders["rm_rllr"]).eval()
    models.cast_weights_not_activations(scorer)
    with torch.no_grad(), models.autocast(torch.bfloat16):
        found = backbone.scores("rm_rllr", sequences(backbone))
        for i in range(8):
            own = scorer(input_ids=torch.tensor([PROMPTS[i] + RESPONSES[i]])).logits.item()
            assert found[i].item() == pytest.approx(own, abs=2e-2, rel=2e-2)


def test_the_value_function_starts_from_the_label_reward_model(merged, reward_folders):
    backbone = make_backbone(merged, reward_folders)
    batch = sequences(backbone)
    with torch.no_grad():
        last = backbone._head_at("value", batch, batch.last())[:, 0]
        assert last.tolist() == pytest.approx(backbone.scores("rm_rllr", batch).tolist(), abs=1e-6)


def test_only_policy_and_value_are_trained(merged, reward_folders):
    backbone = make_backbone(merged, reward_folders)
    for adapter in ("policy", None, "rm_rllr", "value"):
        backbone.use(adapter)
        trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
        assert trained == {n for n in backbone.trained() if n != "value_head"}
        assert trained and all(".policy." in n or ".value." in n for n in trained)
        assert {n: h.weight.requires_grad for n, h in backbone.heads.items()} == {
            "rm_rllr": False, "rm_rlhf": False, "value": True,
        }  # fmt: skip


def sample(backbone, temperature=1.0, batch_size=8, indices=range(8)):
    indices = list(indices)
    numbers = uniforms(keys(3, 0, indices, 1), 6)
    prompts = [PROMPTS[i] for i in indices]
    rows, tokenizer = [{"id": str(i)} for i in indices], models.load_tokenizer(backbone.folder)
    return roll_out(backbone, rows, prompts, numbers, tokenizer, temperature, batch_size)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, None)])
def test_old_logprobs_are_those_of_the_sampled_distribution(merged, reward_folders, temperature, dtype, bound):
    backbone = make_backbone(merged, reward_folders, dtype, policy_std=0.5)
    rollout = sample(backbone, temperature)
    batch = Packed.build(rollout.prompts, rollout.responses, 0, backbone.device)
    with torch.no_grad():
        found = backbone.logprobs("policy", batch, temperature)
    ratios = []
    for i, logprobs in enumerate(rollout.logprobs):
        ratios += [f - o for f, o in zip(found[i].tolist(), logprobs)]
        if bound:
            assert found[i, : len(logprobs)].tolist() == pytest.approx(logprobs, abs=bound)
    assert abs(sum(ratios) / len(ratios)) < (1e-6 if bound else 2e-2)  # a 32-wide random model: bf16 noise is large


def test_samples_depend_on_seed_and_prompt_alone(merged, reward_folders):
    backbone = make_backbone(merged, reward_folders, policy_std=0.5)
    together, by_two = sample(backbone), sample(backbone, batch_size=2)
    some = sample(backbone, indices=[5, 2])
    assert together.responses == by_two.responses
    assert some.responses == [together.responses[5], together.responses[2]]
    draws = {
        tuple(uniforms(keys(seed, epoch, [i], 1), 3)[0].tolist()) for seed in (1, 2) for epoch in (0, 1) for i in (0, 1)
    }
    assert len(draws) == 8


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_distribution(temperature):
    from rllr.lm.generation import choose

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    numbers = torch.rand(20000, generator=torch.Generator().manual_seed(1))
    tokens, logprobs, entropies = choose(logits.expand(20000, -1), numbers, temperature)
    found = torch.bincount(tokens, minlength=12) / 20000
    expected = (logits[0].double() / temperature).softmax(-1)
    assert torch.allclose(found, expected.to(found), atol=0.015)
    assert torch.allclose(logprobs.double(), expected.log()[tokens], atol=1e-5)
    assert entropies[0].item() == pytest.approx(-(expected * expected.log()).sum().item(), abs=1e-5)


def test_first_step_has_ratio_one_and_no_kl(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks)
    metrics, samples = trainer.step(rows(), PROMPTS, 0, list(range(8)))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["clip_fraction"] == 0 and metrics["skipped"] == 0
    assert metrics["samples"] == len(samples) == 8
    for key in ("label_reward", "rationale_reward"):
        assert sum(sample[key] for sample in samples) / 8 == pytest.approx(metrics[key], rel=1e-5)
    totals = [min(s["label_reward"], trainer.rewards.threshold) + s["rationale_reward"] for s in samples]
    assert [s["score"] for s in samples] == pytest.approx(
        [(total - statistics.mean(totals)) / statistics.stdev(totals) for total in totals], abs=1e-4
    )


def plain_iteration(trainer, rollout, raw, tau):
    """PPO's losses and gradients on a rollout by loops over tokens in float64 and autograd on unpadded sequences."""
    settings, backbone = trainer.config, trainer.backbone
    scores = [
        min(label, tau) + rationale
        for label, rationale in zip(raw["label"].double().tolist(), raw["rationale"].double().tolist())
    ]
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
    scores = [(s - mean) / (std + 1e-8) for s in scores]
    advantages, returns, old_values = [], [], []
    for prompt, response, old, score in zip(rollout.prompts, rollout.responses, rollout.logprobs, scores):
        with torch.no_grad():
            backbone.use(None)
            logp = backbone.model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
            reference = [logp[len(prompt) - 1 + j, t].item() for j, t in enumerate(response)]
            backbone.use("value")
            hidden = backbone.trunk(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
            value = backbone.heads["value"](hidden)[len(prompt) - 1 : -1, 0].double().tolist()
        reward = [-settings.kl_beta * (o - r) for o, r in zip(old, reference)]
        reward[-1] += score
        advantage, carried = [0.0] * len(response), 0.0
        for t in reversed(range(len(response))):
            following = value[t + 1] if t + 1 < len(response) else 0.0
            carried = reward[t] + settings.gamma * following - value[t] + settings.gamma * settings.gae_lambda * carried
            advantage[t] = carried
        advantages.append(advantage)
        old_values.append(value)
        returns.append([a + v for a, v in zip(advantage, value)])
    flat = [a for row in advantages for a in row]
    mean = sum(flat) / len(flat)
    variance = sum((a - mean) ** 2 for a in flat) / (len(flat) - 1)
    policy, value_sum = 0.0, 0.0
    for i, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses)):
        backbone.use("policy")
        logits = backbone.model(input_ids=torch.tensor([prompt + response])).logits[0]
        logp = logits.log_softmax(-1)
        for j, token in enumerate(response):
            ratio = torch.exp(logp[len(prompt) - 1 + j, token] - rollout.logprobs[i][j])
            a = (advantages[i][j] - mean) / math.sqrt(variance + 1e-8)
            policy = policy + torch.maximum(-a * ratio, -a * ratio.clamp(1 - settings.clip, 1 + settings.clip))
    for i, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses)):
        backbone.use("value")
        hidden = backbone.trunk(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        values = backbone.heads["value"](hidden)[len(prompt) - 1 : -1, 0]
        for j in range(len(response)):
            v, o, r = values[j], old_values[i][j], returns[i][j]
            cut = v.clamp(o - settings.value_clip, o + settings.value_clip)
            value_sum = value_sum + 0.5 * torch.maximum((v - r) ** 2, (cut - r) ** 2)
    loss = (policy + settings.value_coef * value_sum) / len(flat)
    names = list(backbone.trained())
    gradients = torch.autograd.grad(loss, list(backbone.trained().values()))
    return policy.item() / len(flat), value_sum.item() / len(flat), dict(zip(names, gradients))


def test_a_stop_token_of_the_base_ends_a_rollout(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks)
    assert trainer.stops == [tokenizer.eos_token_id]
    drawn = trainer.roll_out(rows(), PROMPTS, 0, list(range(8))).responses
    trainer.backbone.plain.generation_config.eos_token_id = sorted({response[0] for response in drawn})
    trainer.__post_init__()
    metrics, samples = trainer.step(rows(), PROMPTS, 0, list(range(8)))
    assert metrics["length"] == metrics["eos_rate"] == 1 and {sample["response"] for sample in samples} == {""}


def test_losses_and_gradients_equal_a_plain_implementation(merged, reward_folders, tokenizer, demo_tasks):
    # A rollout by an older policy, so that ratios differ from 1, some are clipped, and the KL term is not 0.
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.5, micro_batch_size=3)
    trainer.single = False  # the ratio to the sampled log-probabilities, as with several steps an iteration
    rollout = trainer.roll_out(rows(), PROMPTS, 0, list(range(8)))
    for name, parameter in trainer.backbone.trained().items():
        if ".policy." in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    texts, raw, scores = trainer.score(rollout)
    expected_policy, expected_value, expected = plain_iteration(trainer, rollout, raw, 0.5)

    batch, metrics = trainer.advantages(rollout, texts, scores)
    seen = {}

    def capture(*args, **kwargs):
        seen.update({n: p.grad.clone() for n, p in trainer.backbone.trained().items()})
        return torch.tensor(1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", capture)
        metrics |= trainer.optimise(batch)
    assert metrics["clip_fraction"] > 0
    assert metrics["policy_loss"] == pytest.approx(expected_policy, abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(expected_value, rel=1e-5)
    for name, gradient in expected.items():
        assert torch.allclose(seen[name], gradient, atol=1e-5, rtol=1e-4), name


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"gradient_checkpointing": True}]
)
def test_micro_batches_and_checkpointing_do_not_change_an_iteration(
    merged, reward_folders, tokenizer, demo_tasks, changes
):
    results = []
    for settings in ({}, changes):
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.3, **settings)
        metrics, _ = trainer.step(rows(), PROMPTS, 0, list(range(8)))
        results.append((metrics, {n: p.detach().clone() for n, p in trainer.backbone.trained().items()}))
    for key in ("policy_loss", "value_loss", "gradient_norm", "kl", "reward"):
        assert results[0][0][key] == pytest.approx(results[1][0][key], rel=1e-4, abs=1e-6)
    for name, tensor in results[0][1].items():
        # AdamW's first step is a sign: a gradient of rounding size may go either way.
        assert (tensor - results[1][1][name]).abs().mean() < 1e-5


def test_more_updates_per_batch_take_more_optimiser_steps(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, updates=4, update_epochs=2)
    metrics, _ = trainer.step(rows(), PROMPTS, 0, list(range(8)))
    steps = {int(s["step"]) for s in trainer.optimizer.state.values()}
    assert steps == {8} and metrics["ratio"] != pytest.approx(1, abs=1e-7)


def test_a_batch_with_runaway_ratios_takes_no_step(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks)
    rollout = trainer.roll_out(rows(), PROMPTS, 0, list(range(8)))
    rollout.logprobs = [[p - 5 for p in row] for row in rollout.logprobs]
    before = {n: p.detach().clone() for n, p in trainer.backbone.trained().items()}
    texts, _, scores = trainer.score(rollout)
    metrics = trainer.optimise(trainer.advantages(rollout, texts, scores)[0])
    assert metrics["skipped"] == 1 and metrics["ratio"] > 10
    assert all(torch.equal(before[n], p) for n, p in trainer.backbone.trained().items())


def run(trainer, iterations, reward, copies=1):
    """Train with `reward(response ids) -> float` in place of the reward models; the mean reward of each iteration."""

    def score(rollout, _claims):
        texts = trainer.tokenizer.batch_decode(rollout.responses, skip_special_tokens=True)
        scores = torch.tensor([reward(r) for r in rollout.responses])
        if trainer.config.score_norm:
            trainer.moments.update(scores)
        return texts, {"label": scores}, trainer.moments.normalise(scores) if trainer.config.score_norm else scores

    trainer.score = score
    n = 8 * copies
    return [trainer.step(rows(n), PROMPTS * copies, i, list(range(n)))[0]["label_reward"] for i in range(iterations)]


def test_it_learns_a_label_and_stays_put_without_reward(merged, reward_folders, tokenizer, demo_tasks):
    changes = dict(
        learning_rate=5e-2, max_new_tokens=1, kl_beta=0.0, batch_size=64, micro_batch_size=64, rollout_batch_size=64,
        rewards=Rewards("gold", None, None),
        # Adapters on attention alone cannot outvote the random feed-forward layers of this model.
        lora={**LORA, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
    )  # fmt: skip
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, **changes)
    trainer.iterations = 80
    # The "label": the part of the vocabulary that lies farthest in one direction of the output layer, as a label's
    # words do in a trained model; no direction of 32 dimensions tells random tokens from the rest.
    unembedding = trainer.backbone.unembed.weight
    label = set((unembedding @ unembedding[77]).topk(110).indices.tolist())
    history = run(trainer, 65, lambda response: float(response[0] in label), copies=8)
    assert history[0] < 0.5 and sum(history[-5:]) / 5 >= 0.9

    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, rewards=Rewards("gold", None, None))
    run(trainer, 8, lambda response: 0.0)
    batch = sequences(trainer.backbone)
    with torch.no_grad():
        policy, reference = (trainer.backbone.logprobs(a, batch, 1.0) for a in ("policy", None))
    assert ((policy - reference)[batch.kept]).abs().mean() < 0.05


def test_two_runs_with_one_seed_are_the_same(merged, reward_folders, tokenizer, demo_tasks):
    ends = []
    for _ in range(2):
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks)
        for i in range(2):
            trainer.step(rows(), PROMPTS, i, list(range(8)))
        ends.append({n: p.detach().clone() for n, p in trainer.backbone.trained().items()})
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


@pytest.mark.parametrize("where", ["reward", "loss", "gradient"])
def test_non_finite_numbers_stop_the_run_with_iteration_and_prompt(
    merged, reward_folders, tokenizer, demo_tasks, where
):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks)
    if where == "reward":
        trainer.backbone.heads["rm_rllr"].weight.data.fill_(float("inf"))
        expected = r"iteration 1: label reward .* not finite; prompt r\d"
    elif where == "loss":
        trainer.config.value_coef = float("inf")
        expected = r"iteration 1: value loss .* not finite; prompt r\d"
    else:
        parameter = next(p for n, p in trainer.backbone.trained().items() if ".policy." in n)
        parameter.register_hook(lambda gradient: gradient * float("nan"))
        expected = r"iteration 1: gradient \(norm nan\) is not finite; prompt r\d"
    before = copy.deepcopy(trainer.optimizer.state_dict())
    with pytest.raises(UserError, match=expected):
        trainer.step(rows(), PROMPTS, 0, list(range(8)))
    assert trainer.optimizer.state_dict()["state"] == before["state"]


def test_a_reward_adapter_that_does_not_fit_is_refused(merged, reward_folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((reward_folders["rm_rllr"] / name).read_bytes())
    state = load_file(tmp_path / "adapter_model.safetensors")
    key = next(k for k in state if "lora_A" in k)
    lost = {k: v for k, v in state.items() if k != key}
    save_file(lost, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="missing"):
        Backbone(merged, LORA, {"rm_rllr": tmp_path}, "rm_rllr", torch.float32)
    save_file({**state, "base_model.model.extra.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="left over"):
        Backbone(merged, LORA, {"rm_rllr": tmp_path}, "rm_rllr", torch.float32)
    save_file({k: v for k, v in state.items() if "score" not in k}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="score head"):
        Backbone(merged, LORA, {"rm_rllr": tmp_path}, "rm_rllr", torch.float32)


def test_moments_survive_a_restart():
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 2.0, 4.0]))
    again = RunningMoments(**vars(moments))
    again.update(torch.tensor([3.0]))
    moments.update(torch.tensor([3.0]))
    assert vars(again) == vars(moments)


@pytest.mark.parametrize(
    ("prompts", "changes"),
    [
        (7, {}),
        (3, {"baseline": "leave_one_out", "samples_per_prompt": 4, "batch_size": 4}),
        (7, {"baseline": "all_labels", "claims": CLAIMS, "temperature": 0.05}),
    ],
    ids=["ppo", "groups", "all_labels"],
)
def test_two_processes_equal_one_on_stored_rollouts(
    merged, reward_folders, tokenizer, demo_tasks, tmp_path, prompts, changes
):
    import ppo_rank

    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.3, **changes)
    # An odd number of prompts: the processes get uneven shares.
    rollout = trainer.roll_out(rows(prompts), PROMPTS[:prompts], 0, list(range(prompts)))
    rewards = {role: str(folder) for role, folder in reward_folders.items()}
    # A claim that the random policy says, of one token; and one that it does not.
    ids = dict(zip(CLAIMS["movie_reviews"].values(), ([5, 6, 7], rollout.responses[0][:1])))
    stored = {**vars(rollout), "merged": str(merged), "rewards": rewards, "changes": changes, "ids": ids}
    torch.save(stored, tmp_path / "state.pt")
    expected = ppo_rank.iteration(trainer, stored)

    two_processes.run(ppo_rank.__file__, tmp_path / "state.pt", tmp_path / "result.pt")
    found = torch.load(tmp_path / "result.pt", weights_only=True)
    own = {
        "value": ["policy_loss", "value_loss"],
        "leave_one_out": ["policy_loss"],
        "all_labels": ["label_mass", "expected_label_reward"],  # its policy loss is 0 but for rounding
    }
    for key in ("ratio", "gradient_norm", "kl", "samples", *own[changes.get("baseline", "value")]):
        assert found["metrics"][key] == pytest.approx(expected["metrics"][key], rel=1e-4, abs=1e-6), key
    assert found["moments"] == pytest.approx(expected["moments"], rel=1e-5)
    for name, parameter in expected["parameters"].items():
        assert (parameter - found["parameters"][name]).abs().mean() < 1e-5
