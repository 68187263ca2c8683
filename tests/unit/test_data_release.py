"""Published files: alpaca rows, completed and checked."""

import json
from pathlib import Path

import pytest
import yaml

from rllr.rows import read_pairs
from rllr.tasks import load_tasks
from test_data_files import prepare, read

TASKS = {
    "reviews": {
        "kind": "label",
        "labels": ["positive", "negative"],
        "match": "(?i)sentiment",
        "answer": r"(?i)the answer is (.*?)\.?$",
    },
    "stars": {
        "kind": "stars",
        "labels": [1, 2, 3],
        "match": "^How many stars",
        "answer": r"(?i)the answer is (.*?)\.?$",
    },
}


def review(n: int, output) -> dict:
    return {"instruction": "What is the sentiment?", "input": f"text number {n}", "output": output}


def says(label: str, why: str = "It seems so.") -> str:
    return f"{why} The answer is {label}."


def release(folder: Path, **files) -> dict:
    """A config with these files, each a list of rows or the text of a file."""
    for name, rows in files.items():
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    paths = {name: str(folder / f"{name}.json") for name in files}
    return {"seed": 1, "tasks": TASKS, "release": {"files": paths, "validation": 3}}


def good() -> dict:
    pair = [says("positive"), says("negative")]
    return {
        "sft_with_rat_train": [review(n, says("positive")) for n in range(20)],
        "rllr_reward_train": [review(n, pair) for n in range(20)]
        + [review(0, pair), {"instruction": "How many stars?", "input": "x", "output": [says("1"), says("3")]}],
        "rlhf_reward_train": [review(n, [says("positive"), says("positive", "No.")]) for n in range(9)]
        + [review(30, pair), review(31, [says("positive")] * 2)],
        "unsupervised": [review(n, "") for n in range(15, 25)] + [review(26, says("negative"))],
        "label_sensitive_pairs_for_test": [review(19, pair)],
        "test": [review(18, says("negative")) | {"history": [["a", "b"]]}],
    }


def test_published_files(tmp_path):
    done = prepare(release(tmp_path, **good()), tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    tasks = load_tasks(out / "tasks.json")
    assert tasks["stars"].labels == ("1", "2", "3")
    (test,) = read(out, "test")
    assert test == {
        "id": "test-1",
        "task": "reviews",
        "instruction": "What is the sentiment?",
        "input": "text number 18",
        "label": "negative",
        "history": [["a", "b"]],
    }
    rllr = read(out, "rllr_reward_train")
    assert rllr[-1]["task"] == "stars" or read(out, "validation")[-1]["task"] == "stars"
    assert all(row["label"] != row["rejected_label"] for row in rllr)
    validation = {row["input"] for row in read(out, "validation")}
    assert len(validation) == 3
    assert {row["input"] for row in read(out, "label_sensitive_pairs_for_validation")} == validation
    for file in ("sft_with_rat_train", "rllr_reward_train", "rlhf_reward_train", "unsupervised"):
        inputs = {row["input"] for row in read(out, file)}
        assert inputs and not inputs & (validation | {"text number 18", "text number 19"}), file
    assert read(out, "sft_train") == []
    assert (
        "not in this release, left empty: sft_train, sft_with_rat_all, rationale_sensitive_pairs_for_test"
        in done.stderr
    )
    found = json.loads((out / "report.json").read_text())["sources"]["reviews"]
    assert found["rlhf_reward_train: pairs whose sides carry different labels, kept"] == 1
    assert found["rlhf_reward_train: pairs of one text, removed"] == 1
    assert len(read_pairs(out / "rlhf_reward_train.jsonl", tasks, label_sensitive=False)) >= 7  # rm_rlhf reads the rest
    assert found["rllr_reward_train: duplicates, removed"] == 1
    labels = [row.get("label") for row in read(out, "unsupervised")]
    assert labels.count("negative") == 1 and None in labels


def test_a_held_out_text_is_no_training_text_whatever_the_instruction(tmp_path):
    files = good()
    words = {"instruction": "Reason, then say the sentiment."}
    files["sft_train"] = [review(n, says("positive")) | words for n in range(20)]
    assert prepare(release(tmp_path, **files), tmp_path).returncode == 0
    held = {row["input"] for file in ("test", "validation") for row in read(tmp_path / "out", file)}
    assert len(held) == 4 and not held & {row["input"] for row in read(tmp_path / "out", "sft_train")}


def test_json_lines_and_byte_order_are_no_matter(tmp_path):
    rows = [review(n, [says("positive"), says("negative")]) for n in range(9)]
    assert prepare(release(tmp_path, rllr_reward_train=rows), tmp_path, "a").returncode == 0
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert prepare(release(tmp_path, rllr_reward_train=lines), tmp_path, "b").returncode == 0
    assert prepare(release(tmp_path, rllr_reward_train="\ufeff" + lines), tmp_path, "c").returncode == 0
    for name in "bc":
        assert read(tmp_path / "a", "rllr_reward_train") == read(tmp_path / name, "rllr_reward_train")


# name: (file, content, parts of the message)
BROKEN = {
    "same label on both sides": ("rllr_reward_train", [review(1, [says("positive")] * 2)], ["row 1", "two different"]),
    "one side missing": ("rllr_reward_train", [review(1, [says("positive")])], ["row 1", "[chosen, rejected]"]),
    "a side is empty": ("rllr_reward_train", [review(1, [says("positive"), " "])], ["row 1", "[chosen, rejected]"]),
    "a side is null": ("rllr_reward_train", [review(1, [says("positive"), None])], ["row 1", "[chosen, rejected]"]),
    "a pair that is one text": ("rllr_reward_train", [review(1, says("positive"))], ["row 1", "[chosen, rejected]"]),
    "rejected has no label": (
        "rllr_reward_train",
        [review(1, [says("positive"), "no"])],
        ["row 1", "rejected", "task reviews"],
    ),
    "label outside the set": (
        "rllr_reward_train",
        [review(1, [says("positive"), says("mixed")])],
        ["row 1", "field output", "mixed"],
    ),
    "response without a label": ("sft_train", [review(1, says("positive")), review(2, "well")], ["row 2", "response"]),
    "response is a list": ("sft_train", [review(1, ["a", "b"])], ["row 1", "field output", "list"]),
    "test without a label": ("test", [review(1, "")], ["row 1", "field output"]),
    "no instruction": ("sft_train", [{"input": "x", "output": says("positive")}], ["row 1", "field instruction"]),
    "unknown instruction": (
        "sft_train",
        [{"instruction": "Sing!", "output": says("1")}],
        ["row 1", "'Sing!'", "match"],
    ),
    "input is a number": ("sft_train", [review(1, says("positive")) | {"input": 3}], ["row 1", "field input"]),
    "huge input": ("sft_train", [review(1, says("positive")) | {"input": "a" * 200_000}], ["row 1", "field input"]),
    "bad history": ("sft_train", [review(1, says("positive")) | {"history": ["a"]}], ["row 1", "field history"]),
    "a list of lists": ("sft_train", "[[1]]", ["row 1", "JSON object"]),
    "not json": ("sft_train", '{"instruction": \n', ["line 1", "not JSON"]),
    "half a list": ("sft_train", "[{", ["not a JSON document"]),
    "half a surrogate pair": ("sft_train", [review(1, says("positive")) | {"input": "\ud83d"}], ["row 1", "surrogate"]),
    "empty list": ("sft_train", "[]", ["no rows"]),
    "empty file": ("sft_train", "", ["no rows"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name, tmp_path):
    from collections import Counter

    from rllr.cli import UserError
    from rllr.config import load_yaml
    from rllr.data.release import build_release, read_release
    from rllr.data.spec import load_config

    file, content, parts = BROKEN[name]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(release(tmp_path, **{file: content})))
    config = load_config(load_yaml(tmp_path / "c.yaml"), "c.yaml")
    with pytest.raises(UserError) as error:
        list(read_release(file, config.release["files"][file], config, Counter()))
    message = str(error.value)
    assert "\n" not in message and f"{file}.json" in message
    for part in parts:
        assert part in message
    with pytest.raises(UserError):
        build_release(config, tmp_path)
