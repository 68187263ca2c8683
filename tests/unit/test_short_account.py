"""What `make demo` shows while it runs: read from bars that tqdm itself wrote and from a training log."""

import json
import os
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[2] / "workflow" / "logger"))
from snakemake_logger_plugin_rllr import Job


@pytest.fixture
def stage(tmp_path):
    """A job of a stage with batches of 4, and a function that writes a bar's beginning into its log."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "config.yaml").write_text("model: tiny\nbatch_size: 4\nmicro_batch_size: 2\n")
    job = Job(1, "Training", [tmp_path / "logs" / "train.log"])

    def bar(done: int, total: int, seconds: float, **options) -> None:
        with open(job.logs[0], "a") as file:
            progress = tqdm(total=total, file=file, mininterval=0, **options)
            progress.start_t -= seconds
            progress.n = done
            progress.refresh()
            file.write("\n")

    job.began -= 1
    return job, bar


def test_steps_and_time_left_are_those_of_the_last_bar(stage):
    job, bar = stage
    assert job.progress() == ""
    bar(5, 5, 1, desc="Loading weights")
    assert job.progress() == ""
    bar(20, 60, 40)
    assert job.progress().startswith("20/60, 01:20 left")


def test_a_training_step_counts_as_its_batch(stage):
    job, bar = stage
    (job.logs[0].parent.parent / "train_log.jsonl").write_text(
        json.dumps({"loss": 3.0, "step": 1}) + "\n" + json.dumps({"loss": 0.25, "pair_accuracy": 0.5, "step": 2}) + "\n"
    )
    bar(20, 60, 10)
    assert job.progress() == "20/60, 00:20 left, loss 0.25, accuracy 0.5, 8 samples/s"
    bar(10, 40, 20)  # slower than a step a second: tqdm turns the unit round
    assert job.progress().endswith(", 2 samples/s")


def test_tokens_are_those_of_all_that_a_row_is_made_of(stage):
    job, bar = stage
    job.logs[0].write_text(
        "pairs.jsonl: 80 sequences, 4000 tokens, longest 81; cut to 256: 0 rows, 0 tokens of input text\n"
        "batch: 2 rows x 2 accumulation x 1 processes = 4; 40 rows x 1 epochs = 10 optimiser steps\n"
    )
    log = job.logs[0].parent.parent / "train_log.jsonl"
    log.write_text(json.dumps({"loss": 0.25}) + "\n")
    bar(5, 10, 10)
    assert job.progress() == "5/10, 00:10 left, loss 0.25, 2 samples/s, 200 tokens/s"  # 4000 of 40 pairs
    log.write_text(json.dumps({"loss": 1.0, "reward": 0.5, "samples_per_second": 3.0, "length": 10.0}) + "\n")
    assert job.progress() == "5/10, 00:10 left, reward 0.5, 3 samples/s, 180 tokens/s"  # 50 of a prompt and 10
    assert job.outcome().endswith(", reward 0.5, 3 samples/s")


def test_an_earlier_runs_log_is_not_told(stage):
    job, bar = stage
    log = job.logs[0].parent.parent / "train_log.jsonl"
    log.write_text(json.dumps({"loss": 3.0}) + "\n")
    os.utime(log, (job.began - 10, job.began - 10))
    bar(1, 2, 1)
    assert "loss" not in job.progress()


def test_under_ppo_reward_accuracy_and_speed_count(stage):
    job, bar = stage
    values = {"loss": 1.0, "reward": -0.5, "kl": 0.1, "label_accuracy": 0.75, "samples_per_second": 3.0}
    (job.logs[0].parent.parent / "train_log.jsonl").write_text(json.dumps(values) + "\n")
    bar(1, 2, 4, desc="rllr", postfix={"kl": 1})
    assert job.progress() == "1/2, 00:04 left, reward -0.5, accuracy 0.75, 3 samples/s"


def test_the_error_of_a_program_is_found_behind_its_bars(stage):
    job, bar = stage
    job.logs[0].write_text("error: too many rows\n")
    bar(1, 2, 4)
    assert job.error() == "too many rows"
    job.logs[0].write_text('Traceback (most recent call last):\n  File "x"\ntorch.OutOfMemoryError: no memory\n')
    assert job.error() == "torch.OutOfMemoryError: no memory"
    job.logs[0].write_text("all is well\n")
    assert "killed" in job.error()
