"""Groups: several responses to a prompt, which is computed once for all of them, and the RLOO baseline."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.cli import UserError
from rllr.config import load_yaml, stage_config
from rllr.lm import rewards as reward_models
from rllr.lm.generation import generate
from rllr.lm.packing import Packed, by_size, shares_prompts
from rllr.ppo.advantages import leave_one_out
from rllr.ppo.losses import group_policy_loss
from rllr.ppo.scoring import Rewards
from test_ppo_engine import LORA, PROMPTS, make_trainer, rows, run

GROUPS = {"samples_per_prompt": 4, "baseline": "leave_one_out", "batch_size": 2}


# Shared prompts

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)


def tiny(kind: str):
    """A random model of one of the paper's architectures (once converted, ChatGLM3 is Glm, Baichuan2-7B Llama)."""
    import transformers

    torch.manual_seed(0)
    shared = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    if kind == "baichuan2-13b":
        from rllr.base.baichuan13b import Baichuan13BConfig, Baichuan13BForCausalLM

        return Baichuan13BForCausalLM(Baichuan13BConfig(**{**shared, "num_key_value_heads": 4})).eval()
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared)),
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**shared, sliding_window=None)),
        "glm": lambda: transformers.GlmForCausalLM(transformers.GlmConfig(**shared, head_dim=8)),
        "bloom": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50)
        ),
    }
    return made[kind]().eval()


ragged = st.lists(
    st.tuples(
        st.lists(st.integers(3, 49), min_size=1, max_size=6),
        st.lists(st.lists(st.integers(3, 49), min_size=1, max_size=5), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def logprobs(model, batch: Packed) -> torch.Tensor:
    logits = model(**batch.inputs()).logits[batch.group, batch.predicts]
    return logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0] * batch.kept


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "glm", "baichuan2-13b", "bloom"])
def test_shared_prompts_give_the_same_outputs_and_gradients(kind, attention):
    model = tiny(kind)
    if attention == "eager":
        model.set_attn_implementation("eager")
    assert shares_prompts(model) == (kind in ("llama", "mistral", "glm"))
    for other in ("flash_attention_2", "kernels-community/flash-attn2"):  # takes no mask of one's own
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.config, "_attn_implementation_internal", other)
            assert not shares_prompts(model)

    @settings(max_examples=15, deadline=None)
    @given(ragged)
    def check(drawn):
        prompts = [prompt for prompt, responses in drawn for _ in responses]
        responses = [response for _, own in drawn for response in own]
        results = []
        for shared in (shares_prompts(model), False):
            batch = Packed.build(prompts, responses, 0, "cpu", shared=shared)
            model.zero_grad()
            found = logprobs(model, batch)
            found.sum().backward()
            gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            results.append((found.detach(), gradients))
        for prompt, response, row in zip(
            prompts, responses, results[0][0], strict=True
        ):  # one row at a time, no padding
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0].detach().log_softmax(-1)
            expected = [logits[len(prompt) - 1 + j, token] for j, token in enumerate(response)]
            assert torch.allclose(row[: len(response)], torch.stack(expected), atol=1e-4)
        assert torch.allclose(results[0][0], results[1][0], atol=1e-4)
        assert torch.allclose(results[0][1], results[1][1], atol=1e-3, rtol=1e-3)

    check()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 8))
def test_every_response_is_in_one_batch_beside_those_of_its_prompt(which, batch_size):
    prompts = [[prompt] * (prompt + 1) for prompt in which]
    responses = [[1] * (i % 3 + 1) for i in range(len(which))]
    batches = by_size(prompts, responses, batch_size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(which)))
    assert all(len(batch) <= batch_size for batch in batches)
    for prompt in set(which):
        homes = [k for k, batch in enumerate(batches) for i in batch if which[i] == prompt]
        assert len(set(homes)) <= -(-which.count(prompt) // batch_size)


def test_a_reward_model_scores_alike_alone_and_in_groups(merged, reward_folders, tokenizer):
    model = reward_models.load_reward(merged, reward_folders["rm_rllr"], torch.float32)
    prompts, responses = [p for p in PROMPTS[:3] for _ in range(3)], [[5] * n for n in range(1, 10)]
    together = reward_models.scores(model, tokenizer, prompts, responses, 9, torch.float32)
    alone = [reward_models.scores(model, tokenizer, [p], [r], 1, torch.float32)[0] for p, r in zip(prompts, responses)]
    assert together == pytest.approx(alone, abs=1e-5)
    for prompt, response, score in zip(prompts, responses, alone):  # the model's own forward pass
        assert model.model(input_ids=torch.tensor([prompt + response])).logits.item() == pytest.approx(score, abs=1e-5)


def test_the_log_says_whether_prompts_are_shared(capsys):
    from rllr.lm.packing import describe_sharing

    for kind, told in (("llama", "once"), ("baichuan2-13b", "for each of them (ALiBi"), ("bloom", "for each of them")):
        describe_sharing(shares_prompts(tiny(kind)), "sides of a pair")
        assert f"sides of a pair: their prompt is computed {told}" in capsys.readouterr().err


def test_a_prompt_read_once_gives_the_samples_of_one_read_for_each():
    model, numbers = tiny("llama"), torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompts = [[5, 6, 7], [8]]
    once = generate(model, prompts, [2], 0, 5, numbers, samples=3)
    each = generate(model, [p for p in prompts for _ in range(3)], [2], 0, 5, numbers)
    assert once.responses == each.responses
    for a, b in zip(once.logprobs, each.logprobs):
        assert a == pytest.approx(b, abs=1e-5)


# The baseline


def test_the_baseline_is_the_mean_of_the_others():
    scores = [1.0, 4.0, -2.0, 0.5, 3.0, 3.0]
    found = leave_one_out(torch.tensor(scores, dtype=torch.float64), 3)
    for i, score in enumerate(scores):
        others = [scores[j] for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i]
        assert found[i].item() == pytest.approx(score - sum(others) / 2, rel=1e-12)


def test_losses_are_those_of_trls_trainer():
    from trl import RLOOTrainer

    generator = torch.Generator().manual_seed(0)
    new, old = (-torch.rand(8, 5, generator=generator) for _ in range(2))
    new.requires_grad_()
    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5, 1, 2])[:, None]
    scores = torch.randn(8, generator=generator)
    advantages = leave_one_out(scores, 4)
    grouped = scores.view(-1, 4)  # as RLOOTrainer._generate_and_score_completions has it
    assert torch.allclose(advantages, scores - ((grouped.sum(1, keepdim=True) - grouped) / 3).flatten(), atol=1e-6)

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (new, torch.zeros(8, 5), None),
        aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.2, model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(reduce=lambda t, reduction: t, gather=lambda t: t, gather_for_metrics=lambda t: t),
        _metrics={"train": {k: [] for k in ("entropy", "clip_ratio/low_mean", "clip_ratio/low_min",
                  "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean")}},
    )  # fmt: skip
    ids = torch.zeros(8, 5, dtype=torch.long)
    theirs = RLOOTrainer._compute_loss(
        trainer, None,
        {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long(),
         "old_logps": (old * mask).sum(1), "advantages": advantages},
    )  # fmt: skip
    ours = group_policy_loss(new, old, advantages, mask, 0.2)[0] / 8
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6)


def plain_gradients(trainer, rollout, scores):
    """RLOO by loops over responses, each a pass of its own, with advantages in float64."""
    settings, backbone, k = trainer.config, trainer.backbone, trainer.config.samples_per_prompt
    values = []
    for prompt, response, old, score in zip(rollout.prompts, rollout.responses, rollout.logprobs, scores.tolist()):
        with torch.no_grad():
            backbone.use(None)
            logp = backbone.model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        reference = [logp[len(prompt) - 1 + j, t].item() for j, t in enumerate(response)]
        values.append(score - settings.kl_beta * sum(o - r for o, r in zip(old, reference)))
    loss = 0.0
    for i, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses)):
        group = range(i // k * k, i // k * k + k)
        advantage = values[i] - sum(values[j] for j in group if j != i) / (k - 1)
        backbone.use("policy")
        logp = backbone.model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        total = sum(logp[len(prompt) - 1 + j, token] for j, token in enumerate(response))
        ratio = torch.exp(total - sum(rollout.logprobs[i]))
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        loss = loss + torch.maximum(-advantage * ratio, -advantage * clipped) / len(rollout.responses)
    names = list(backbone.trained())
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, list(backbone.trained().values()))))


def test_an_iteration_equals_a_plain_one(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.5, micro_batch_size=3, **GROUPS)
    trainer.single = False
    rollout = trainer.roll_out(rows(2), PROMPTS[:2], 0, [0, 1])
    assert [row["id"] for row in rollout.rows[:4]] == [rollout.rows[0]["id"]] * 4
    for name, parameter in trainer.backbone.trained().items():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.02)
        assert "value" not in name
    texts, _, scores = trainer.score(rollout)
    expected_loss, expected = plain_gradients(trainer, rollout, scores)
    batch, metrics = trainer.advantages(rollout, texts, scores)
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.utils, "clip_grad_norm_",
            lambda *a, **k: seen.update({n: p.grad.clone() for n, p in trainer.backbone.trained().items()})
            or torch.tensor(1.0),
        )  # fmt: skip
        metrics |= trainer.optimise(batch)
    assert metrics["policy_loss"] == pytest.approx(expected_loss, abs=1e-5)
    assert "value_loss" not in metrics
    for name, gradient in expected.items():
        assert torch.allclose(seen[name], gradient, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"gradient_checkpointing": True}]
)
def test_micro_batches_do_not_change_an_iteration(merged, reward_folders, tokenizer, demo_tasks, changes):
    results = []
    for own in ({}, changes):
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.3, **GROUPS, **own)
        metrics, samples = trainer.step(rows(2), PROMPTS[:2], 0, [0, 1])
        assert metrics["samples"] == len(samples) == 8
        results.append((metrics, {n: p.detach().clone() for n, p in trainer.backbone.trained().items()}))
    for key in ("policy_loss", "gradient_norm", "kl", "reward"):
        assert results[0][0][key] == pytest.approx(results[1][0][key], rel=1e-4, abs=1e-6)
    for name, tensor in results[0][1].items():
        assert (tensor - results[1][1][name]).abs().mean() < 1e-5


def test_a_group_of_equal_rewards_gives_no_gradient(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(
        merged, reward_folders, tokenizer, demo_tasks, kl_beta=0.0, score_norm=False,
        rewards=Rewards("gold", None, None), **GROUPS,
    )  # fmt: skip
    before = copy.deepcopy({n: p.detach() for n, p in trainer.backbone.trained().items()})
    trainer.config.weight_decay = 0.0
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    run(trainer, 2, lambda response: 1.0)
    assert all(torch.equal(before[n], p) for n, p in trainer.backbone.trained().items())


@pytest.mark.parametrize("learning_rate", [1e-2, 2e-2])
def test_it_learns_a_label_in_fewer_samples_than_with_a_critic(
    merged, reward_folders, tokenizer, demo_tasks, learning_rate
):
    """The first of six tokens decides the reward, which comes at the end; 64 samples an iteration."""
    needed = []
    for own, copies in (({**GROUPS, "batch_size": 16}, 2), ({"batch_size": 64}, 8)):
        trainer = make_trainer(
            merged, reward_folders, tokenizer, demo_tasks, learning_rate=learning_rate, max_new_tokens=6, kl_beta=0.0,
            micro_batch_size=64, rollout_batch_size=64, rewards=Rewards("gold", None, None),
            lora={**LORA, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}, **own,
        )  # fmt: skip
        trainer.iterations = 120
        unembedding = trainer.backbone.unembed.weight
        label = set((unembedding @ unembedding[77]).topk(110).indices.tolist())
        history = run(trainer, 50, lambda response: float(response[0] in label), copies=copies)  # noqa: B023
        assert sum(history[:5]) / 5 < 0.5
        needed.append(next(i for i in range(4, 50) if sum(history[i - 4 : i + 1]) / 5 >= 0.8))
    assert needed[0] < needed[1], needed


def test_a_group_of_one_has_no_others(tmp_path):
    from rllr.provenance import PROGRAMS

    config = PROGRAMS.parents[1] / "config"
    model = load_yaml(config / "models/tiny.yaml")
    model["ppo"] |= {"baseline": "leave_one_out"}
    with pytest.raises(UserError, match="leave_one_out needs samples_per_prompt above 1, found 1"):
        stage_config(load_yaml(config / "stages.yaml"), model, "rllr", 1, "x")
