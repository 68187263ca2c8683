"""The estimates of memory against measurements on small models, and refusals with numbers."""

import json
from pathlib import Path

import pytest

from rllr.cli import UserError
from rllr.lm import budget

LORA = {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
SFT = {
    "model": "m", "stage": "sft", "lora": LORA, "precision": "bf16", "attention": "auto",
    "cutoff": 1536, "micro_batch_size": 4,
    "gradient_checkpointing": False,
}  # fmt: skip


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
    import torch
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
    monkeypatch.setattr(budget, "matmul_speed", lambda _: 1e14)
    with pytest.raises(UserError, match=r"m sft: weights.* need 12\.\d GiB, a small GPU has 8\.0 GiB free"):
        budget.check(base, SFT, "sft", 1000, base / "out")


def test_what_may_not_fit_is_said(base, monkeypatch, capsys):
    monkeypatch.setattr(budget, "available_memory", lambda: (24 * 2**30, "a GPU"))
    monkeypatch.setattr(budget, "matmul_speed", lambda _: 1e14)
    budget.check(base, SFT, "sft", 10**7, base / "out")
    told = capsys.readouterr().err
    assert "24.0 GiB free on a GPU; about 90 min" in told  # 2 x 2 x 6.74e9 x 1e7 / 5e13 seconds
    assert "lower micro_batch_size or set gradient_checkpointing" in told


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
    ppo = SFT | {"max_new_tokens": 256, "batch_size": 32, "rollout_batch_size": 32}
    floors = [budget.memory(sizes, ppo, "ppo", rewards)["floor"] for rewards in (1, 2)]
    assert floors[1] - floors[0] == 4 * sizes.lora_parameters(LORA)


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
