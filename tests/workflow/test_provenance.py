"""Content decides what runs again: not time stamps, not places, not what .snakemake remembers."""

import contextlib
import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from conftest import OWN, own_rows, project_copy
from test_faults import interrupted
from test_reruns import ALL, chain, resolve

SFT = ["--config", "data=own", "--", "results/tiny/sft/metrics.json"]
REDO_DATA = {"Resolving results/data/own/config", "Preparing data own", "Putting the files of data own into place"}


@contextlib.contextmanager
def edited(project, name: str, change):
    """A file of the project with another text for as long as the block runs."""
    path = project / name
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    try:
        yield
    finally:
        path.write_text(before)


def told(run, *arguments: str) -> str:
    """The one line with which a dry run fails."""
    done = run("-n", *arguments, check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in text, text
    return text


def forget(run) -> None:
    """Lose what Snakemake remembers."""
    shutil.rmtree(run.folder / ".snakemake")


# Data


def test_a_changed_test_row_and_what_is_reported_rerun_prediction_alone(own):
    config = own.folder / "config/data/own.yaml"
    config.write_text(config.read_text().replace("    kind: label\n", "    kind: label\n    f1: positive\n"))
    path = own.folder / "rows/test.jsonl"
    path.write_text(path.read_text().replace("number 100.", "number 100, truly."))
    trained = (own.folder / "results/tiny/sft/adapter/adapter_model.safetensors").stat().st_mtime_ns
    done = own(*SFT)
    jobs = set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE))
    assert jobs == REDO_DATA | {"Resolving results/tiny/predict/config"} | chain("sft", ppo=False)
    assert (own.folder / "results/tiny/sft/adapter/adapter_model.safetensors").stat().st_mtime_ns == trained
    assert "truly" in (own.folder / "results/data/own/test.jsonl").read_text()
    assert '"f1": ' in (own.folder / "results/tiny/sft/metrics.json").read_text()
    assert own.planned(*SFT) == set()


@pytest.mark.parametrize("lost", [False, True])
def test_rows_with_an_older_time_stamp_are_noticed(own, lost):
    """As `cp -p`, rsync or tar leave them; with and without Snakemake's memory."""
    path = own.folder / "rows/train.jsonl"
    times = path.stat()
    own_rows(path, 60, first=200)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**15))
    if lost:
        forget(own)
    assert REDO_DATA | {"Training sft of tiny"} <= own.planned(*SFT)


def test_a_new_time_stamp_alone_is_no_change(own):
    for path in (own.folder / "rows").iterdir():
        os.utime(path)
    assert own.planned(*SFT) == set()


def test_missing_rows_are_told_before_any_work(own):
    (own.folder / "rows/train.jsonl").unlink()
    assert "config/data/own.yaml: rows/train.jsonl: no such file" in told(own, *SFT)


def test_a_shared_store_never_gives_one_runs_rows_to_another(own, tmp_path):
    other = type(own)(own.project, tmp_path / "other")
    shutil.copytree(own.folder / "rows", other.folder / "rows")
    (other.folder / "config/data").mkdir(parents=True)
    config = {**OWN, "rows": {"test": 12, "sft": 30}}
    (other.folder / "config/data/own.yaml").write_text(yaml.safe_dump(config))
    before = (own.folder / "results/data/own/sft_train.jsonl").read_text()
    other("--config", "data=own", f"prepared={own.folder}/results", "--", "results/data/own/tasks.json")
    lines = (other.folder / "results/data/own/sft_train.jsonl").read_text().splitlines()
    assert len(lines) == 30 and (own.folder / "results/data/own/sft_train.jsonl").read_text() == before
    assert own.planned(*SFT) == set()
    forget(other)
    (other.folder / "config/data/own.yaml").write_text(yaml.safe_dump({**config, "rows": {"test": 12, "sft": 20}}))
    assert "Preparing data own" in other.planned(
        "--config", "data=own", f"prepared={own.folder}/results", "--", "results/data/own/tasks.json"
    )


def test_two_runs_that_need_the_same_at_once_build_it_once(own_finished, tmp_path):
    runs = []
    for name in ("a", "b"):
        run = type(own_finished)(own_finished.project, tmp_path / name)
        for part in ("rows", "config"):
            shutil.copytree(own_finished.folder / part, run.folder / part)
        runs.append(run)
    arguments = ["--config", "data=own", f"prepared={tmp_path}/shared", "--", "results/tiny/base"]
    started = [
        subprocess.Popen(run.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for run in runs
    ]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    for log in ("data/own/logs/prepare.log", "tiny/logs/base.log"):
        found = ["there already" in (run.folder / "results" / log).read_text() for run in runs]
        assert sorted(found) == [False, True], log
    for run in runs:
        assert (run.folder / "results/tiny/base/model.safetensors").is_file()
        assert run.planned(*arguments) == set()


def test_a_damaged_entry_of_the_store_is_made_anew(own, tmp_path):
    (entry,) = (own.folder / "results/store/data").glob("own-*")
    (entry / "sft_train.jsonl").unlink()
    own("--config", "data=own", "--", "results/data/own/sft_train.jsonl")
    assert len((own.folder / "results/data/own/sft_train.jsonl").read_text().splitlines()) == 40


def test_a_base_model_whose_weights_are_gone_is_made_anew_and_nothing_else(own):
    weights = own.folder / "results/tiny/base/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert own.planned(*SFT) == {"Resolving results/tiny/base", "Preparing the base model of tiny"}
    own(*SFT)
    assert weights.read_bytes() == before and own.planned(*SFT) == set()


def test_a_name_with_a_space_and_braces_in_a_path(own, tmp_path):
    shutil.copytree(own.folder / "rows", own.folder / "my {rows}")
    config = json.loads(json.dumps(OWN).replace("rows/t", "my {rows}/t"))
    (own.folder / "config/data/my data.yaml").write_text(yaml.safe_dump(config))
    own("--config", "data=my data", "--", "results/data/my data/tasks.json")
    assert (own.folder / "results/data/my data/sft_train.jsonl").is_file()


def test_errors_name_the_file_that_the_user_wrote(own):
    path = own.folder / "config/data/own.yaml"
    config = yaml.safe_load(path.read_text())
    config["tasks"]["reviews"]["f1"] = "good"
    path.write_text(yaml.safe_dump(config))
    done = own(*SFT, check=False)
    assert done.returncode != 0
    assert "error: config/data/own.yaml: tasks.reviews.f1: found 'good'" in done.stdout + done.stderr
    assert (own.folder / "results/data/own/sft_train.jsonl").is_file()  # what was there stays


# Configuration


def test_a_lost_memory_hides_no_changed_config(again):
    forget(again)
    assert again.planned(*ALL) == set()
    changed = again.config(ppo={"learning_rate": 2e-3})
    assert again.planned(*ALL, *changed) == chain("rlhf", "rllr_mix") | resolve("rlhf", "rllr_mix")


def test_going_back_to_an_earlier_config_is_a_change(again):
    changed = again.config(predict={"max_new_tokens": 100})
    again("results/tiny/sft/metrics.json", *changed)
    forget(again)
    assert chain("sft", ppo=False) <= again.planned("results/tiny/sft/metrics.json")


def test_a_run_folders_own_config_and_stages_come_first(again):
    (again.folder / "config/config.yaml").write_text("seed: 2\n")
    (again.folder / "config/stages.yaml").write_text("predict: {best_of: 3}\n")
    assert chain("rlhf", "rllr_mix") <= again.planned(*ALL)
    again("results/tiny/predict/config.yaml")
    resolved = yaml.safe_load((again.folder / "results/tiny/predict/config.yaml").read_text())
    assert (resolved["seed"], resolved["best_of"]) == (2, 3)
    again("results/tiny/predict/config.yaml", "--config", "seed=3")  # the command line comes before both
    assert yaml.safe_load((again.folder / "results/tiny/predict/config.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rllr: {learning_rate: 0.5}\n", "(top level): unknown key rllr; expected one of: launch, lora, sft, "),
        ("launch: {processes: 0}\n", "launch.processes: 0 is less than the minimum of 1"),
        ("ppo:\n", "ppo: None is not of type 'object'"),
    ],
)
def test_stages_yaml_is_checked_as_a_whole(again, text, expected):
    (again.folder / "config/stages.yaml").write_text(text)
    assert f"config/stages.yaml: {expected}" in told(again, *ALL)


def test_what_a_cluster_is_asked_for_and_a_licence_train_nothing(again):
    assert again.planned(*ALL, *again.config(base={"size": 1.0})) == set()
    planned = again.planned(*ALL, *again.config(base={"licence": "MIT"}))
    assert planned == {"Resolving results/tiny/base", "Preparing the base model of tiny"}


def test_trackers_rerun_nothing(again):
    assert again.planned(*ALL, "--config", "report_to=[tensorboard,wandb,mlflow]") == set()


def test_a_changed_answer_pattern_retrains_what_reads_labels(again):
    path = again.folder / "config/data/demo.yaml"
    config = yaml.safe_load(path.read_text())
    config["tasks"]["movie_reviews"]["answer"] = "(?im)^label *: *(.*)$"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = again("-n", *ALL)
    assert "Preparing data demo" in done.stdout + done.stderr
    assert "PPO: rllr_mix of tiny" in done.stdout + done.stderr


# Code and places


def test_a_moved_project_reruns_nothing(again, tmp_path):
    moved = type(again)(project_copy(tmp_path / "elsewhere", again.project), again.folder)
    assert moved.planned(*ALL) == set()
    forget(moved)
    assert moved.planned(*ALL) == set()


HARMLESS = [
    ("workflow/scripts/rllr/ppo/losses.py", lambda text: text + "\n# a comment\n"),
    ("workflow/scripts/rllr/ppo/losses.py", lambda text: text.replace('"""Clipped surrogate.', '"""The surrogate.')),
    ("workflow/scripts/rllr/lm/models.py", lambda text: text.replace("precision fp16 needs a GPU", "fp16 needs one")),
    ("workflow/scripts/rllr/lm/models.py", lambda text: text.replace("no weights; expected", "no weights: expected")),
    *((f"workflow/scripts/rllr/{name}.py", lambda text: text + "\nADDED = 1\n")
      for name in ("cli", "files", "gpus", "ranks", "checkpoints", "store", "lm/budget", "lm/fitting",
                   "evaluate/plots", "evaluate/html")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), HARMLESS)
def test_what_decides_nothing_reruns_nothing(again, name, change):
    with edited(again.project, name, change):
        assert again.planned(*ALL) == set()


PPO = chain("rlhf", "rllr_mix") | resolve("rlhf", "rllr_mix")
MIXED, SWAPPED = (f'label_reward="rm_{a}", rationale_reward="rm_{b}",' for a, b in (("rllr", "rlhf"), ("rlhf", "rllr")))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("rllr/ppo/losses.py", lambda text: text.replace("0.5 * (errors", "0.4 * (errors"), PPO),
        ("rllr/ppo/advantages.py", lambda text: text.replace("+ 1e-8", "+ 1e-7"), PPO),
        ("rllr/ppo/scoring.py", lambda text: text.replace("EPSILON = 1e-8", "EPSILON = 1e-7"), PPO),
        ("rllr/train/pairwise.py", lambda text: text.replace("clamp(min=1)", "clamp(min=2)"),
         {"Training reward model rm_rllr of tiny", "Training reward model rm_rlhf of tiny"} | PPO),
        ("rllr/methods.py", lambda text: text.replace(MIXED, SWAPPED, 1), chain("rllr_mix")),
        ("rllr/evaluate/label_metrics.py", lambda text: text.replace("RESAMPLES = 2000", "RESAMPLES = 1000"),
         {f"Metrics of {method} of tiny" for method in ("sft", "rlhf", "rllr_mix")}),
    ],
)  # fmt: skip
def test_what_decides_a_result_reruns_it(again, name, change, expected):
    forget(again)
    with edited(again.project, f"workflow/scripts/{name}", change):
        planned = again.planned(*ALL)
    resolving = {job for job in planned if job.startswith("Resolving")}
    assert planned - resolving == expected - {job for job in expected if job.startswith("Resolving")}
    assert "Training sft_wrat of tiny" not in planned


def test_a_template_decides_the_base_model_and_all_that_follows(again):
    with edited(again.project, "config/templates/smollm2.jinja", lambda text: text.replace("user", "human", 1) + "x"):
        planned = again.planned(*ALL)
    assert {"Preparing the base model of tiny", "Training sft of tiny", "Training sft_wrat of tiny"} <= planned
    assert "Preparing data demo" not in planned


def test_a_half_finished_run_goes_on_after_a_comment_and_not_after_a_change(again):
    interrupted(again, "sft_wrat", "sft.py")
    log = again.folder / "results/tiny/sft_wrat/logs/train.log"
    with edited(again.project, "workflow/scripts/rllr/train/supervised.py", lambda text: text + "\n# a comment\n"):
        again("results/tiny/sft_wrat/adapter")
    assert "resuming from" in log.read_text()
    interrupted(again, "sft_wrat", "sft.py")
    with edited(again.project, "workflow/scripts/rllr/train/supervised.py", lambda text: text + "\nADDED = 1\n"):
        again("results/tiny/sft_wrat/adapter")
    assert "starting afresh" in log.read_text() and "resuming from" not in log.read_text()


def test_touch_keeps_results_over_a_change(again):
    with edited(again.project, "workflow/scripts/rllr/ppo/losses.py", lambda text: text + "\nADDED = 1\n"):
        assert again.planned(*ALL) >= PPO
        again("--touch", *ALL)
        assert again.planned(*ALL) == set()
        forget(again)
        assert again.planned(*ALL) == set()


# Snakemake's other commands


def test_other_commands_do_not_trip_over_the_check_of_targets(again, tmp_path):
    again("--unlock")
    again("--summary", "results/tiny/sft/metrics.json")
    again("-n", "all", "results/tiny/sft/metrics.json", "--config", "models=[tiny]", "methods=[sft]")
    again("--list-rules")
    again("--report", str(tmp_path / "report.html"), "results/tiny/sft/metrics.json")
    assert "unknown model 'tinny'" in told(again, "all", "results/tinny/sft/metrics.json")


def test_a_diverging_run_keeps_its_curve(again):
    done = again("results/tiny/sft/adapter", *again.config(sft={"learning_rate": 1e38}), check=False)
    assert done.returncode != 0 and "the training loss is not finite" in done.stdout + done.stderr
    rows = [json.loads(line) for line in (again.folder / "results/tiny/sft/train_log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] > 0 and any(row.get("loss", 0) is None for row in rows)
    assert [*(again.folder / "results/tiny/sft/tensorboard").glob("events*")]
