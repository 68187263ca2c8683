"""The short account of `make demo`: Snakemake with the logger plugin, its output not a terminal."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import Run

TARGET = "results/tiny/sft/metrics.json"


def short(run: Run, *arguments: str) -> tuple[int, list[str]]:
    """Exit status, and the lines that a user sees."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "workflow" / "logger")}
    command = run.command(*arguments)
    command[3:3] = ["--logger", "rllr"]  # it takes several: before another option
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=run.folder)
    assert "\x1b" not in done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [line for line in lines if not line.startswith("Using profile")]


def test_a_stage_is_a_line_and_the_rest_is_in_files(again):
    (again.folder / TARGET).unlink()
    status, (begins, ends) = short(again, TARGET)
    assert status == 0
    assert begins == "[1/1] Metrics of sft of tiny" and re.fullmatch(re.escape(begins) + r": \d+:\d\d", ends)
    own = max((again.folder / ".snakemake" / "log").glob("*.snakemake.log"))
    assert "reason: " in own.read_text() or "Reason: " in own.read_text()
    assert "accuracy" in (again.folder / ".snakemake" / "log" / "jobs.log").read_text()
    assert short(again, TARGET) == (0, ["Nothing to be done (all requested files are present and up to date)."])


def test_a_stage_that_fails_says_why_and_where_its_log_lies(again):
    changed = again.config(sft={"learning_rate": 7e-4})
    lock = FileLock(again.folder / "results/tiny/sft/.lock")
    with lock:
        status, (begins, failed, log) = short(again, *changed, "--", TARGET)
    assert status == 1 and begins == "[1/3] Training sft of tiny"
    assert failed.startswith("failed: Training sft of tiny: results/tiny/sft: another program is working")
    path = again.folder / log.removeprefix("  its log: ")
    assert path.read_text().splitlines()[-1].endswith(failed.removeprefix("failed: Training sft of tiny: "))


@pytest.mark.parametrize("target", ["results/tiny/nonsense/metrics.json", "results/nobody/sft/metrics.json"])
def test_errors_before_any_work_are_told(again, target):
    status, lines = short(again, target)
    assert status == 1 and "unknown m" in "\n".join(lines)
