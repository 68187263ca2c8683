"""What a change makes stale, and nothing else; and the interfaces people use to look at the DAG."""

import json
import shutil

import pytest
import yaml

from conftest import ROOT

ALL = ["results/tiny/sft/metrics.json", "results/tiny/rlhf/metrics.json", "results/tiny/rllr_mix/metrics.json"]


def chain(*methods: str, ppo: bool = True) -> set[str]:
    """The jobs from PPO (or from prediction) of some methods to their metrics."""
    steps = (["PPO: {} of tiny"] if ppo else []) + ["Predicting with {} of tiny", "Metrics of {} of tiny"]
    return {step.format(method) for method in methods for step in steps}


def resolve(*stages: str) -> set[str]:
    return {f"Resolving results/tiny/{stage}/config" for stage in stages}


def test_a_finished_run_has_everything_and_nothing_to_do(finished):
    assert finished.planned(*ALL) == set()
    metrics = json.loads((finished.folder / "results/tiny/rllr_mix/metrics.json").read_text())
    assert metrics["model"] == "tiny" and metrics["method"] == "rllr_mix" and metrics["data"] == "demo"
    assert metrics["n"] == 40 and set(metrics["tasks"]) == {"movie_reviews", "bbc_news"}
    for task in metrics["tasks"].values():
        assert task["metric"] == "accuracy" and task["n"] == 20 and len(task["ci95"]) == 2
    pairs = json.loads((finished.folder / "results/tiny/rm_rllr/metrics.json").read_text())
    assert pairs["n"] == 40 and 0 <= pairs["pair_accuracy"] <= 1 and "chosen_median_validation" in pairs
    assert not [*finished.folder.glob("results/tiny/*/checkpoints")]
    assert not [p for p in finished.folder.rglob("*") if ".tmp" in p.name]


def test_every_key_of_a_finished_run_is_explained(finished):
    text, results = (ROOT / "docs/outputs.md").read_text(), finished.folder / "results"
    files = [p for p in results.glob("tiny/*/*.json*") if p.parent.name != "base"]
    files += [results / "tiny/base/origin.json", results / "data/demo/report.json"]
    assert {"train_log.jsonl", "samples.jsonl", "pair_scores.jsonl", "reward.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_text()
        for entry in map(json.loads, content.splitlines() if path.suffix == ".jsonl" else [content]):
            of_tasks = {key for task in entry.get("tasks", {}).values() for key in task}
            absent = [key for key in {*entry, *of_tasks} if f"`{key}`" not in text]
            assert not absent, (path.relative_to(results), absent)


def test_the_ppo_learning_rate_reruns_ppo_and_what_follows(again):
    changed = again.config(ppo={"learning_rate": 2e-3})
    assert again.planned(*ALL, *changed) == chain("rlhf", "rllr_mix") | resolve("rlhf", "rllr_mix")


def test_the_rllr_reward_models_epochs_leave_rlhf_alone(again):
    changed = again.config(rm_rllr={"epochs": 2})
    expected = chain("rllr_mix") | resolve("rm_rllr") | {"Training reward model rm_rllr of tiny"}
    assert again.planned(*ALL, *changed) == expected


def test_a_deleted_prediction_is_made_again(again):
    # Snakemake leaves a missing intermediate file missing; `rule all` names predictions as results of their own.
    predictions = "results/tiny/rlhf/predictions.jsonl"
    (again.folder / predictions).unlink()
    assert again.planned(*ALL, predictions) == chain("rlhf", ppo=False)
    again(*ALL, predictions)
    assert again.planned(*ALL, predictions) == set()


def test_two_swapped_values_are_noticed(again):
    """Snakemake compares params as a set of values; ours is one text."""
    swapped = again.config(ppo={"clip": 0.95, "gae_lambda": 0.2})
    assert chain("rlhf", "rllr_mix") <= again.planned(*ALL, *swapped)


@pytest.mark.parametrize("option", ["--dag", "--rulegraph"])
def test_graphs_of_the_paper_setting(finished, option):
    done = finished(option, "dot", "results/mistral/rllr_mix/metrics.json")
    assert done.stdout.startswith("digraph")


def test_the_dry_run_for_mistral_shows_the_complete_dag(finished):
    jobs = finished.planned("results/mistral/rllr_mix/metrics.json")
    for job in (
        "Preparing data nlu8", "Preparing the base model of mistral", "Training sft_wrat of mistral",
        "Merging the adapter of sft_wrat into mistral", "Training reward model rm_rllr of mistral",
        "Training reward model rm_rlhf of mistral", "PPO: rllr_mix of mistral", "Predicting with rllr_mix of mistral",
        "Metrics of rllr_mix of mistral",
    ):  # fmt: skip
        assert job in jobs


BAD_CONFIGS = [
    (["--config", "modles=[tiny]"], "unknown key modles"),
    (["--config", "seed=one"], "seed: 'one' is not of type 'integer'"),
    (["--config", "models=[tiny,mistrall]"], "unknown model 'mistrall'"),
    (["--config", "methods=[sft,ppo]"], "methods.1: 'ppo' is not one of"),
    (["--config", "data=dmeo"], "unknown data 'dmeo'"),
    (["--config", "overrides={tiny: {template: chatml}}"], "unknown template 'chatml'"),
    (["--config", "overrides={tiny: {ppo: {learning_rat: 1}}}"], "unknown key learning_rat"),
    (["--config", "overrides={tiny: {sft: {epochs: many}}}"], "sft.epochs: 'many' is not of type 'number'"),
    (["--config", "overrides={tiny: {rllr_mix: {keep: all}}}"], "keep: 'all' is not one of"),
    (["--config", "overrides={tiny: {launch: {processes: 3}}}"], "16 is not a multiple of micro_batch_size 8 x 3 proc"),
    (["results/tiny/sft_wrat_bon/model"], "sft_wrat_bon has no model of its own"),
    (["results/tiny/rm_rllr/model"], "expected a method, found rm_rllr"),
    (["--config", "report_to="], "report_to: None is not of type 'array'"),
    (["results/tinny/rllr/metrics.json"], "unknown model 'tinny'"),
    (["results/tiny1.5/rllr/metrics.json"], "unknown model 'tiny1.5'"),
    (["results/tiny/rllr_mixed/metrics.json"], "unknown method 'rllr_mixed'"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD_CONFIGS)
def test_a_bad_config_is_one_line_before_any_work(finished, arguments, expected):
    target = ["results/tiny/rllr_mix/metrics.json"] if arguments[0] == "--config" else []
    before = {p: p.stat().st_mtime_ns for p in (finished.folder / "results").rglob("*")}
    done = finished("-n", *target, *arguments, check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and expected in text and "Traceback" not in text
    assert sum(expected in line for line in text.splitlines()) == 1
    assert {p: p.stat().st_mtime_ns for p in (finished.folder / "results").rglob("*")} == before


def rows_of_the_data(run, **rows) -> None:
    """Change `rows` of the run's data config; None takes a key away."""
    path = run.folder / "config/data/demo.yaml"
    config = yaml.safe_load(path.read_text())
    config["rows"] = {key: n for key, n in {**config["rows"], **rows}.items() if n is not None}
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def test_rows_that_a_method_needs_are_asked_for_before_any_work(again):
    rows_of_the_data(again, test_label_pairs=None)
    done = again("-n", "results/tiny/rllr/metrics.json", check=False)
    expected = "demo.yaml: rows.test_label_pairs: missing; rm_rllr needs label_sensitive_pairs_for_test.jsonl"
    text = done.stdout + done.stderr
    assert done.returncode != 0 and expected in text and "Traceback" not in text
    again("-n", "results/tiny/sft_wrat/metrics.json")  # which needs no pairs
    rows_of_the_data(again, test=None, validation=None, validation_label_pairs=None, test_label_pairs=20)
    again("-n", "results/tiny/rllr/adapter")

    def missing(*arguments: str) -> str:
        done = again("-n", *arguments, check=False)
        assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    prediction = "demo.yaml: rows.test: missing; prediction needs test.jsonl"
    for target in ("results/tiny/rllr/metrics.json", "results/summary.md"):
        assert prediction in missing(target)
    best = again.config(rllr={"keep": "best"})
    assert "rows.validation: missing; keep: best of rllr needs" in missing("results/tiny/rllr/adapter", *best)
    rows_of_the_data(again, test=20)
    for target in ([], ["report"]):
        assert "rows.validation: missing; reward quality needs validation.jsonl" in missing(*target)
    rows_of_the_data(again, validation=20)
    tau = "missing; label_reward_threshold: auto of rllr_mix needs label_sensitive_pairs_for_validation.jsonl"
    assert f"rows.validation_label_pairs: {tau}" in missing("results/tiny/rllr_mix/adapter")
    again("-n", "results/tiny/rllr_mix/adapter", *again.config(ppo={"label_reward_threshold": 1.0}))


def test_data_without_validation_and_rationale_tests_will_do(again):
    rows_of_the_data(again, validation=None, validation_label_pairs=None, test_rationale_pairs=None)
    again("results/tiny/rllr/adapter")
    metrics = json.loads((again.folder / "results/tiny/rm_rllr/metrics.json").read_text())
    assert metrics["n"] == 40 and not {"validation", "rationale_sensitive"} & set(metrics)
    log = (again.folder / "results/tiny/rllr/train_log.jsonl").read_text()
    assert "label_accuracy" in log and "validation_accuracy" not in log


def test_report(finished, tmp_path):
    finished("--report", str(tmp_path / "report.html"), *ALL)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def first_loss(log) -> float:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return next(row["loss"] for row in rows if "loss" in row)  # PPO's first row is the validation before it


def test_the_number_of_processes_is_no_reason_to_run_again_and_is_used_when_something_runs(again):
    two = again.config(launch={"processes": 2})
    assert again.planned(*ALL, *two) == set()
    for stage in ("sft_wrat", "rm_rllr", "rllr_mix"):
        folder = again.folder / "results/tiny" / stage
        before = first_loss(folder / "train_log.jsonl")
        shutil.rmtree(folder / "adapter")
        again(f"results/tiny/{stage}/adapter", "--rerun-triggers", "params", *two)
        log = (folder / "logs/train.log").read_text()
        assert ("2 process(es)" if stage == "rllr_mix" else "x 2 processes = 16") in log
        after = first_loss(folder / "train_log.jsonl")
        assert after == pytest.approx(before, abs=1e-4)
