"""Several processes: the launcher, GPU leases, and two processes against one over whole SFT and reward-model runs."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import launch
import sharded_rank
import two_processes
from rllr import ranks
from rllr.cli import UserError
from rllr.config import load_yaml, stage_config
from rllr.files import write_json, write_jsonl
from rllr.lm import fitting, models, rewards

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "workflow/scripts"


# Batches


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_row_comes_once_an_epoch_whatever_the_processes(data):
    from rllr.train.batches import OptimiserBatches

    processes = data.draw(st.integers(1, 3))
    accumulation, micro = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=60))
    rows, batch_size = len(lengths), processes * accumulation * micro
    samplers = [
        OptimiserBatches([*lengths, 1], batch_size, accumulation, processes, rank, seed=3) for rank in range(processes)
    ]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        micro_batches = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in micro_batches} == {len(samplers[0])}  # nobody waits for the others
        assert all(batch for batches in micro_batches for batch in batches)
        seen = [row for batches in micro_batches for batch in batches for row in batch if row != rows]
        assert sorted(seen) == list(range(rows))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(3 + epoch)).tolist()
        for step, start in enumerate(range(0, rows, batch_size)):
            part = slice(step * accumulation, (step + 1) * accumulation)
            found = [row for batches in micro_batches for batch in batches[part] for row in batch if row != rows]
            assert sorted(found) == sorted(order[start : start + batch_size])  # the batch does not depend on processes


# Whole runs

CONFIG = {"epochs": 2, "batch_size": 8, "micro_batch_size": 2, "save_steps": 3, "gradient_checkpointing": True}


@pytest.fixture
def stage(tmp_path, merged):
    """A folder with data whose last batch has fewer rows than there are micro-batches; runs a stage in it."""
    generator = random.Random(0)
    write_json(tmp_path / "tasks.json", {"reviews": {"kind": "label", "labels": ["negative", "positive"]}})

    def row(i: int) -> dict:
        text = " ".join(generator.choices(["fine", "dull", "a", "film", "quite", "acting"], k=generator.randint(1, 12)))
        return {"id": str(i), "task": "reviews", "instruction": "Good?", "input": text, "label": "positive"}

    said = [f"It is {word}.\nLabel: {label}" for word, label in (("fine", "positive"), ("dull", "negative"))]
    rows = [row(i) for i in range(18)]
    write_jsonl(tmp_path / "sft.jsonl", [{**r, "output": said[0]} for r in rows])
    pairs = [{**r, "output": said} for r in rows]
    for name in ("rllr_reward_train", "label_sensitive_pairs_for_test"):
        write_jsonl(tmp_path / f"{name}.jsonl", pairs)

    def start(name: str, processes: int) -> subprocess.Popen:
        section, out = {"sft_wrat": "sft", "rm_rllr": "reward"}[name], tmp_path / f"{name}-{processes}"
        data = ["--data", "sft.jsonl", "--tasks", "tasks.json"] if section == "sft" else ["--data", "."]
        command = [
            sys.executable, PROGRAMS / "launch.py", "--processes", str(processes), PROGRAMS / f"{section}.py",
            "--config", out / "config.yaml", "--base", merged, *data, "--out", out,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(name: str, processes: int, **changes) -> subprocess.CompletedProcess:
        defaults, tiny = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
        section = {"sft_wrat": "sft", "rm_rllr": "reward"}[name]
        tiny[section] |= CONFIG | changes
        config = {"model": "tiny", **stage_config(defaults, tiny, name, 1, "x")}
        out = tmp_path / f"{name}-{processes}"
        out.mkdir()
        (out / "config.yaml").write_text(yaml.safe_dump(config))
        started = start(name, processes)
        _, told = started.communicate(timeout=300)
        return subprocess.CompletedProcess(started.args, started.returncode, None, told)

    run.folder, run.start = tmp_path, start
    return run


@pytest.mark.parametrize("name", ["sft_wrat", "rm_rllr"])
def test_two_processes_equal_one_over_a_whole_run(stage, name):
    losses, adapters = [], []
    for processes, micro in ((1, 8), (2, 2)):  # without and with blank rows in the last batch
        done = stage(name, processes, micro_batch_size=micro)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"batch: {micro} rows") == 1  # one process speaks
        assert f"x {processes} processes = 8; 18 rows x 2 epochs = 6 optimiser steps" in done.stderr
        out = stage.folder / f"{name}-{processes}"
        assert not (out / "checkpoints").exists()
        log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in log if "loss" in row])
        adapters.append(load_file(out / "adapter/adapter_model.safetensors"))
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    for key, value in adapters[0].items():
        assert (adapters[1][key] - value).abs().max() < 2e-5, key
    if name == "rm_rllr":
        files = [stage.folder / f"{name}-{n}/pair_scores.jsonl" for n in (1, 2)]
        one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        assert [row["id"] for row in two] == [row["id"] for row in one]
        for side in ("chosen", "rejected"):
            assert [row[side] for row in two] == pytest.approx([row[side] for row in one], abs=1e-4)


def test_two_processes_resume_within_an_epoch_with_the_rows_that_are_left(stage, merged):
    """Stopped in the middle of the second epoch; the rest of the run is that of an undisturbed one."""
    settings = {"save_steps": 4, "micro_batch_size": 2}
    assert stage("sft_wrat", 2, **settings).returncode == 0
    out = stage.folder / "sft_wrat-2"
    expected = load_file(out / "adapter/adapter_model.safetensors")
    for path in (out / "adapter").iterdir():
        path.unlink()
    (out / "adapter").rmdir()
    started = stage.start("sft_wrat", 2)
    checkpoint = out / "checkpoints/checkpoint-4/manifest.json"  # 3 steps an epoch
    while not checkpoint.exists():
        assert started.poll() is None
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(timeout=60)
    for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
        with contextlib.suppress(OSError):  # the workers have groups of their own
            if str(out) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
    assert not (out / "adapter").exists()
    resumed = stage.start("sft_wrat", 2)
    _, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "resuming from" in told, told
    for key, value in expected.items():
        assert (load_file(out / "adapter/adapter_model.safetensors")[key] - value).abs().max() < 1e-6, key


@pytest.mark.parametrize("score", ["head", "claim"])
def test_a_sharded_reward_model_scores_pairs_as_a_whole_one(merged, tmp_path, score):
    two_processes.run(sharded_rank.__file__, merged, score, tmp_path / "scores.json")
    found, expected = json.loads((tmp_path / "scores.json").read_text()), sharded_rank.scored(merged, score)
    assert len(found) == 5
    for sides, own in zip(found, expected, strict=True):
        assert sides == pytest.approx(own, abs=1e-5)


def test_a_sharded_model_out_of_memory_ends_the_run(merged, tokenizer, monkeypatch):
    """In place of a smaller part, which the other processes would not know of; one that is whole goes on."""
    from torch.distributed.fsdp import FSDPModule

    model, sides = models.load_causal(merged, torch.float32), ([[5, 6]] * 8, [[7]] * 8)

    def values(batch):
        if len(batch.tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return torch.zeros(len(batch.tokens))

    monkeypatch.setattr(fitting, "found_to_fit", {})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # PPO's models are whole then, too
    assert rewards.in_batches(values, model, tokenizer, *sides, 8, torch.float32) == [0.0] * 8
    fitting.found_to_fit.clear()
    model.__class__ = type("Sharded", (FSDPModule, type(model)), {"__new__": object.__new__})
    with pytest.raises(UserError, match="scoring: out of memory with 8 rows at a time; lower micro_batch_size"):
        rewards.in_batches(values, model, tokenizer, *sides, 8, torch.float32)


@pytest.mark.parametrize("sharded", [False, True])
def test_values_are_shared_out_and_come_back_in_order(monkeypatch, sharded):
    """Over three processes, one of them without an item; all or nothing where each has a part of the model."""
    asked: dict[int, list[int]] = {}

    def on(rank: int, others: list) -> list:
        def values_of(items):
            asked[rank] = items
            return [item.upper() for item in items]

        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(
            ranks, "gather", lambda own: others.append(own) or [pair for part in others for pair in part]
        )
        return ranks.share_out(["a", "b"], values_of, together=sharded)

    monkeypatch.setattr(ranks, "world", lambda: 3)
    parts: list = []
    values = [on(rank, parts) for rank in (2, 1, 0)]
    assert values[-1] == ["A", "B"]
    assert asked == ({0: ["a", "b"], 1: ["a", "b"], 2: ["a", "b"]} if sharded else {0: ["a"], 1: ["b"], 2: []})


def test_uneven_settings_end_at_once_in_one_line(stage):
    done = stage("sft_wrat", 2, batch_size=6)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines == ["error: batch_size 6 is not a multiple of micro_batch_size 2 x 2 processes (launch)"]


@pytest.mark.parametrize("model", ["llama2-13b", "baichuan2-13b"])
def test_the_13b_models_divide_over_four_processes(model):
    from rllr.config import shares

    defaults, config = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / f"config/models/{model}.yaml")
    for stage in ("sft", "sft_wrat", "rm_rlhf", "rm_rllr"):
        resolved = stage_config(defaults, config, stage, 1, model)
        assert shares(resolved["batch_size"], "micro_batch_size", resolved["micro_batch_size"], 4) >= 1
    assert stage_config(defaults, config, "rllr_mix", 1, model)["batch_size"] % 4 == 0


# The launcher


def test_one_process_takes_the_launchers_place(tmp_path):
    code = "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(7)"
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, PROGRAMS / "launch.py", tmp_path / "program.py", "--out", "x y"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 7 and output.split(maxsplit=1) == [str(started.pid), "['--out', 'x y']\n"]


def test_gpus_are_leased_to_one_program_at_a_time(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import launch, os, pathlib\n"
        "print(*launch.lease(int(sys.argv[3]), ['0', '1', '2'], pathlib.Path(sys.argv[2]), 0.05), flush=True)\n"
        "os.execvp('cat', ['cat'])"  # holds the lease until its standard input ends
    )

    def start(count):
        return subprocess.Popen(
            [sys.executable, "-c", code, str(PROGRAMS), str(tmp_path), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    first = start(2)
    assert first.stdout.readline() == "0 1\n"
    second = start(1)
    assert second.stdout.readline() == "2\n"
    third = start(2)
    assert third.stderr.readline() == "waiting for 2 free GPU(s) of 3\n"
    first.kill()  # a killed program holds nothing
    assert third.stdout.readline() == "0 1\n"
    for process in (first, second, third):
        process.communicate(timeout=20)
    with pytest.raises(UserError, match="4 GPUs asked for, there are 3"):
        launch.lease(4, ["0", "1", "2"], tmp_path)


def test_gpus_are_chosen_unless_somebody_has(monkeypatch, tmp_path):
    monkeypatch.setattr(launch.gpus, "count", lambda: 2)
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    with pytest.raises(UserError, match="3 GPUs asked for, the job has 5,6"):
        launch.choose_gpus(3)
    launch.choose_gpus(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.delenv("SLURM_JOB_ID")
    for expected in ("5", "6"):  # leased from the ones given
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
        launch.choose_gpus(1)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    for expected in ("0", "1"):  # the first lease is still held
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        launch.choose_gpus(1)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("nodes", [1, 2])
def test_accelerate_accepts_the_options(nodes, fsdp):
    """Its own parser and checks; what the processes then read from their environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    slurm = {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "SLURM_JOB_ID": "40123", "SLURM_PROCID": "1"}
    options = launch.accelerate_arguments(4, nodes, fsdp, slurm)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*options, "sft.py", "--out", "x"]))
    environment = prepare_multi_gpu_env(args)
    assert args.num_processes == 4 * nodes and args.num_machines == nodes and args.use_fsdp == fsdp
    assert (args.training_script, args.training_script_args) == ("sft.py", ["--out", "x"])
    if nodes == 2:
        assert (args.main_process_ip, args.machine_rank) == ("10.0.0.1", 1)
        assert 1024 < args.main_process_port < 65536
    if fsdp:
        expected = {
            "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true",
        }  # fmt: skip
        assert {key: environment.get(key) for key in expected} == expected
        from accelerate.utils import FullyShardedDataParallelPlugin

        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True


def test_several_nodes_need_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with pytest.raises(UserError, match="several nodes need a SLURM job"):
        launch.on_every_node(2)
