"""Trackers: the same numbers under the same names, in the stage's folder alone, without a network or a key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllr import tracking
from rllr.cli import UserError

PROGRAM = """
import socket, sys
from pathlib import Path
from rllr.tracking import Board

connect = socket.socket.connect
def local(self, address):
    assert isinstance(address, str) or address[0] in ("127.0.0.1", "::1", "localhost"), address
    return connect(self, address)
socket.socket.connect = local
board = Board(Path(sys.argv[1]) / "tensorboard", 0)
for step in (1, 2):
    board.write({"loss": 0.5 / step, "bad": float("nan"), "word": "x", "step": step}, step)
"""
SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The folder of a stage that told all three."""
    folder = tmp_path_factory.mktemp("tiny") / "rllr"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: tiny\nlearning_rate: 0.25\n")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW"))},
        "PYTHONPATH": str(Path(tracking.__file__).parents[1]),
        "RLLR_REPORT_TO": "tensorboard wandb mlflow",
        "WANDB_API_KEY": SECRET,
    }
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return folder


def test_tensorboard_has_the_numbers(stage):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_mlflow_has_the_numbers_and_the_configuration(stage):
    (metric,) = (stage / "mlflow").glob("*/*/metrics/*")
    assert metric.name == "loss"
    assert [line.split()[1:] for line in metric.read_text().splitlines()] == [["0.5", "1"], ["0.25", "2"]]
    assert {p.name: p.read_text() for p in metric.parents[1].glob("params/*")} == {
        "model": "tiny",
        "learning_rate": "0.25",
    }


def test_wandb_has_the_numbers_offline(stage):
    from wandb.proto import wandb_internal_pb2

    (file,) = (stage / "wandb").glob("offline-run-*/*.wandb")
    data, found, place = file.read_bytes(), [], 7  # LevelDB's log: a header, then (checksum, length, type, record)
    assert len(data) < 2**15  # one block
    while place < len(data):
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        record = wandb_internal_pb2.Record.FromString(data[place + 7 : place + 7 + length])
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        found += [items] if items else []
        place += 7 + length
    assert [(row["_step"], row["loss"]) for row in found] == [("1", "0.5"), ("2", "0.25")]
    assert not any("bad" in row or "word" in row for row in found)


def test_no_key_is_written(stage):
    for path in stage.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLR_REPORT_TO", "mlflow")
    monkeypatch.setitem(tracking.PACKAGES, "mlflow", "not_there")
    with pytest.raises(UserError, match="report_to: mlflow: its package is not installed; pip install not_there"):
        tracking.Board(Path(tmp_path) / "tensorboard", 0)
