"""The data files out of small sources: contents, sampling, hygiene, pairs, and that nothing depends on workers."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from rllr.cli import UserError
from rllr.data.annotators import Ask
from rllr.data.annotators.cue import CueAnnotator
from rllr.data.build import Builder
from rllr.data.catalogue import FILES
from rllr.data.plan import USES, share_out
from rllr.data.rejected import is_wrong, score_weights, usable, wrong_labels
from rllr.data.spec import TaskSpec
from rllr.tasks import Task, load_tasks, read_label

PREPARE = Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "prepare.py"
TOPICS = {
    "food": ["bread", "soup", "cheese", "pepper", "onion", "rice", "cake", "salt"],
    "sea": ["wave", "ship", "harbour", "whale", "sail", "anchor", "coral", "tide"],
    "sky": ["cloud", "star", "moon", "plane", "storm", "eagle", "comet", "wind"],
}
FILLER = [f"filler{i}" for i in range(60)]


def sentence(draw: random.Random, topic: str) -> str:
    """Mostly words of the topic, one of another, some that say nothing."""
    other = draw.choice([t for t in TOPICS if t != topic])
    words = draw.sample(TOPICS[topic], 2) + draw.sample(TOPICS[other], 1) + draw.sample(FILLER, 5)
    draw.shuffle(words)
    return " ".join(words)


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def small_config(folder: Path, **changes) -> dict:
    """Four tasks, one of each kind, with their csv files in `folder`."""
    draw = random.Random(0)
    topics = [(sentence(draw, topic), topic) for topic in draw.choices(list(TOPICS), k=600)]
    write_csv(folder / "topics.csv", "text,label", topics)
    stars = [(sentence(draw, draw.choice(list(TOPICS))), draw.randint(1, 5)) for _ in range(300)]
    write_csv(folder / "stars.csv", "text,star", stars)
    pairs = [(sentence(draw, "sea"), sentence(draw, "sea"), draw.randint(0, 1)) for _ in range(300)]
    write_csv(folder / "pairs.csv", "a,b,label", pairs)
    scores = [(sentence(draw, "sky"), sentence(draw, "sky"), round(draw.uniform(0, 5), 2)) for _ in range(300)]
    write_csv(folder / "scores.csv", "a,b,score", scores)
    config = {
        "seed": 3,
        "tasks": {
            "topics": {
                "kind": "label",
                "labels": list(TOPICS),
                "instruction": "Which topic?",
                "claims": {"food": "a meal", "sea": "a voyage", "sky": "a flight"},
                "train": {"files": [str(folder / "topics.csv")], "text": "text", "label": "label"},
            },
            "stars": {
                "kind": "stars",
                "labels": [1, 2, 3, 4, 5],
                "instruction": "How many stars?",
                "claims": {str(n): f"mood {'abcde'[n - 1]}" for n in range(1, 6)},
                "train": {"files": [str(folder / "stars.csv")], "text": "text", "label": "star"},
            },
            "pairs": {
                "kind": "label",
                "labels": ["same", "not same"],
                "f1": "same",
                "instruction": "Same or not?",
                "input": "One: {text}\nTwo: {text2}",
                "claims": {"same": "one meaning", "not same": "two meanings"},
                "train": {
                    "files": [str(folder / "pairs.csv")],
                    "text": "a",
                    "text2": "b",
                    "label": "label",
                    "values": ["not same", "same"],
                },
            },
            "scores": {
                "kind": "score",
                "low": 0,
                "high": 5,
                "instruction": "How similar?",
                "claims": {"0": "nothing shared", "2.5": "something shared", "5": "all shared"},
                "train": {"files": [str(folder / "scores.csv")], "text": "a", "text2": "b", "label": "score"},
            },
        },
        "rows": {
            "test": 160,
            "validation": 40,
            "sft": 200,
            "label_pairs": 400,
            "rationale_pairs": 200,
            "unsupervised": 200,
            "test_label_pairs": 80,
            "test_rationale_pairs": 40,
            "validation_label_pairs": 40,
        },
        "avoid": {"unsupervised": ["sft"]},
        "pairs": {"label_sensitive": {"wrong": 2, "min_distance": 2}},
    }
    return config | changes


def prepare(config: dict, folder: Path, out: str = "out", *options: str) -> subprocess.CompletedProcess:
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, str(PREPARE), "--config", str(path), "--packages", str(folder)]
    return subprocess.run([*command, "--out", str(folder / out), *options], capture_output=True, text=True, timeout=60)


def read(folder: Path, file: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    done = prepare(small_config(folder), folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_files_have_their_fields_and_sizes(prepared):
    rows = {file: read(prepared, file) for file in FILES}
    for file, fields in FILES.items():
        assert all(tuple(row) == fields for row in rows[file]), file
    sizes = {file: len(found) for file, found in rows.items()}
    # A rationale that cites nothing, because no cue is known, cannot be spoiled by citing nothing.
    found = json.loads((prepared / "report.json").read_text())["sources"]
    unspoiled = sum(task.get("rationale-sensitive pairs without a worse rationale", 0) for task in found.values())
    assert sizes.pop("rlhf_reward_train") + sizes.pop("rationale_sensitive_pairs_for_test") + unspoiled == 240
    assert sizes == {
        "sft_train": 200,
        "sft_with_rat_train": 200,
        "sft_with_rat_all": 250,
        "unsupervised": 200,
        "rllr_reward_train": 400,  # 100 a task: from 50 rows, where a row has two wrong labels
        "label_sensitive_pairs_for_test": 80,
        "label_sensitive_pairs_for_validation": 40,
        "validation": 40,
        "test": 160,
    }
    per_task = {task: sum(row["task"] == task for row in rows["test"]) for task in load_tasks(prepared / "tasks.json")}
    assert set(per_task.values()) == {40}


def test_every_response_reads_back(prepared):
    tasks = load_tasks(prepared / "tasks.json")
    for file in FILES:
        for row in read(prepared, file):
            task = tasks[row["task"]]
            if "rejected_label" in row:
                assert [read_label(side, task) for side in row["output"]] == [row["label"], row["rejected_label"]]
                assert row["label"] != row["rejected_label"]
                if task.kind != "label":
                    assert abs(float(row["label"]) - float(row["rejected_label"])) >= 2
            elif isinstance(row.get("output"), list):
                assert [read_label(side, task) for side in row["output"]] == [row["label"]] * 2
                assert row["output"][0] != row["output"][1]
            elif "output" in row:
                assert read_label(row["output"], task) == row["label"]


def test_the_worse_rationale_is_not_told_by_how_much_it_cites(prepared):
    for row in read(prepared, "rlhf_reward_train"):
        better, worse = (len(side.split('"')) // 2 for side in row["output"])
        assert worse <= max(better, 1)


def test_no_training_row_is_held_out(prepared):
    inputs = {file: {row["input"] for row in read(prepared, file)} for file in FILES}
    training = set().union(*(found for file, found in inputs.items() if file.endswith("train") or file[:2] == "un"))
    assert not training & (inputs["test"] | inputs["validation"])
    assert not inputs["sft_train"] & inputs["unsupervised"]
    assert inputs["label_sensitive_pairs_for_test"] <= inputs["test"]
    assert inputs["rationale_sensitive_pairs_for_test"] <= inputs["test"]
    assert inputs["label_sensitive_pairs_for_validation"] <= inputs["validation"]
    shared = json.loads((prepared / "report.json").read_text())["shared rows"]
    assert shared["sft"]["test"] == shared["sft"]["unsupervised"] == 0 and shared["sft"]["label_pairs"] > 0


def test_workers_and_reruns_change_nothing(prepared):
    folder = prepared.parent
    for workers in ("1", "3"):
        done = prepare(small_config(folder), folder, f"again{workers}", "--workers", workers)
        assert done.returncode == 0, done.stderr
        for path in sorted(prepared.glob("*.*")):
            assert path.read_bytes() == (folder / f"again{workers}" / path.name).read_bytes(), path.name


def test_another_seed_draws_other_rows(prepared):
    folder = prepared.parent
    assert prepare(small_config(folder, seed=4), folder, "seed4").returncode == 0
    first, second = ({row["id"] for row in read(path, "test")} for path in (prepared, folder / "seed4"))
    assert len(first & second) < 80


def test_bad_rows_leave_earlier_results(prepared, tmp_path):
    config = small_config(tmp_path)
    assert prepare(config, tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with open(tmp_path / "scores.csv", "a") as file:
        file.write("one,two,7\n")
    done = prepare(config, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("scores.csv line 302: field score: found '7', expected a number from 0 to 5")
    assert "Traceback" not in done.stderr
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(before)  # nothing left behind


def topics_only(folder: Path, source: dict | None = None, **changes) -> dict:
    config = small_config(folder, **changes)
    config["tasks"] = {"topics": config["tasks"]["topics"]}
    config["tasks"]["topics"]["train"] |= source or {}
    return config


def test_duplicate_ids(tmp_path):
    config = topics_only(tmp_path, {"id": "id"})
    write_csv(
        tmp_path / "topics.csv", "id,text,label", [("a", "one soup", "food"), ("b", "x", "sky"), ("a", "y", "sea")]
    )
    done = prepare(config, tmp_path)
    assert done.returncode == 1 and "topics.csv line 4: field id: the same id as" in done.stderr
    assert "topics.csv line 2" in done.stderr


def test_hygiene(tmp_path):
    config = topics_only(tmp_path, rows={"sft": "all", "test": "all"}, avoid={})
    rows = [("Hot soup!", "food"), ("hot  soup", "food"), ("Hot soup!", "food"), ("a wave", "sea"), ("A wave.", "sky")]
    rows += [(" ", "sea"), ("the moon", "sky"), ("the storm", "sky")]
    write_csv(tmp_path / "topics.csv", "text,label", rows)
    write_csv(tmp_path / "test.csv", "text,label", [("The moon", "sky"), ("the moon", "sky")])
    config["tasks"]["topics"]["test"] = config["tasks"]["topics"]["train"] | {"files": [str(tmp_path / "test.csv")]}
    done = prepare(config, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(row["input"] for row in read(tmp_path / "out", "sft_train")) == ["Hot soup!", "a wave", "the storm"]
    assert len(read(tmp_path / "out", "test")) == 2
    found = json.loads((tmp_path / "out" / "report.json").read_text())["sources"]["topics"]
    assert {what: n for what, n in found.items() if n} == {
        "train rows": 7,
        "test rows": 2,
        "train rows with an empty text, removed": 1,
        "exact duplicates in train, removed": 1,
        "normalised duplicates in train, removed": 2,
        "texts with two labels in train, first kept": 1,
        "duplicates in test, kept": 1,
        "train rows that stand in the test set of topics, removed": 1,
    }


def test_no_text_is_held_out_by_one_task_and_trained_on_by_another(tmp_path):
    """Of two tasks on the same 300 pairs, half of them the other way round: none may cross the lines."""
    config = small_config(tmp_path, rows={"test": 60, "validation": 60, "sft": "all", "unsupervised": "all"}, avoid={})
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    turned = [",".join([*reversed(line.upper().split(",")[:2]), line[-1]]) for line in lines[1::2]]
    (tmp_path / "twins.csv").write_text("\n".join([lines[0], *turned, *lines[2::2]]) + "\n")
    pairs = config["tasks"]["pairs"]
    twins = {**pairs, "train": {**pairs["train"], "files": [str(tmp_path / "twins.csv")]}}
    config["tasks"] = {"pairs": pairs, "twins": twins}
    done = prepare(config, tmp_path)
    assert done.returncode == 0, done.stderr

    def texts(*files: str) -> set[frozenset[str]]:
        rows = [row for file in files for row in read(tmp_path / "out", file)]
        return {frozenset(line.lower().partition(": ")[2] for line in row["input"].splitlines()) for row in rows}

    held_out = texts("test"), texts("validation")
    assert len(held_out[0]) > 40 and len(held_out[1]) > 40
    assert not held_out[0] & held_out[1]
    assert not texts("sft_train", "unsupervised") & (held_out[0] | held_out[1])
    found = json.loads((tmp_path / "out" / "report.json").read_text())["sources"]["pairs"]
    assert found["train rows that stand in the test set of twins, removed"] > 10
    assert found["train rows that stand in the validation slice of twins, removed"] > 10


def told(config: dict, folder: Path) -> str:
    done = prepare(config, folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_what_cannot_be_meant_is_refused_by_its_key(tmp_path):
    config = small_config(tmp_path)
    config["tasks"]["pairs"]["input"] = "One: {text}"
    assert "tasks.pairs.input: found 'One: {text}'; text2 names a second column" in told(config, tmp_path)
    config = small_config(tmp_path)
    config["tasks"]["topics"]["input"] = "{text} and {text2}"
    assert "tasks.topics.input: found '{text} and {text2}'; {text2} needs a column, text2" in told(config, tmp_path)
    config = small_config(tmp_path, pairs={"label_sensitive": {"min_distance": 6}})
    where = "pairs.label_sensitive.min_distance: found 6, but the labels of task"
    assert f"{where} scores go from 0 to 5" in told(config, tmp_path)  # the first as the file has them
    config["tasks"].pop("scores")
    assert f"{where} stars go from 1 to 5" in told(config, tmp_path)


@pytest.mark.parametrize(
    "section",
    ["labels: [yes, no]", "labels: ['yes', 'no'], claims: {yes: a, 'no': b}", "labels: ['yes', 'no'], f1: yes",
     "labels: ['yes', 'no'], train: {files: [x], text: a, label: b, values: [no, yes]}",
     "labels: ['yes', 'no'], train: {files: [x], text: a, label: b, values: {'1': yes}}"],
)  # fmt: skip
def test_an_unquoted_yes_is_told(tmp_path, section):
    (tmp_path / "c.yaml").write_text(f"seed: 1\ntasks: {{t: {{kind: label, {section}}}}}\n")
    command = [sys.executable, str(PREPARE), "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "c.yaml: tasks.t." in done.stderr and "quote the word" in done.stderr


def test_the_report_warns_of_what_one_would_find_out_later(tmp_path):
    config = topics_only(tmp_path, rows={"test": 50, "sft": 300, "label_pairs": "all"}, avoid={})
    topics = config["tasks"]["topics"]
    topics["labels"] = [*topics["labels"], "mud"]
    topics["claims"] = {"food": "a meal", "sea": "a trip", "sky": "a trip", "mud": "dirt", "fire": "heat"}
    rows = [(f"soup number {'x' * (i % 97)} {i} {'bread ' * (i % 5)}", "food") for i in range(960)]
    write_csv(tmp_path / "topics.csv", "text,label", rows + [(f"a wave of {i}", "sea") for i in range(40)])
    done = prepare(config, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    labels = [row["label"] for row in read(tmp_path / "out", "sft_train")]
    food = labels.count("food")
    for warning in (
        "topics: labels sea, sky have one claim, 'a trip': rationales cannot tell them apart",
        "topics: claims for fire, which are no labels",
        "topics: none of 300 SFT rows has label sky, mud",
        f"topics: {food} of 300 SFT rows ({food / 300:.0%}) have label food",
        "topics: 50 test rows: an accuracy is known to about 14 points either way",
    ):
        assert warning in found["warnings"] and f"warning: {warning}" in done.stderr, found["warnings"]
    assert "have one claim" in (tmp_path / "out" / "report.svg").read_text()
    # The median is the words' own, not a bin's.
    words = sorted(len(row["input"].split()) for row in read(tmp_path / "out", "sft_train"))
    assert found["files"]["sft_train"]["input words"]["median"] == (words[149] + words[150]) / 2
    test = [row["label"] for row in read(tmp_path / "out", "test")]
    unread = found["without reading"]["topics"]
    assert unread["most frequent label"] == {"label": "food", "share": round(test.count("food") / 50, 4)}
    pairs = [(row["label"], row["rejected_label"]) for row in read(tmp_path / "out", "rllr_reward_train")]
    chosen, sides = Counter(a for a, _ in pairs), Counter(label for pair in pairs for label in pair)
    rate = {label: chosen[label] / sides[label] for label in sides}
    right = sum(0.5 if rate[a] == rate[b] else rate[a] > rate[b] for a, b in pairs) / len(pairs)
    assert unread["more frequent side of a pair"]["share"] == round(right, 4) > 0.9
    assert f"the more frequent side of a pair is right in {round(right, 4):.1%}" in done.stderr


def test_rows_that_are_not_there_are_reported(tmp_path):
    config = topics_only(tmp_path, rows={"test": 100, "sft": 10_000})
    done = prepare(config, tmp_path)
    assert done.returncode == 0 and "rows.sft: 10000 asked of task topics" in done.stderr
    config["rows"] = {"test": 100, "sft": "all", "unsupervised": 50}
    done = prepare(config, tmp_path, "avoided")
    assert done.returncode == 1 and "rows.unsupervised: no rows are left for it; give fewer to sft" in done.stderr
    config["rows"] = {"test": "all", "sft": 1}
    done = prepare(config, tmp_path, "none")
    assert done.returncode == 1 and "task topics: no rows are left for training" in done.stderr


def test_file_annotator(tmp_path):
    config = topics_only(tmp_path, rows={"sft": 50, "label_pairs": 50}, avoid={})
    config["annotator"] = {"file": {"path": str(tmp_path / "rationales.jsonl")}}
    labels = list(TOPICS)
    with open(tmp_path / "rationales.jsonl", "w") as file:
        for number in range(1, 500):
            for label in labels:
                file.write(
                    json.dumps({"id": f"topics-{number}", "label": label, "rationale": f"Mine for {label}"}) + "\n"
                )
        file.write(json.dumps({"id": "topics-500", "label": "sea", "rationale": "So.\nLabel: sky"}) + "\n")
    done = prepare(config, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out", "sft_with_rat_train")
    assert rows and all(row["output"] == f"Mine for {row['label']}\nLabel: {row['label']}" for row in rows)
    missing = sum(int(row["id"].split("-")[1]) >= 500 for row in read(tmp_path / "out", "sft_train"))
    assert len(rows) == 50 - missing
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    text = (tmp_path / "rationales.jsonl").read_text()
    (tmp_path / "rationales.jsonl").write_text(text.replace("topics-", ""))  # not the ids of the data files
    done = prepare(config, tmp_path)
    assert (
        done.returncode == 1 and "rows.sft asks for rows, but sft_with_rat_train.jsonl would have none" in done.stderr
    )
    assert "rationales missing or unusable" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "rationales.jsonl").write_text('{"id": "topics-1", "label": "sea"}\n')
    done = prepare(config, tmp_path)
    assert done.returncode == 1 and "rationales.jsonl line 1: field rationale: found None" in done.stderr
    (tmp_path / "rationales.jsonl").write_text('{"id": "topics-1", "label": "sea", "rationale": "so \\ud83d"}\n')
    done = prepare(config, tmp_path)
    assert done.returncode == 1 and "rationales.jsonl line 1: found half of a surrogate pair" in done.stderr


def test_confusion_comes_first(tmp_path):
    config = topics_only(tmp_path)
    config["pairs"] = {"label_sensitive": {"wrong": 1, "confusion": str(tmp_path / "confusion.json")}}
    counts = {"topics": {"food": {"sky": 9, "sea": 1}, "sea": {"food": 2}, "sky": {"food": 5, "sea": 7}}}
    (tmp_path / "confusion.json").write_text(json.dumps(counts))
    assert prepare(config, tmp_path).returncode == 0
    hardest = {(row["label"], row["rejected_label"]) for row in read(tmp_path / "out", "rllr_reward_train")}
    assert hardest == {("food", "sky"), ("sea", "food"), ("sky", "sea")}
    (tmp_path / "confusion.json").write_text(json.dumps({"topics": {"food": {"mud": 9}}}))
    done = prepare(config, tmp_path)
    assert done.returncode == 1 and "confusion.json: key topics.food: found 'mud'" in done.stderr


def spec(task: Task, **fields) -> TaskSpec:
    return TaskSpec(task=task, instruction="?", claims={}, sources={}, pair=False, **fields)


def test_wrong_labels():
    three = spec(Task("t", "label", ("a", "b", "c")))
    assert sorted(wrong_labels(three, "b", 7, 5, 1, {}, {})) == ["a", "c"]
    assert {wrong_labels(three, "b", n, 1, 1, {}, {})[0] for n in range(30)} == {"a", "c"}
    stars = spec(Task("s", "stars", ("1", "2", "3", "4", "5")))
    assert [label for label in "12345" if is_wrong(stars, label, "2", 2)] == ["4", "5"]
    score = spec(Task("x", "score", low=0, high=5))
    weights = score_weights(score, Counter({"0": 3, "1.2": 2, "2.5": 4, "4": 1, "5": 2}), 1.5)
    assert sorted(wrong_labels(score, "2.5", 7, 9, 1.5, {}, weights)) == ["0", "4", "5"]
    assert wrong_labels(score, "3", 7, 9, 9, {}, weights) == []


def similarities(kind: str) -> list[str]:
    """Gold scores in 0..5: means of five people (fifths, with more whole ones than others), or mostly high ones."""
    draw = random.Random(0)
    if kind == "means":
        found = [sum(draw.choices(range(6), [3, 2, 2, 3, 3, 2], k=1) * 3 + draw.choices(range(6), k=2)) / 5
                 for _ in range(3000)] + [float(draw.randint(0, 5)) for _ in range(1500)]  # fmt: skip
    else:
        found = [5 * draw.betavariate(2, 1) for _ in range(4500)]
    return [f"{round(score, 1):g}" for score in found]


RULES = {
    "higher": float, "nearer the middle": lambda s: -abs(float(s) - 2.5), "whole": lambda s: "." not in s,
    "even tenths": lambda s: round(10 * float(s)) % 2 == 0, "half": lambda s: s[-2:] == ".5",
    "shorter": lambda s: -len(s), **{f"ends in {d}": lambda s, d=d: s[-1] == d for d in "0123456789"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["means", "high"])
def test_no_rule_on_the_numbers_tells_the_gold_score(kind):
    claims = {"0": "nothing", "1.5": "little", "3.5": "much", "5": "all"}
    score = TaskSpec(Task("x", "score", low=0, high=5), "?", claims, {}, True)
    golds = similarities(kind)
    weights, draw = score_weights(score, Counter(golds), 1), random.Random(1)
    pairs = [(gold, wrong_labels(score, gold, draw.getrandbits(64), 1, 1, {}, weights)[0]) for gold in golds]
    assert all(score.label_class(gold) != score.label_class(wrong) for gold, wrong in pairs)
    assert all(abs(float(gold) - float(wrong)) >= 1 for gold, wrong in pairs)
    for name, rule in RULES.items():
        wins = [(rule(gold) > rule(wrong)) + 0.5 * (rule(gold) == rule(wrong)) for gold, wrong in pairs]
        assert abs(sum(wins) / len(wins) - 0.5) < 0.02, name  # four standard errors of the rule that always decides


def test_unusable_rationales():
    task = Task("t", "label", ("a", "b"))
    assert usable("It says so.", "a", task)
    assert not any(usable(bad, "a", task) for bad in (None, "", "  ", "So it is.\nLabel: b", "label: a"))
    assert not usable("It says so.", "c", task)


def test_share_out():
    assert share_out(100, {"a": 1000, "b": 20}) == {"a": 80, "b": 20}
    assert share_out(7, {"a": 9, "b": 9, "c": 9}) == {"a": 2, "b": 2, "c": 3}
    assert share_out("all", {"a": 5, "b": 6}) == {"a": 5, "b": 6}
    assert share_out({"a": "all", "b": 2}, {"a": 5, "b": 6, "c": 7}) == {"a": 5, "b": 2, "c": 0}
    assert sum(share_out(50, {"a": 5, "b": 6}).values()) == 50  # the shortage is asked, and reported


# The leak: can a classifier tell right from wrong rationales of training rows better than of unseen rows?


def leak_accuracies(folds: int) -> tuple[float, float]:
    """Accuracy of telling gold from wrong by the cited words, on training rows and on unseen rows."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    draw = random.Random(1)
    rare = [f"rare{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{'uvwxyz'[i // 100]}" for i in range(600)]
    task = Task("topics", "label", tuple(TOPICS))
    specs = {"topics": TaskSpec(task, "?", {t: f"topic {t}" for t in TOPICS}, {}, False)}
    rows = []
    for number in range(1500):
        topic = draw.choice(list(TOPICS))
        text = f"{sentence(draw, topic)} {' '.join(draw.sample(rare, 4))}"
        rows.append(Ask("topics", str(number), text, "", topic, number % folds))
    training, unseen = rows[:900], [row._replace(fold=-1) for row in rows[900:]]
    annotator = CueAnnotator(specs, folds=folds, min_count=1, max_share=1)
    if folds == 1:  # the leaky writer: statistics that include the row itself
        training = [row._replace(fold=0) for row in training]
    annotator.fit(iter([annotator.count(training)]))
    if folds == 1:
        training = [row._replace(fold=-1) for row in training]

    def cited(rows: list[Ask]) -> list[tuple[str, str]]:
        wrong = [row._replace(label=next(t for t in TOPICS if t != row.label)) for row in rows]
        # A word cited for one label is another feature than the word cited for another.
        return [
            tuple(" ".join(f"{w}_{ask.label}" for w in text.split('"')[1::2]) for ask, text in sides)
            for sides in zip(
                zip(rows, annotator.write(rows), strict=True),
                zip(wrong, annotator.write(wrong), strict=True),
                strict=True,
            )
        ]

    fit, seen, other = cited(training[:600]), cited(training[600:]), cited(unseen)
    vectors = CountVectorizer(token_pattern=r"\S+").fit([text for pair in fit for text in pair])

    def difference(pairs):
        gold, wrong = zip(*pairs, strict=True)
        return vectors.transform(gold) - vectors.transform(wrong)

    x = difference(fit).toarray()
    model = LogisticRegression(fit_intercept=False, C=0.3).fit(np.vstack([x, -x]), [1] * len(x) + [0] * len(x))
    return tuple(float((model.decision_function(difference(rows)) > 0).mean()) for rows in (seen, other))


def test_training_rationales_give_no_more_away_than_unseen_ones():
    seen, unseen = leak_accuracies(folds=5)
    assert unseen > 0.8  # there is something to learn
    assert seen <= unseen + 0.04


def test_that_the_leak_test_can_see_a_leak():
    draw = random.Random(2)
    task = Task("topics", "label", tuple(TOPICS))
    specs = {"topics": TaskSpec(task, "?", {t: f"topic {t}" for t in TOPICS}, {}, False)}
    rows = [Ask("topics", str(n), f"word{chr(97 + n % 26)}{chr(97 + n // 26)}", "", draw.choice(list(TOPICS)), n % 5)
            for n in range(200)]  # fmt: skip
    annotator = CueAnnotator(specs, min_count=1)
    annotator.fit(iter([annotator.count(rows)]))
    assert all("as a whole" in text for text in annotator.write(rows))  # the only row with the word is hidden
    leaky = annotator.write([row._replace(fold=-1) for row in rows])
    assert all("as a whole" not in text for text in leaky)


def test_pairs_that_share_their_first_text_are_hidden_from_each_other(tmp_path):
    premises = [f"Premise {n // 3}{'.' * (n % 3)}" for n in range(60)]  # alike but for punctuation
    lines = [
        json.dumps(["x", str(n), text, f"hypothesis {n}", "yes"]).encode() + b"\n" for n, text in enumerate(premises)
    ]
    (tmp_path / "rows").write_bytes(b"".join(lines))
    builder = object.__new__(Builder)
    builder.rows = SimpleNamespace(task=np.zeros(60, int), offset=np.cumsum([0, *map(len, lines)]))
    builder.plan = SimpleNamespace(uses=np.full(60, USES["statistics"]))
    builder.spool, builder.names, builder.folds = str(tmp_path / "rows"), ["pairs"], 5
    folds = [ask.fold for _, ask in builder.read(np.arange(60))]
    assert folds[::3] == folds[1::3] == folds[2::3] and set(folds) == set(range(5))
    builder.plan.uses[:] = 0
    assert {ask.fold for _, ask in builder.read(np.arange(60))} == {-1}


def test_unreadable_confusion_names_the_file(tmp_path):
    from rllr.data.rejected import read_confusion

    (tmp_path / "c.json").write_text('{"other": {}}')
    with pytest.raises(UserError, match=r"c\.json: key other"):
        read_confusion(str(tmp_path / "c.json"), {})
    tasks = {"mood": Task("mood", "label", ("good", "bad"))}
    for text, told in (("[]", "expected task"), ('{"mood": {"good": {"bad": "12"}}}', r"good\.bad: found '12'")):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(UserError, match=rf"c\.json: .*{told}"):
            read_confusion(str(tmp_path / "c.json"), tasks)


def test_token_lengths(tmp_path, merged):
    config = topics_only(tmp_path, rows={"sft": 30}, tokenizers={"tiny": str(merged)}, cutoff=50)
    assert prepare(config, tmp_path).returncode == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["tokens"]["tiny"]["sft_with_rat_train"]
    longest = max(
        len(f"{row['instruction']}\n{row['input']}{row['output']}")  # one token a byte
        for row in read(tmp_path / "out", "sft_with_rat_train")
    )
    assert found["max"] == longest and found["sample"] == 30 and found["share over cutoff"] == 1
    config["tokenizers"] = {"tiny": str(tmp_path)}
    done = prepare(config, tmp_path)
    assert done.returncode == 1 and f"tokenizers.tiny: {tmp_path}/tokenizer.json cannot be read" in done.stderr


def test_pair_cues_name_where_the_texts_differ():
    task = Task("nli", "label", ("yes", "no"))
    specs = {"nli": TaskSpec(task, "?", {"yes": "agreement", "no": "conflict"}, {}, True)}
    rows = []
    for number in range(40):
        adverb, label = ("never", "no") if number % 2 else ("always", "yes")
        rows.append(Ask("nli", str(number), "the dog sleeps", f"the dog {adverb} sleeps", label, number // 2 % 5))
    annotator = CueAnnotator(specs, max_share=1, cited=1)
    annotator.fit(iter([annotator.count(rows)]))
    gold, wrong = annotator.write([rows[1], rows[1]._replace(label="yes")])
    assert gold == 'Conflict, as only the second says "never".'
    assert wrong != gold and wrong.startswith("Agreement, as ") and "never" not in wrong


def test_no_pair_has_one_rationale_on_both_sides(tmp_path):
    config = topics_only(tmp_path, rows={"sft": 50, "label_pairs": "all"}, avoid={})
    config["tasks"]["topics"]["claims"] = dict.fromkeys(TOPICS, "a subject")
    config["annotator"] = {"cue": {"min_count": 400}}  # few words may be cited
    done = prepare(config, tmp_path)
    assert done.returncode == 1 or all(
        row["output"][0].rpartition("\n")[0] != row["output"][1].rpartition("\n")[0]
        for row in read(tmp_path / "out", "rllr_reward_train")
    )
    assert "label-sensitive pairs with one rationale on both sides" in done.stderr


def test_stop_words_are_not_cited():
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    from rllr.data.annotators.cue import STOP_WORDS, cues

    negations = {"no", "not", "never", "nor", "none", "nothing", "neither", "cannot", "cant", "without", "don't"}
    assert not STOP_WORDS & negations
    # Of the words that sklearn's longer list has, those of most English texts.
    text = "It was the film that they had all been waiting for, and it's not what I would have made of this."
    assert set(cues(text, "", False)) == {"film", "waiting", "not"}
    assert {"was", "the", "that", "they", "had", "all", "been", "for", "and", "it", "this"} <= ENGLISH_STOP_WORDS
    assert cues("the film", "a film with \u2019em, it\u2019s bad", True)[1:] == ["=film", ">em", ">bad"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_program(how, tmp_path):
    config = topics_only(tmp_path, rows={"sft": "all"})
    with open(tmp_path / "topics.csv", "a") as file:
        file.writelines(f"{'word ' * 400}{number},food\n" for number in range(20_000))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(PREPARE), "--config", str(tmp_path / "c.yaml"), "--workers", "2"]
    program = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    deadline = time.monotonic() + 30
    while not (workers := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    program.send_signal(how)
    program.wait(timeout=30)
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(alive(worker) for worker in workers)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
