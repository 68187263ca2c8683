"""What can go wrong on the way: kills at random, damaged checkpoints, a full or read-only disk, two runs at once."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from test_kill import digest, kill_when, processes

TRAINED = ["sft_wrat", "rm_rlhf", "rm_rllr", "rlhf", "rllr_mix"]
TARGETS = ["results/tiny/rlhf/metrics.json", "results/tiny/rllr_mix/metrics.json"]
OUTPUTS = [f"results/tiny/{stage}/adapter/adapter_model.safetensors" for stage in TRAINED] + TARGETS
PROGRAMS = ["sft.py", "merge.py", "reward.py", "ppo.py", "predict.py"]  # in the order in which they run
KILLS = int(os.environ.get("RLLR_KILLS", 3))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextlib.contextmanager
def mounted(folder, *options: str):
    """A file system at `folder` for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(run, *targets: str) -> subprocess.Popen:
    return subprocess.Popen(run.command(*targets), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(ready, snakemake: subprocess.Popen, seconds: float = 200) -> bool:
    """Whether `ready()` came true before Snakemake ended."""
    deadline = time.monotonic() + seconds
    while not ready():
        if snakemake.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return True


def interrupted(run, stage: str, program: str, checkpoints: int = 1) -> None:
    """Leave `stage` killed, with so many whole checkpoints and no adapter."""
    folder = run.folder / "results/tiny" / stage
    shutil.rmtree(folder / "adapter")
    kill_when(
        run,
        f"results/tiny/{stage}/adapter",
        program,
        lambda: len([*folder.glob("checkpoints/checkpoint-*/manifest.json")]) >= checkpoints,
    )
    assert not (folder / "adapter").exists()


def test_kills_at_random_moments_change_nothing(again):
    seed = int(os.environ.get("RLLR_SEED", time.time()))
    print(f"RLLR_SEED={seed}")  # shown where the test fails
    generator = random.Random(seed)
    expected = {path: digest(again.folder / path) for path in OUTPUTS}
    left = KILLS
    while left > 0:
        for stage in TRAINED:
            shutil.rmtree(again.folder / "results/tiny" / stage)
        for program in sorted(generator.sample(PROGRAMS, min(left, len(PROGRAMS))), key=PROGRAMS.index):
            snakemake = start(again, *TARGETS)
            if wait_until(lambda program=program: processes(program, again.folder), snakemake):
                time.sleep(generator.uniform(0, 8))
                for pid in processes(program, again.folder):
                    os.kill(pid, signal.SIGKILL)
            snakemake.communicate(timeout=300)
            left -= 1
        again(*TARGETS)
        assert {path: digest(again.folder / path) for path in OUTPUTS} == expected
        assert not [*again.folder.glob("results/tiny/*/checkpoints")]
        assert not [path for path in again.folder.rglob("*.tmp")]


@pytest.mark.parametrize(
    ("stage", "program", "fault"), [("sft_wrat", "sft.py", "truncated"), ("rllr_mix", "ppo.py", "bit")]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(again, stage, program, fault):
    folder = again.folder / "results/tiny" / stage
    expected = digest(folder / "adapter/adapter_model.safetensors")
    interrupted(again, stage, program, checkpoints=2)
    older, newest = sorted(
        (path.parent for path in folder.glob("checkpoints/checkpoint-*/manifest.json")),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )[-2:]
    victim = max((p for p in newest.iterdir() if p.suffix == ".safetensors"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    if fault == "bit":
        content[len(content) // 2] ^= 1
    victim.write_bytes(content[: -len(content) // 3] if fault == "truncated" else content)
    again(f"results/tiny/{stage}/adapter")
    log = (folder / "logs/train.log").read_text()
    assert f"{newest.name}: not used, {victim.name} is damaged" in log
    assert f"{older.name}\n" in log.split("resuming from ")[1]
    assert digest(folder / "adapter/adapter_model.safetensors") == expected


@needs_root
def test_a_full_disk_stops_with_a_word_and_goes_on_once_there_is_room(again):
    folder = again.folder / "results/tiny/sft_wrat"
    expected = digest(folder / "adapter/adapter_model.safetensors")
    config = (folder / "config.yaml").read_bytes()
    times = (folder / "config.yaml").stat()
    with mounted(folder, "-t", "tmpfs", "-o", "size=4m", "none"):
        (folder / "config.yaml").write_bytes(config)
        os.utime(folder / "config.yaml", (times.st_atime, times.st_mtime))
        (folder / "logs").mkdir()
        filler = folder / "filler"
        filler.write_bytes(b"\0" * (4 * 2**20 - 300 * 1024))  # room for the estimate, not for a checkpoint
        done = again("results/tiny/sft_wrat/adapter", check=False)
        output = done.stdout + done.stderr  # the log is on the full disk, too
        assert done.returncode == 1 and "no space left on the disk; free some and run the same command again" in output
        assert "Traceback" not in output and not (folder / "adapter").exists()
        assert not [*folder.rglob("*.tmp")]
        filler.unlink()
        again("results/tiny/sft_wrat/adapter")
        assert digest(folder / "adapter/adapter_model.safetensors") == expected


@needs_root
def test_a_read_only_results_folder_is_told_and_nothing_is_lost(again):
    before = {path: digest(again.folder / path) for path in OUTPUTS}
    results = again.folder / "results"
    with mounted(results, "--bind", str(results)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(results)], check=True)
        changed = again(*TARGETS, *again.config(predict={"max_new_tokens": 100}), check=False)
        new = again("results/tiny/rllr/metrics.json", check=False)
        for done, message in ((changed, "Write-protected output files"), (new, "Read-only file system")):
            output = done.stdout + done.stderr
            assert done.returncode == 1 and message in output and "Traceback" not in output, output
    assert {path: digest(again.folder / path) for path in OUTPUTS} == before
    assert again.planned(*TARGETS) == set()


def test_a_second_snakemake_on_the_folder_is_turned_away(again):
    folder = again.folder / "results/tiny/sft_wrat"
    expected = digest(folder / "adapter/adapter_model.safetensors")
    shutil.rmtree(folder / "adapter")
    first = start(again, "results/tiny/sft_wrat/adapter")
    assert wait_until(lambda: processes("sft.py", again.folder), first)
    second = again("results/tiny/sft_wrat/adapter", check=False)
    assert second.returncode != 0 and "cannot be locked" in second.stdout + second.stderr
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert digest(folder / "adapter/adapter_model.safetensors") == expected


def test_a_program_that_outlived_its_snakemake_keeps_its_folder(again):
    folder = again.folder / "results/tiny/sft_wrat"
    expected = digest(folder / "adapter/adapter_model.safetensors")
    shutil.rmtree(folder / "adapter")
    first = start(again, "results/tiny/sft_wrat/adapter")
    assert wait_until(lambda: [*folder.glob("checkpoints/checkpoint-*/manifest.json")], first)
    survivors = processes("sft.py", again.folder)
    for pid in survivors:
        os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.wait(timeout=60)
    again("--unlock")
    done = again("results/tiny/sft_wrat/adapter", check=False)
    log = (folder / "logs/train.log").read_text()
    assert done.returncode == 1 and "another program is working in this folder" in log and "Traceback" not in log
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    again("results/tiny/sft_wrat/adapter")
    assert "resuming from" in (folder / "logs/train.log").read_text()
    assert digest(folder / "adapter/adapter_model.safetensors") == expected


def shift_times(folder, days: int) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            times = path.stat()
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + days * 86400 * 10**9))


def test_a_moved_clock_is_told_before_work_and_loses_nothing(again):
    folder = again.folder / "results/tiny/sft_wrat"
    expected = digest(folder / "adapter/adapter_model.safetensors")
    shift_times(again.folder, 1)  # as if the clock went back by a day
    assert again.planned(*TARGETS) == set()
    shift_times(again.folder, -1)
    interrupted(again, "sft_wrat", "sft.py", checkpoints=2)
    shift_times(again.folder, 1)
    done = again("results/tiny/sft_wrat/adapter", check=False)
    log = (folder / "logs/train.log").read_text()
    assert done.returncode == 1 and "Traceback" not in log
    assert "s in the future of this machine's clock; set the clock" in log
    shift_times(again.folder, -1)
    newest = max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    shift_times(newest, -10000)  # the newest checkpoint is the one of the last step, whatever its time
    again("results/tiny/sft_wrat/adapter")
    assert f"{newest.name}\n" in (folder / "logs/train.log").read_text().split("resuming from ")[1]
    assert digest(folder / "adapter/adapter_model.safetensors") == expected


def test_a_changed_config_does_not_resume(again):
    interrupted(again, "sft_wrat", "sft.py")
    again("results/tiny/sft_wrat/adapter", *again.config(sft_wrat={"learning_rate": 5e-4}))
    log = (again.folder / "results/tiny/sft_wrat/logs/train.log").read_text()
    assert "checkpoints of another configuration, data or code; starting afresh" in log and "resuming" not in log
