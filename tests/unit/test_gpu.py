"""What a GPU needs, as far as a machine without one can tell: its environment, its failures, fp16 with a loss scale."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from rllr import gpus
from rllr.cli import UserError
from rllr.config import load_yaml, stage_config
from rllr.lm import models
from rllr.tasks import Task
from rllr.train.trainer import PreferenceConfig, RewardConfig, SupervisedConfig
from test_ppo_engine import PROMPTS, make_trainer, rows

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "workflow/scripts"


@pytest.fixture(autouse=True)
def asked_anew():
    gpus.usable.cache_clear()
    yield
    gpus.usable.cache_clear()


def launched(tmp_path, code: str, **environment) -> subprocess.CompletedProcess:
    """`code` as the body of a program's main, started by launch.py."""
    (tmp_path / "program.py").write_text(
        f"import os, sys; sys.path.insert(0, {str(PROGRAMS)!r})\nfrom rllr import cli\n"
        f"def main():\n    {code}\ncli.run(main)\n"
    )
    command = [sys.executable, PROGRAMS / "launch.py", tmp_path / "program.py"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_programs_run_with_the_environment_that_a_gpu_needs_unless_the_user_has_their_own(tmp_path):
    names = "TORCH_CUDNN_SDPA_DEPRIORITIZED", "PYTORCH_ALLOC_CONF"
    code = f"print(*(os.environ[name] for name in {names}))"
    assert launched(tmp_path, code).stdout == "1 expandable_segments:True\n"
    assert launched(tmp_path, code, **dict.fromkeys(names, "0")).stdout == "0 0\n"


def test_a_loaded_model_does_not_attend_by_cudnn(merged):
    torch.backends.cuda.enable_cudnn_sdp(True)
    models.load_causal(merged, torch.float32)
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


class Driver:
    """In place of NVML."""

    def __init__(self, status: int, count: int = 0) -> None:
        self.status, self.shown = status, count
        self.nvmlErrorString = lambda status: f"error {status}".encode()

    def nvmlInit_v2(self) -> int:
        return self.status

    def nvmlDeviceGetCount_v2(self, pointer) -> int:
        pointer._obj.value = self.shown
        return 0


def test_the_driver_is_asked_and_not_the_device_files(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(0, 2))
    monkeypatch.setattr(gpus, "device_files", lambda: 8)  # of the host; the container has two
    assert gpus.visible() == ["0", "1"]
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(18))
    with pytest.raises(UserError, match="driver does not answer: error 18; mend it, or set CUDA_VISIBLE_DEVICES="):
        gpus.visible()
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(gpus.NO_DRIVER))
    with pytest.raises(UserError, match="driver does not answer: error 9"):
        gpus.visible()
    monkeypatch.setattr(gpus, "device_files", lambda: 0)  # its library on a machine without a GPU
    assert gpus.visible() == []
    for given, expected in (("", []), ("-1", []), ("NoDevFiles", []), ("1,GPU-3f", ["1", "GPU-3f"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert gpus.visible() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU would answer")
def test_a_gpu_that_is_visible_and_does_not_work_ends_the_run_in_one_line(tmp_path):
    code = "from rllr.lm import models; print(models.dtype_of('auto'))"
    done = launched(tmp_path, code, CUDA_VISIBLE_DEVICES="7")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: GPU 7 is visible and cannot be used: ")
    assert line.endswith("; mend it, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU")
    assert launched(tmp_path, code, CUDA_VISIBLE_DEVICES="").returncode == 0
    several = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}  # before they meet
    done = launched(tmp_path, "from rllr import ranks; ranks.start()", CUDA_VISIBLE_DEVICES="7", **several)
    assert done.returncode == 1 and done.stderr.splitlines() == [line]


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_gpu_computes_in_it(monkeypatch, native, expected):
    monkeypatch.setattr(gpus, "usable", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert models.dtype_of("auto") == expected and models.dtype_of("fp16") == torch.float16


def test_fsdp_in_fp16_is_refused_with_one_line():
    defaults, model = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/mistral.yaml")
    model["launch"] = {"processes": 4, "fsdp": True}
    with pytest.raises(UserError, match=r"x: rm_rllr: launch.fsdp .*: expected bf16 or fp32, found fp16"):
        stage_config(defaults, model, "rm_rllr", 1, "x")
    assert stage_config(defaults, model, "rllr", 1, "x")["precision"] == "fp16"  # PPO keeps a whole copy on each GPU
    model["precision"] = "bf16"
    stage_config(defaults, model, "rm_rllr", 1, "x")


# fp16: gradients are computed of a scaled loss; where they overflow, the step is left out and the scale halved.


def overflow(parameters, times: int) -> None:
    """Make the next `times` gradients of a parameter infinite."""
    left = [times]

    def hook(gradient):
        left[0] -= 1
        return gradient * float("inf") if left[0] >= 0 else gradient

    next(iter(parameters)).register_hook(hook)


def test_ppo_in_fp16_leaves_a_step_out_on_overflow_and_trains_on(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, dtype=torch.float16)
    assert trainer.scaler.is_enabled()
    trained = trainer.backbone.trained()
    overflow((p for n, p in trained.items() if ".policy." in n and "lora_B" in n), 1)
    before = {n: p.detach().clone() for n, p in trained.items()}
    first, _ = trainer.step(rows(), PROMPTS, 0, list(range(8)))
    assert first["skipped"] == 1 and first["loss_scale"] == 2**15 and first["gradient_norm"] is None
    assert all(torch.equal(before[n], p) for n, p in trained.items())
    second, _ = trainer.step(rows(), PROMPTS, 1, list(range(8)))
    assert second["skipped"] == 0 and second["loss_scale"] == 2**15 and second["gradient_norm"] > 0
    assert not all(torch.equal(before[n], p) for n, p in trained.items())
    assert all(torch.isfinite(p).all() for p in trained.values())
    for metrics in (first, second):
        json.dumps(metrics, allow_nan=False)


def test_ppo_in_fp16_computes_the_gradients_of_fp32(merged, reward_folders, tokenizer, demo_tasks):
    norms = []
    for dtype in (torch.float32, torch.float16):
        trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, dtype=dtype, policy_std=0.1)
        rollout = make_trainer(merged, reward_folders, tokenizer, demo_tasks, policy_std=0.1).roll_out(
            rows(), PROMPTS, 0, list(range(8))
        )
        texts, _, scores = trainer.score(rollout)
        norms.append(trainer.optimise(trainer.advantages(rollout, texts, scores)[0])["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_ppo_that_can_only_skip_is_stopped(merged, reward_folders, tokenizer, demo_tasks):
    trainer = make_trainer(merged, reward_folders, tokenizer, demo_tasks, dtype=torch.float16)
    overflow((p for n, p in trainer.backbone.trained().items() if ".policy." in n and "lora_B" in n), 100)
    with pytest.raises(UserError, match=r"iteration 17: gradient in fp16, whatever .* not finite; prompt r\d"):
        for i in range(20):
            trainer.step(rows(), PROMPTS, i, list(range(8)))
    assert trainer.scaler.get_scale() < 1


@pytest.mark.parametrize("skipped", [[1.0, 1.0], [1.0, 0.5]])
def test_a_ppo_run_that_skipped_every_step_ends_with_an_error(skipped):
    from rllr.ppo.run import Records, Run

    run = Run(SimpleNamespace(stage="rllr"), *[None] * 8)
    run.trainer, run.iterations = SimpleNamespace(iteration=2), 2
    run.records = Records([{"iteration": 0, "validation_accuracy": 0.5}, *({"skipped": part} for part in skipped)])
    if skipped == [1.0, 0.5]:
        run.iterate()
        return
    with pytest.raises(UserError, match=r"all 2 iterations skipped their optimiser steps .*: nothing was trained"):
        run.iterate()


STAGES = {"sft_wrat": "sft", "rm_rllr": "reward", "dpo": "dpo"}


@pytest.fixture
def in_fp16(monkeypatch, tmp_path, merged):
    """Runs a stage in fp16 on the CPU, on which accelerate by itself keeps no scaler; returns its log."""
    import accelerate
    import transformers

    def with_scaler(self):
        created(self)
        self.accelerator.scaler, self.accelerator.native_amp = torch.amp.GradScaler("cpu"), True
        assert self.accelerator.mixed_precision == "fp16"

    created = transformers.Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", with_scaler)
    monkeypatch.setattr(models, "dtype_of", lambda precision: torch.float16)
    accelerate.state.AcceleratorState._reset_state(True)

    def run(stage: str, times: int) -> list[dict]:
        from rllr.train import pairwise, preference, supervised

        cast = models.cast_weights_not_activations

        def prepared(model):
            cast(model)
            overflow((p for n, p in model.named_parameters() if "lora_B" in n), times)

        monkeypatch.setattr(models, "cast_weights_not_activations", prepared)
        defaults, tiny = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
        section, out = STAGES[stage], tmp_path / stage
        tiny[section] |= {"epochs": 4, "batch_size": 4, "micro_batch_size": 4, "precision": "fp16", "save_steps": 1}
        values = {"model": "tiny", **stage_config(defaults, tiny, stage, 1, "x")}
        out.mkdir()
        (out / "config.yaml").write_text(yaml.safe_dump(values))
        said = ["It is fine.\nLabel: positive", "It is dull.\nLabel: negative"]
        row = {"task": "reviews", "instruction": "Good?", "input": "a film", "label": "positive"}
        data = [{**row, "id": str(i), "output": said[0] if section == "sft" else said} for i in range(8)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data))
        common = out / "config.yaml", merged, tmp_path / "data.jsonl", data
        if section == "sft":
            supervised.fine_tune(SupervisedConfig(**values), *common, out)
        elif section == "dpo":
            preference.train_preference(PreferenceConfig(**values), *common, out)
        else:
            held_out, tasks = {"label_sensitive": data}, {"reviews": Task("reviews", "label", ("positive", "negative"))}
            pairwise.train_reward_model(RewardConfig(**values), *common, held_out, tasks, out)
        return out

    yield run
    accelerate.state.AcceleratorState._reset_state(True)


def strict(path: Path) -> list[dict]:
    def refuse(word: str):
        raise AssertionError(f"{path}: {word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_in_fp16_leave_a_step_out_on_overflow_and_train_on(in_fp16, stage):
    lines = [line for line in strict(in_fp16(stage, 1) / "train_log.jsonl") if "loss" in line]
    assert [line["skipped"] for line in lines] == [1, *[0] * 7]
    assert {line["loss_scale"] for line in lines} == {2**15}
    assert lines[0]["grad_norm"] is None and lines[1]["grad_norm"] > 0


@pytest.mark.parametrize("stage", STAGES)
def test_stages_in_fp16_that_only_skip_end_with_an_error(in_fp16, stage, tmp_path):
    with pytest.raises(UserError, match="all 8 steps were skipped, since their gradients overflowed in fp16"):
        in_fp16(stage, 100)
    lines = strict(tmp_path / stage / "train_log.jsonl")
    assert [line["loss_scale"] for line in lines if "loss" in line] == [2.0 ** (15 - i) for i in range(8)]
    for file in (tmp_path / stage / "checkpoints").glob("*/trainer_state.json"):
        strict_state = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(word))
        assert strict_state["log_history"]
    assert not (tmp_path / stage / "adapter").exists()
