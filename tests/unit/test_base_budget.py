"""The estimates of memory against measurements on small models, and refusals with numbers."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rllr.cli import UserError
from rllr.lm import budget, duration

LORA = {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
SFT = {
    "model": "m", "stage": "sft", "lora": LORA, "precision": "bf16", "attention": "auto",
    "cutoff": 1536, "micro_batch_size": 4,
    "gradient_checkpointing": False,
}  # fmt: skip


PPO = SFT | {
    "max_new_tokens": 256, "batch_size": 32, "rollout_batch_size": 32, "samples_per_prompt": 1, "baseline": "value",
}  # fmt: skip


class Live(TorchDispatchMode):
    """The most bytes of tensors that lived at a time while this was on, those from before left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() and id(storage) not in self.sizes and storage.data_ptr() not in self.before:
                    self.sizes[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, id(storage))
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def besides(self, model) -> "Live":
        self.before = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return self


@pytest.mark.parametrize("case", ["scoring", "reward", "decoding"])
def test_peaks_of_whole_passes(tmp_path, case):
    """What a pass of 8 rows of 192 tokens has alive at its peak, measured, against the estimate of the same parts."""
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from rllr.lm import models, rewards
    from rllr.lm.generation import generate
    from rllr.lm.packing import Packed
    from rllr.train.pairwise import pairwise_loss

    shape = dict(hidden_size=256, num_hidden_layers=3, num_attention_heads=8, intermediate_size=700, vocab_size=3000)
    shape |= {"num_key_value_heads": 2, "pad_token_id": 0}
    LlamaConfig(**shape).save_pretrained(tmp_path)
    sizes, room, prompt = budget.Sizes.read(tmp_path), 64, list(range(1, 129))
    kind = LlamaForSequenceClassification if case == "reward" else LlamaForCausalLM
    model = kind._from_config(LlamaConfig(**shape, num_labels=1), attn_implementation="sdpa")
    model.requires_grad_(False)
    live = Live().besides(model)
    if case == "decoding":
        prompts, numbers = [[*prompt, i] for i in range(8)], torch.rand(8, room)
        with live:
            generate(model.eval(), prompts, [2999], 0, room, numbers)
        expected = budget.generation(sizes, 8, len(prompt) + 1 + room, 4)
    elif case == "scoring":
        batch = Packed.build([[*prompt, i] for i in range(8)], [[5] * room] * 8, 0, "cpu")
        with live, torch.no_grad():
            hidden = model.model(**batch.inputs(), use_cache=False).last_hidden_state
            rewards.log_likelihood(hidden, model.lm_head, batch)
        length = len(prompt) + 1 + room
        expected = max(budget.reading(sizes, 8, length, 4), 8 * room * sizes.vocab * (12 + 4))
    else:  # four pairs, each a row of a prompt and two sides
        model.score = models.Fp32Head(256, 1, bias=False)
        peft = get_peft_model(model, models.lora_config(LORA | {"dropout": 0.1}, "SEQ_CLS"))
        live = Live().besides(peft)
        prompts = [[*prompt, i // 2] for i in range(8)]
        responses = [[5 + i % 2] * room for i in range(8)]
        batch = Packed.build(prompts, responses, 0, "cpu")
        with live:
            hidden = peft.base_model.model.model(**batch.inputs(), use_cache=False).last_hidden_state
            scores = model.score(hidden).squeeze(-1)[batch.group, batch.places]
            pairwise_loss(scores, batch.tokens, batch.kept).sum().backward()
        length = len(prompt) + 1 + 2 * room
        expected = budget.kept_for_backward(sizes, LORA, 4, length, 4, False, masked=True)
        expected += budget.gradients(sizes, 4, length, 4) + budget.group_mask(4, length, 4) + 4 * length * 256 * 2 * 4
    assert 0.8 < expected / live.peak < 1.5, (expected, live.peak)


def test_decoding_takes_a_reading_of_the_weights_for_each_token(base, monkeypatch, capsys):
    monkeypatch.setattr(budget, "available_memory", lambda: (80 * 2**30, "a GPU"))
    monkeypatch.setattr(duration, "here", lambda _: duration.Device(5e13, 2e12))
    work = duration.Work(trained=10**6, read=10**6, steps=10**5, held=10**4)
    estimate = budget.check(base, PPO, "ppo", work, base / "out", 2)
    told = capsys.readouterr().err
    # 2 x 6.74e9 x (2 + 1) x 1e6 / 5e13 seconds of products, 1e5 x 2 x 6.74e9 / 2e12 of reading
    # weights, 1e5 x 1e4 x 2 x 32 x 4096 x 2 / 2e12 of keys and values
    assert "about 29 min" in told and "and 100000 tokens decoded one after the other" in told
    monkeypatch.setattr(budget, "peak_memory", lambda: 3 * 2**30)
    budget.report(estimate)
    assert (
        capsys.readouterr().err
        == f"memory: 3.0 GiB at its peak; estimated for the longest rows: {budget.gib(estimate)}\n"
    )
    assert duration.reading_speed() > 0


def config_of(kind: str):
    from transformers import BloomConfig, GlmConfig, LlamaConfig

    from rllr.base.baichuan13b import Baichuan13BConfig

    if kind == "bloom":
        return BloomConfig(hidden_size=256, n_layer=3, n_head=8, vocab_size=500)
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 700}
    if kind == "glm":
        return GlmConfig(**sizes, vocab_size=500, num_key_value_heads=2, head_dim=32, pad_token_id=0, eos_token_id=2)
    return (LlamaConfig if kind == "llama" else Baichuan13BConfig)(**sizes, vocab_size=500)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "glm", "bloom", "alibi"])
def test_activations_kept_for_the_backward_pass(tmp_path, kind, precision):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from rllr.base import register
    from rllr.lm import models

    register()
    config = config_of(kind)
    config.save_pretrained(tmp_path)
    dtype = models.DTYPES[precision]
    targets = ["query_key_value"] if kind == "bloom" else LORA["target_modules"]
    lora = LORA | {"target_modules": targets}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    sizes = budget.Sizes.read(tmp_path)
    assert sizes.parameters() == pytest.approx(model.num_parameters(), rel=0.01)
    model = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.1, target_modules=targets))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.lora_parameters(lora) == trained
    models.cast_weights_not_activations(model)
    model.enable_input_require_grads()
    plain = model.get_base_model()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that the address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), models.autocast(dtype):
        getattr(plain, plain.base_model_prefix)(input_ids=torch.randint(1, 500, (2, 256)), use_cache=False)
    measured = sum(size for size, _ in kept.values())
    estimate = budget.kept_for_backward(sizes, lora, 2, 256, budget.BYTES[precision], checkpointing=False)
    _, once = budget.square_matrices(sizes, 2, 256, budget.BYTES[precision])
    assert 0.9 < (estimate - once) / measured < 1.25 or 0.9 < estimate / measured < 1.25


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama2", 6.74), ("llama2-13b", 13.02), ("mistral", 7.24), ("chatglm3", 6.24),
        ("baichuan2", 7.51), ("baichuan2-13b", 13.9), ("bloom3b", 3.0), ("bloom7b", 7.07),
    ],
)  # fmt: skip
def test_published_parameter_counts(model, billions):
    import yaml

    import memory

    config = yaml.safe_load((memory.CONFIG / "models" / f"{model}.yaml").read_text())
    assert memory.PUBLISHED[config["base"]["id"]].parameters() / 1e9 == pytest.approx(billions, abs=0.01)


def test_the_table_has_a_row_for_each_of_the_papers_models(tmp_path, capsys, monkeypatch):
    import memory

    monkeypatch.setattr("sys.argv", ["memory.py", "--results", str(tmp_path)])
    memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8
    with pytest.raises(UserError, match="tiny: its sizes are not known before"):
        memory.table(["tiny"], tmp_path)


@pytest.fixture
def base(tmp_path):
    """A folder that looks like a 7B Llama."""
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000, **sizes}))
    return tmp_path


def test_what_cannot_fit_is_refused(base, monkeypatch):
    monkeypatch.setattr(budget, "available_memory", lambda: (8 * 2**30, "a small GPU"))
    monkeypatch.setattr(duration, "here", lambda _: duration.Device(5e13, 1e12))
    with pytest.raises(UserError, match=r"m sft: weights.* need 12\.\d GiB, a small GPU has 8\.0 GiB free"):
        budget.check(base, SFT, "sft", duration.Work(1000), base / "out")


def test_what_may_not_fit_is_said(base, monkeypatch, capsys):
    monkeypatch.setattr(budget, "available_memory", lambda: (24 * 2**30, "a GPU"))
    monkeypatch.setattr(duration, "here", lambda _: duration.Device(5e13, 1e12))
    budget.check(base, SFT, "sft", duration.Work(10**7), base / "out")
    told = capsys.readouterr().err
    assert "24.0 GiB free on a GPU; about 90 min" in told  # 2 x 2 x 6.74e9 x 1e7 / 5e13 seconds
    assert "lower micro_batch_size or set gradient_checkpointing" in told


def test_time_counts_passes_readings_of_the_weights_and_of_the_cache():
    device, work = duration.Device(1e12, 1e9, 1e-3), duration.Work(trained=1000, read=500, steps=10, held=200)
    found = duration.seconds(1e6, work, device, width=2, cache=50, recompute=False, processes=1)
    assert found == pytest.approx(2 * 1e6 * 2500 / 1e12 + 10 * (2e6 + 200 * 50) / 1e9)
    more = duration.seconds(1e6, work, device, width=2, cache=50, recompute=True, processes=2)
    assert more == pytest.approx(2 * 1e6 * 3500 / 2 / 1e12 + 10 * (2e6 + 200 * 50) / 1e9)
    slow = duration.seconds(1e3, work, device, width=2, cache=0, recompute=False, processes=1)
    assert slow == pytest.approx(10e-3, rel=1e-3)  # a token has its own least time


def test_work_of_answers_and_of_rl():
    work = duration.answering(130, prompt=40, room=20, side_by_side=64)
    assert (work.read, work.steps, work.held) == (130 * 50, 3 * 20, 64 * 50)
    config = {
        "max_new_tokens": 20, "epochs": 2, "samples_per_prompt": 4, "batch_size": 8, "rollout_batch_size": 16,
        "validate_iterations": 5, "baseline": "value", "update_epochs": 1,
    }  # fmt: skip
    work = duration.rl(config, prompts=60, validation=20, prompt=40, rewards=2, processes=1)
    tokens, iterations = 60 * 2 * 4 * 50, 16  # 8 an epoch
    assert (work.trained, work.read) == (2 * tokens, 4 * tokens)
    assert work.steps == (iterations * 2 + (16 // 5 + 1) * 2) * 20 and work.held == 16 * 50
    groups = duration.rl(config | {"baseline": "leave_one_out"}, 60, 20, 40, 2, processes=2)
    assert groups.trained == tokens and groups.steps == (iterations * 1 + 4 * 2) * 20


def test_disk_is_refused_with_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 * 2**20}))
    with pytest.raises(UserError, match=r"14\.0 GiB needed for weights, 10 MiB free"):
        budget.check_disk(tmp_path / "not" / "there", 14 * 2**30, "weights")


def test_memory_grows_with_what_it_should():
    sizes = budget.Sizes(4096, 32, 32, 32, 128, 11008, 32000)
    need = budget.memory(sizes, SFT, "sft")
    for change in ({"micro_batch_size": 8}, {"precision": "fp32"}, {"cutoff": 2048}):
        assert budget.memory(sizes, SFT | change, "sft")["peak"] > need["peak"]
    assert budget.memory(sizes, SFT | {"gradient_checkpointing": True}, "sft")["peak"] < need["peak"]
    floors = [budget.memory(sizes, PPO, "ppo", rewards)["floor"] for rewards in (1, 2)]
    assert floors[1] - floors[0] == 4 * sizes.lora_parameters(LORA)
    without = budget.memory(sizes, PPO | {"baseline": "leave_one_out"}, "ppo", 2)["floor"]
    assert floors[1] - without == budget.ADAM * sizes.lora_parameters(LORA)  # no value function
    assert budget.memory(sizes, PPO | {"lora": {**LORA, "dropout": 0.1}}, "ppo") == budget.memory(sizes, PPO, "ppo")
    groups = PPO | {"samples_per_prompt": 4, "micro_batch_size": 8}
    peaks = [budget.memory(sizes, groups | {"rollout_batch_size": rows}, "ppo")["peak"] for rows in (1, 128)]
    assert peaks[1] - peaks[0] > 32 * (1536 + 3 * 256) ** 2 * 2  # a mask for each prompt's responses
    sizes = replace(sizes, vocab=250_000)  # the reference's logits, which rollouts by themselves do not need
    assert budget.memory(sizes, PPO, "ppo")["peak"] > 32 * 256 * 250_000 * 12
    predict = {"precision": "bf16", "attention": "auto", "cutoff": 1536, "batch_size": 4}
    alone, beside = (budget.memory(sizes, predict, "predict", loaded)["floor"] for loaded in (0, 1))
    assert beside == 2 * alone  # best of n has a reward model beside the one that answers
    assert budget.memory(sizes, SFT, "dpo")["peak"] > budget.memory(sizes, SFT, "sft")["peak"]  # two sides


def test_eager_attention_is_counted():
    sizes = budget.Sizes(4096, 32, 32, 32, 128, 11008, 32000)
    peaks = [budget.memory(sizes, SFT | {"attention": kind}, "sft")["peak"] for kind in ("sdpa", "eager")]
    assert peaks[1] - peaks[0] > 32 * 4 * 32 * 1536**2 * 4  # layers x rows x heads x T x T fp32 scores


def test_the_readme_shows_the_table_of_the_configuration(monkeypatch, tmp_path, capsys):
    import memory

    monkeypatch.setattr("sys.argv", ["memory.py", "--results", str(tmp_path)])
    memory.main()
    assert capsys.readouterr().out in (memory.CONFIG.parent / "README.md").read_text()


def test_other_architectures_are_not_estimated(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "vocab_size": 10}')
    assert budget.Sizes.read(Path(tmp_path)) is None


def test_a_control_group_leaves_less_than_the_machine_has(tmp_path, monkeypatch):
    """As a container or a cluster's job sets it; the tightest of the groups around the process counts."""
    root, proc = tmp_path / "cgroup", tmp_path / "self"
    for name, limit in (("", None), ("job", "9000"), ("job/step", "max")):
        folder = root / name
        folder.mkdir(exist_ok=True)
        if limit:
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text("5000\n")
            (folder / "memory.stat").write_text("anon 3000\nactive_file 500\ninactive_file 1500\n")
    proc.write_text("1:name=systemd:/old\n0::/job/step\n")
    assert budget.control_group_room(proc, root) == 9000 - 5000 + 1500
    proc.write_text("0::/\n")
    assert budget.control_group_room(proc, root) == budget.control_group_room(tmp_path / "none", root) == 2**63
    monkeypatch.setattr(budget.gpus, "usable", lambda: False)
    monkeypatch.setattr(budget, "control_group_room", lambda: 4500)
    assert budget.available_memory() == (4500, "this job's control group")
