"""A program killed with SIGKILL: the next run resumes and ends as if nothing had happened."""

import hashlib
import json
import os
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Stage, the checkpoint sign to wait for, and the outputs that must come out the same.
STAGES = [
    ("sft_wrat", "sft.py", "adapter/adapter_model.safetensors"),
    ("rm_rllr", "reward.py", "adapter/adapter_model.safetensors"),
    ("rllr_mix", "ppo.py", "adapter/adapter_model.safetensors"),
    ("rllr_rloo", "ppo.py", "adapter/adapter_model.safetensors"),
]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def processes(program: str, folder) -> list[int]:
    """Python processes (not their shells) that run `program` for the run in `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    arguments = file.read().decode(errors="replace").split("\0")
                here = os.readlink(f"/proc/{entry}/cwd") == str(folder)
            except OSError:
                continue
            if here and len(arguments) > 1 and arguments[1].endswith(f"/{program}"):
                found.append(int(entry))
    return found


def kill_when(run, target: str, program: str, ready, *arguments: str) -> str:
    """Start Snakemake, SIGKILL `program` as soon as `ready()`; returns Snakemake's output."""
    command = run.command(target, *arguments)
    snakemake = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while snakemake.poll() is None and time.monotonic() < deadline:
        if ready():
            for pid in processes(program, run.folder):
                os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    output, _ = snakemake.communicate(timeout=120)
    assert snakemake.returncode != 0, f"{program} was not killed in time:\n{output}"
    return output


@pytest.mark.parametrize(("stage", "program", "output"), STAGES)
def test_a_killed_training_program_resumes_and_ends_the_same(again, stage, program, output):
    folder = again.folder / "results/tiny" / stage
    if not (folder / output).exists():
        again(f"results/tiny/{stage}/adapter")
    expected = digest(folder / output)
    (folder / output).unlink()
    for path in (folder / output).parent.iterdir():
        path.unlink()
    (folder / output).parent.rmdir()
    kill_when(
        again,
        f"results/tiny/{stage}/adapter",
        program,
        lambda: [*folder.glob("checkpoints/checkpoint-*/manifest.json")],
    )
    assert not (folder / "adapter").exists()
    again(f"results/tiny/{stage}/adapter")
    log = (folder / "logs/train.log").read_text()
    assert "resuming from" in log
    assert digest(folder / output) == expected
    assert not (folder / "checkpoints").exists()


def test_a_killed_prediction_resumes(again):
    folder = again.folder / "results/tiny/rlhf"
    expected = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    (folder / "predictions.jsonl").unlink()
    small = again.config(predict={"batch_size": 2})
    partial = folder / "predictions.partial.jsonl"
    run = type(again)(again.project, again.folder)
    run.command = lambda *arguments: type(again).command(run, *arguments, *small)
    kill_when(
        run,
        "results/tiny/rlhf/predictions.jsonl",
        "predict.py",
        lambda: partial.exists() and partial.read_text().count("\n") > 4,
    )
    run("results/tiny/rlhf/predictions.jsonl")
    assert "resuming:" in (folder / "logs/predict.log").read_text()
    found = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for row, before in zip(found, expected, strict=True):  # in other batches probabilities differ by rounding
        assert row.pop("probabilities") == pytest.approx(before.pop("probabilities"), abs=1e-4)
        assert row == before


def test_the_best_adapter_is_kept_across_a_kill(again):
    folder = again.folder / "results/tiny/rllr_mix"
    best = again.config(rllr_mix={"keep": "best", "validate_iterations": 1})
    kill_when(
        again,
        "results/tiny/rllr_mix/adapter",
        "ppo.py",
        lambda: [*folder.glob("checkpoints/checkpoint-*/manifest.json")],
        *best,
    )
    again("results/tiny/rllr_mix/adapter", *best)
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [*range(7)]  # 0: before RL
    board = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("validation_accuracy")
    assert [event.step for event in board] == [*range(7)]  # no event of an earlier run
    assert [event.value for event in board] == pytest.approx([row["validation_accuracy"] for row in rows])
    kept = max(rows, key=lambda row: row["validation_accuracy"])  # the first of equals
    log = (folder / "logs/train.log").read_text()
    assert "resuming from" in log and f"keeping the adapter of iteration {kept['iteration']}: " in log
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    moved = any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert moved == (kept["iteration"] > 0)  # LoRA's B starts as zeros
    assert not (folder / "checkpoints").exists()
