"""Rows side by side: what `auto` takes, and that fewer rows, where memory runs out, change no result."""

import json
from dataclasses import make_dataclass

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rllr.cli import UserError
from rllr.config import load_yaml, stage_config
from rllr.lm import budget, fitting, models
from rllr.lm.sampling import respond, uniforms
from rllr.methods import SECTIONS
from rllr.ppo.backbone import Backbone
from rllr.train.trainer import SupervisedConfig
from test_gpu import ROOT
from test_ppo_engine import PROMPTS, make_trainer, rows


@pytest.fixture(autouse=True)
def nothing_known():
    fitting.found_to_fit.clear()
    yield
    fitting.found_to_fit.clear()


def small_memory(function, rows_of, most: int):
    """`function`, which runs out of memory with more than `most` rows."""

    def limited(*args, **kwargs):
        if rows_of(*args, **kwargs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return function(*args, **kwargs)

    return limited


def test_parts_are_halved_for_good_and_cover_everything(capsys):
    double = small_memory(lambda part: [2 * x for x in part], len, 3)
    found = list(fitting.parts("thing", range(20), 16, double))
    assert [list(part) for part, _ in found] == [[x, x + 1] for x in range(0, 20, 2)]
    assert [x for _, part in found for x in part] == list(range(0, 40, 2))
    told = capsys.readouterr().err.splitlines()
    assert told == [f"thing: out of memory with {n} rows at a time, going on with {n // 2}" for n in (16, 8, 4)]
    assert len(list(fitting.parts("thing", range(20), 16, double))) == 10 and not capsys.readouterr().err
    assert fitting.fewer("thing", 15) == 7
    assert fitting.fewer("thing", 15, dividing=True) == 5  # 7 would not divide a batch


def test_one_row_that_does_not_fit_ends_in_one_line_and_other_errors_pass():
    with pytest.raises(UserError, match="thing: out of memory with a single row; lower cutoff, or use a larger device"):
        list(fitting.parts("thing", [1, 2], 2, small_memory(len, len, 0)))

    def fault(part):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(fitting.parts("thing", [1, 2], 2, fault))


# auto


def resolved(stage: str, **changes):
    defaults, model = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/mistral.yaml")
    if SECTIONS[stage] != "ppo":
        changes.pop("rollout_batch_size", None)
    model[stage] = {**model.get(stage, {}), **changes}
    values = {"model": "mistral", **stage_config(defaults, model, stage, 1, "x")}
    return make_dataclass("Config", values)(**values)


@pytest.fixture
def mistral(tmp_path):
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
    config = {"model_type": "mistral", "vocab_size": 32000, "num_key_value_heads": 8, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def has(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: (gib * 2**30, "a GPU"))


@pytest.mark.parametrize(
    ("stage", "section", "key"),
    [("sft_wrat", "sft", "micro_batch_size"), ("rm_rllr", "reward", "micro_batch_size"),
     ("rllr", "ppo", "micro_batch_size"), ("predict", "predict", "batch_size")],
)  # fmt: skip
def test_auto_is_the_largest_power_of_two_that_the_budget_allows(monkeypatch, mistral, stage, section, key):
    recompute = {} if section == "predict" else {"gradient_checkpointing": True}
    sizes, config = budget.Sizes.read(mistral), resolved(stage, **{key: "auto"}, **recompute)
    found = []
    for gib in (24, 40, 80):
        has(monkeypatch, gib)
        size = getattr(fitting.settled(config, mistral, section, rewards=1), key)
        values = {**budget.as_run(vars(config), section), "rollout_batch_size": 1}
        fits = [budget.memory(sizes, {**values, key: n}, section, 1)["peak"] <= gib * 2**30 for n in (size, 2 * size)]
        assert (fits[0] or size == 1) and (not fits[1] or size == config.batch_size)
        found.append(size)
    assert found == sorted(found) and found[-1] > found[0]
    explicit = resolved(stage, **{key: 3 if section in ("ppo", "predict") else 2}, **recompute)
    if section != "ppo":
        assert fitting.settled(explicit, mistral, section) == explicit


def test_a_micro_batch_divides_the_batch_and_a_rollout_is_not_below_it(monkeypatch, mistral):
    has(monkeypatch, 1000)
    config = resolved("sft_wrat", micro_batch_size="auto", batch_size=24)
    assert fitting.settled(config, mistral, "sft").micro_batch_size == 8
    has(monkeypatch, 16)
    config = resolved("rllr_rloo", rollout_batch_size="auto", batch_size=24, samples_per_prompt=4)
    assert fitting.settled(config, mistral, "ppo").rollout_batch_size == 96
    (mistral / "config.json").write_text('{"model_type": "mamba", "vocab_size": 10}')
    config = resolved("predict", batch_size="auto")
    assert fitting.settled(config, mistral, "predict").batch_size == fitting.UNKNOWN


@pytest.mark.parametrize(("stage", "section"), [("sft_wrat", "sft"), ("rm_rllr", "reward"), ("rllr_mix", "ppo")])
def test_activations_are_recomputed_only_where_a_micro_batch_does_not_fit(monkeypatch, mistral, capsys, stage, section):
    found = {}
    for micro in (1, 4, "auto"):
        for gib in (20, 40, 80, 1000):
            has(monkeypatch, gib)
            config = resolved(stage, micro_batch_size=micro, rollout_batch_size=32)
            found[micro, gib] = fitting.settled(config, mistral, section, rewards=2)
    recomputed = {key: config.gradient_checkpointing for key, config in found.items()}
    assert not any(recomputed[micro, 1000] for micro in (1, 4, "auto"))
    assert all(recomputed[micro, 20] for micro in (1, 4, "auto"))
    assert not recomputed[1, 80] and not recomputed["auto", 80]
    assert [recomputed[4, gib] for gib in (20, 40, 80, 1000)] == sorted(
        [recomputed[4, gib] for gib in (20, 40, 80, 1000)], reverse=True
    )
    sizes = budget.Sizes.read(mistral)
    for (micro, gib), config in found.items():
        if micro != "auto" and not config.gradient_checkpointing and section != "ppo":
            values = budget.as_run(vars(config), section)
            assert budget.memory(sizes, values, section, 2)["peak"] <= gib * 2**30
    assert "gradient_checkpointing: auto, off, for 1 rows at a time on a GPU" in capsys.readouterr().err
    (mistral / "config.json").write_text('{"model_type": "mamba", "vocab_size": 10}')
    assert fitting.settled(resolved(stage, micro_batch_size=1), mistral, section).gradient_checkpointing


def test_processes_agree_on_the_number_that_fits_them_all(monkeypatch, mistral):
    has(monkeypatch, 1000)
    # The other one's device is fuller.
    monkeypatch.setattr(fitting.ranks, "gather", lambda value: [*value, False if isinstance(value[0], bool) else 4])
    found = fitting.settled(resolved("sft_wrat", micro_batch_size="auto"), mistral, "sft")
    assert (found.micro_batch_size, found.gradient_checkpointing) == (4, True)


# Results


def test_ppo_out_of_memory_computes_the_same_iteration(monkeypatch, merged, reward_folders, tokenizer, demo_tasks):
    from rllr.lm import sampling

    hidden, generate = Backbone.hidden, sampling.generate
    results = []
    for limited in (False, True):
        if limited:
            rows_of = lambda self, **inputs: len(inputs["input_ids"]) if torch.is_grad_enabled() else 0  # noqa: E731
            monkeypatch.setattr(Backbone, "hidden", small_memory(hidden, rows_of, 3))
            monkeypatch.setattr(
                sampling, "generate", small_memory(generate, lambda _, prompts, *rest, **more: len(prompts), 4)
            )
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.3)
        metrics, samples = trainer.step(rows(), PROMPTS, 0, list(range(8)))
        results.append((metrics, samples, {n: p.detach().clone() for n, p in trainer.backbone.trained().items()}))
    assert fitting.found_to_fit == {"decoding": 4, "micro-batch": 2}
    assert [s["response"] for s in results[0][1]] == [s["response"] for s in results[1][1]]
    for key in ("policy_loss", "value_loss", "gradient_norm", "kl", "reward"):
        assert results[0][0][key] == pytest.approx(results[1][0][key], rel=1e-4, abs=1e-6), key
    for name, tensor in results[0][2].items():
        assert (tensor - results[1][2][name]).abs().mean() < 1e-5


def test_memory_that_runs_out_in_the_backward_pass_leaves_no_gradient_behind(
    merged, reward_folders, tokenizer, demo_tasks
):
    """The first micro-batch fails after half of its gradients are there."""
    norms = []
    for fails in (0, 1):
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.3)
        left = [fails]

        def hook(gradient, left=left):
            left[0] -= 1
            if left[0] >= 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return gradient

        trained = trainer.backbone.trained()
        first = next(p for n, p in trained.items() if ".policy." in n and ".layers.0." in n)  # the last to get its own
        first.register_hook(hook)
        metrics, _ = trainer.step(rows(), PROMPTS, 0, list(range(8)))
        norms.append(metrics["gradient_norm"])
    assert fitting.found_to_fit == {"micro-batch": 4}
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_answers_are_the_same_in_smaller_parts(monkeypatch, merged, tokenizer):
    from rllr.lm import sampling

    model, numbers = models.load_adapter(merged, None, torch.float32), uniforms([[i] for i in range(16)], 6)

    def answers() -> dict:
        batches = respond(model, tokenizer, PROMPTS, 16, 6, torch.float32, numbers, samples=2)
        return {i: r for indices, result in batches for i, r in zip(indices, result.responses, strict=True)}

    expected = answers()
    limited = small_memory(sampling.generate, lambda _, prompts, *rest, **named: len(prompts), 2)
    monkeypatch.setattr(sampling, "generate", limited)
    assert answers() == expected and fitting.found_to_fit == {"decoding": 2}


def test_the_scale_of_label_rewards_does_not_depend_on_the_micro_batch(merged, reward_folders, tokenizer, demo_tasks):
    from rllr.ppo.scoring import Rewards

    norms = []
    for micro in (8, 3, 1):
        trainer = make_trainer(
            merged, reward_folders, tokenizer, demo_tasks, Rewards("gold", None, None), policy_std=0.3,
            micro_batch_size=micro, baseline="all_labels",
            claims={"movie_reviews": {"negative": "M", "positive": "NO"}},
        )  # fmt: skip
        rollout = trainer.roll_out(rows(), PROMPTS, 0, list(range(8)))
        with pytest.raises(UserError, match="needs answers that begin with a claim"):  # a random model's do not
            trainer.learn_labels(rollout, list(range(8)), trainer.judge(rollout))
        gradients = [p.grad for p in trainer.parameters if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        assert trainer.choices.moments.count == 16
    assert norms[0] > 0 and norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-4)


def test_a_single_row_that_does_not_fit_is_tried_with_recomputed_activations(monkeypatch, tmp_path, capsys):
    from transformers import TrainingArguments

    from rllr.train import trainer

    tried = []

    def run(built, folder, out):
        tried.append((built.args["per_device_train_batch_size"], built.args["gradient_checkpointing"]))
        if tried[-1] != (1, True):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    class Built:
        model = torch.nn.Linear(1, 1)

        def __init__(self, args):
            TrainingArguments(**{k: v for k, v in args.items() if k != "max_length"})
            self.args = args

    monkeypatch.setattr(trainer, "run", run)
    monkeypatch.setattr(models, "describe", lambda *_: None)
    defaults, tiny = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
    tiny["sft"] |= {"batch_size": 4, "micro_batch_size": 2, "gradient_checkpointing": False}
    config = SupervisedConfig(model="tiny", **stage_config(defaults, tiny, "sft_wrat", 1, "x"))
    trainer.train(config, 8, tmp_path / "checkpoints", tmp_path, torch.float32, Built)
    assert tried == [(2, False), (1, False), (1, True)]
    assert "out of memory with a single row, going on with gradient_checkpointing" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [4, "auto"])
def test_sft_out_of_memory_goes_on_from_its_checkpoint_to_the_same_adapter(
    monkeypatch, tmp_path, merged, capsys, setting
):
    from rllr.train import supervised

    said = ["It is fine.\nLabel: positive", "It is dull, and long.\nLabel: negative"]
    row = {"task": "reviews", "instruction": "Good?", "label": "positive"}
    data = [{**row, "id": str(i), "input": "a film " * (i % 5 + 1), "output": said[i % 2]} for i in range(16)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data))
    monkeypatch.setattr(budget, "available_memory", lambda: (2**34, "this machine"))
    collate, calls = supervised.collate, [0]

    def limited(batch, pad):
        calls[0] += 1
        if fails and calls[0] == 4 and len(batch) == 4:  # in the fourth step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return collate(batch, pad)

    monkeypatch.setattr(supervised, "collate", limited)
    adapters = []
    for fails in (False, True):
        out = tmp_path / f"sft_{fails}"
        out.mkdir()
        defaults, tiny = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
        tiny["sft"] |= {"epochs": 2, "batch_size": 4, "micro_batch_size": setting, "save_steps": 2}
        values = {"model": "tiny", **stage_config(defaults, tiny, "sft_wrat", 1, "x")}
        (out / "config.yaml").write_text(yaml.safe_dump(values))
        calls[0] = 0
        config = SupervisedConfig(**values)
        supervised.fine_tune(config, out / "config.yaml", merged, tmp_path / "data.jsonl", data, out)
        adapters.append(load_file(out / "adapter/adapter_model.safetensors"))
        log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log if "loss" in line] == list(range(1, 9))
    told = capsys.readouterr().err
    assert told.count("micro-batch: out of memory with 4 rows at a time, going on with 2") == 1
    assert "resuming from" in told and told.count("= 4; 16 rows x 2 epochs = 8 optimiser steps") == 3
    for name, tensor in adapters[0].items():
        assert (tensor - adapters[1][name]).abs().max() < 2e-5, name
