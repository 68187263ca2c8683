"""The default target: summary, page and figures; the model to take away and the programs that use a finished run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllr.tasks import load_tasks, read_label

METHODS = ["sft", "sft_wrat", "sft_wrat_bon", "sft_wrat_vote", "rlhf", "rllr_mix"]
CONFIG = ["--config", "models=[tiny]", f"methods=[{','.join(METHODS)}]"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything(finished, tmp_path_factory):
    """The finished run, taken to `rule all` and to a standalone model."""
    import shutil

    folder = tmp_path_factory.mktemp("all") / "run"
    shutil.copytree(finished.folder, folder, symlinks=True)
    run = type(finished)(finished.project, folder)
    run("all", "results/tiny/rllr_mix/model", *CONFIG)
    return run


def program(run, name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, str(run.project / "workflow/scripts" / name), *map(str, arguments)]
    return subprocess.run(command, cwd=run.folder, input=stdin, capture_output=True, text=True, timeout=300)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_default_target_makes_all_results_and_nothing_twice(everything):
    results = everything.folder / "results"
    page, table = (results / "report.html").read_text(), (results / "summary.md").read_text()
    for method in METHODS:
        assert f"| {method} |" in table and f"<h4>{method}</h4>" in page
    # differences, confusion and coverage, both figures of both reward models, curves
    assert page.count("<figure>") == 1 + 2 * len(METHODS) + 2 * 2 + 6
    quality = json.loads((results / "tiny/rm_rlhf/quality.json").read_text())
    assert list(quality["policies"]) == ["sft_wrat", "rlhf", "rllr_mix"]
    quality_of_labels = json.loads((results / "tiny/rm_rllr/quality.json").read_text())["policies"]
    assert {"rlhf", "rllr_mix"} < set(quality_of_labels)  # also of a method that was not trained against it
    assert quality["policies"]["rlhf"]["n"] == 20 * quality["samples_per_prompt"]
    assert everything.planned(*CONFIG) == set()


def test_snakemakes_own_report_holds_the_figures(everything):
    everything("--report", "snakemake.html", *CONFIG)
    text = (everything.folder / "snakemake.html").read_text()
    for name in (
        "curves.svg",
        "confusion.svg",
        "coverage.svg",
        "pairs.svg",
        "reliability.svg",
        "report.html",
        "summary.html",
    ):
        assert name in text, name


def test_the_standalone_model_answers_as_predict_does(everything):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = everything.folder / "results/tiny/rllr_mix"
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    rows = lines(everything.folder / "results/data/demo/test.jsonl")
    answers = {row["id"]: row["answer"] for row in lines(folder / "predictions.jsonl")}
    room = json.loads((folder / "model.json").read_text())["max_new_tokens"]
    for row in rows:
        turn = {"role": "user", "content": f"{row['instruction']}\n{row['input']}"}
        ids = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**ids, max_new_tokens=room)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(answer, skip_special_tokens=True) == answers[row["id"]]
    card = (folder / "model/README.md").read_text()
    assert 'license: "apache-2.0"' in card and "RLLR-mixed" in card and "movie_reviews" in card


def test_a_finished_model_answers_texts(everything):
    row = lines(everything.folder / "results/data/demo/test.jsonl")[0]
    prediction = lines(everything.folder / "results/tiny/rllr_mix/predictions.jsonl")[0]
    text = ["--task", row["task"], "--text", row["input"], "--jsonl"]
    done = program(everything, "predict.py", "--model", "results/tiny/rllr_mix", *text)
    assert done.returncode == 0 and json.loads(done.stdout)["answer"] == prediction["answer"], done.stderr
    done = program(
        everything, "predict.py", "--model", "results/tiny/sft_wrat_bon", "--task", row["task"], stdin="a\nb\n"
    )
    assert done.returncode == 0 and done.stdout.count("Label: ") == 2, done.stderr


def through_a_server(method, rows: list[dict], log) -> list[str]:
    """Answers of the standalone model in a method's folder, by its own chat template and generation config alone."""
    pytest.importorskip("uvicorn", reason="needs fastapi and uvicorn")
    from openai import OpenAI

    from serving import served

    room = json.loads((method / "model.json").read_text())["max_new_tokens"]
    with served(str(method / "model"), log) as address:
        client, answers = OpenAI(base_url=address, api_key="none"), []
        for row in rows:
            turn = {"role": "user", "content": f"{row['instruction']}\n{row['input']}"}
            found = client.chat.completions.create(model=str(method / "model"), messages=[turn], max_tokens=room)
            answers.append(found.choices[0].message.content)
    return answers


def test_the_standalone_model_answers_through_a_server(everything, tmp_path):
    method = everything.folder / "results/tiny/rllr_mix"
    known = {row["id"]: row["answer"] for row in lines(method / "predictions.jsonl")}
    rows = lines(everything.folder / "results/data/demo/test.jsonl")[:5]
    assert through_a_server(method, rows, tmp_path / "log") == [known[row["id"]] for row in rows]


@pytest.mark.skipif("RLLR_DEMO" not in os.environ, reason="needs RLLR_DEMO, the results folder of a finished demo")
def test_the_demos_model_answers_through_a_server(tmp_path):
    """After `make demo` and `snakemake results/smollm2/rllr_mix/model`; the server may round otherwise."""
    results = Path(os.environ["RLLR_DEMO"])
    known = {row["id"]: row for row in lines(results / "smollm2/rllr_mix/predictions.jsonl")}
    tasks, rows = load_tasks(results / "data/demo/tasks.json"), lines(results / "data/demo/test.jsonl")
    rows = rows[:10] + rows[-10:]  # of both tasks
    answers = through_a_server(results / "smollm2/rllr_mix", rows, tmp_path / "log")
    labels = [read_label(answer, tasks[row["task"]]) for row, answer in zip(rows, answers, strict=True)]
    agreeing = sum(label == known[row["id"]]["prediction"] for row, label in zip(rows, labels, strict=True))
    assert None not in labels and agreeing >= 18, answers


def test_lines_of_jsonl_are_answered_as_the_test_file_is(everything):
    results = everything.folder / "results"
    known = {row["id"]: row for row in lines(results / "tiny/rllr_mix/predictions.jsonl")}
    rows = [row for row in lines(results / "data/demo/test.jsonl") if row["task"] == "movie_reviews"]
    given = [json.dumps({"text": row["input"], "id": row["id"]}) for row in rows]
    given.insert(1, "{")
    arguments = ["--model", "results/tiny/rllr_mix", "--task", "movie_reviews", "--jsonl"]
    done = program(everything, "predict.py", *arguments, stdin="\n".join(given))
    assert done.returncode == 1 and done.stderr.endswith(
        "error: 1 lines could not be answered: each has an error in its place\n"
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert "not JSON" in found.pop(1)["error"]
    assert [line["id"] for line in found] == [row["id"] for row in rows]
    for line in found:
        expected = known[line["id"]]
        assert (line["label"], line["answer"]) == (expected["prediction"], expected["answer"])
        assert line["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


def test_score_agrees_with_the_reward_models_own_evaluation(everything):
    results = everything.folder / "results"
    pairs = lines(results / "data/demo/label_sensitive_pairs_for_test.jsonl")
    rows = [{**row, "answer": row["output"][side]} for row in pairs for side in (0, 1)]
    done = program(
        everything, "score.py", "--reward-model", "results/tiny/rm_rllr",
        stdin="".join(json.dumps(row) + "\n" for row in rows),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    known = [row for row in lines(results / "tiny/rm_rllr/pair_scores.jsonl") if row["set"] == "label_sensitive"]
    assert found == pytest.approx([row[side] for row in known for side in ("chosen", "rejected")], abs=1e-5)
