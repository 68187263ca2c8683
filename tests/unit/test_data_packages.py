"""Fetching package files, through pip, from a folder in place of the package index."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from rllr.cli import UserError
from rllr.data.packages import find_package, own_files

FETCH = Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "fetch_package.py"
WHEEL = "toy-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path):
    """A folder with one wheel, and its checksum."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("toy/rows.csv", "text,label\n")
        wheel.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    return folder, hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


def fetch(index: Path, out: Path, sha256: str, package: str = "toy==1.0") -> subprocess.CompletedProcess:
    command = [sys.executable, str(FETCH), "--package", package, "--sha256", sha256, "--out", str(out)]
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_fetch(index, tmp_path):
    folder, sha256 = index
    out = tmp_path / "packages" / WHEEL
    assert fetch(folder, out, sha256).returncode == 0
    assert out.read_bytes() == (folder / WHEEL).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == [WHEEL]
    (folder / WHEEL).unlink()
    assert "already there" in fetch(folder, out, sha256).stderr  # checked, not fetched again


@pytest.mark.parametrize(
    ("name", "package", "sha256", "parts"),
    [
        (WHEEL, "toy==1.0", "0" * 64, ["sha256", "expected 000"]),
        (WHEEL, "other==1.0", None, ["other==1.0", "pip could not download"]),
        ("toy-1.0-cp311-none-any.whl", "toy==1.0", None, [f"pip downloaded {WHEEL}", "expected toy-1.0-cp311"]),
        ("toy-1.0.tar.gz", "toy==1.0", None, ["pip could not download"]),
    ],
)
def test_fetch_refuses(index, tmp_path, name, package, sha256, parts):
    folder, right = index
    done = fetch(folder, tmp_path / "packages" / name, sha256 or right, package)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert not list((tmp_path / "packages").iterdir())


def test_find_package(tmp_path):
    section = {"file": "a.whl", "package": "a==1", "sha256": "0" * 64}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"base": section | {"source": "package"}}))
    assert find_package("a.whl", [tmp_path]) == section
    with pytest.raises(UserError, match=r"b\.whl"):
        find_package("b.whl", [tmp_path])


def test_own_files(tmp_path):
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).touch()
    config = {
        "tasks": {"t": {"train": {"files": [f"{tmp_path}/*.csv"]}, "test": {"files": ["absent.csv"]}}},
        "annotator": {"file": {"path": "r.jsonl"}},
        "pairs": {"label_sensitive": {"confusion": "c.json"}},
    }
    paths = [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", "absent.csv", "r.jsonl", "c.json"]
    assert own_files(config) == paths

    def loaded(**hub):
        return own_files({"tasks": {"t": {"train": {"hub": {"split": "train", **hub}}}}})

    assert loaded(path="csv", data_files=f"{tmp_path}/*.csv") == paths[:2] == loaded(path=str(tmp_path))
    assert loaded(path="csv", data_files=[f"{tmp_path}/a.csv", "https://x.org/b.csv"]) == paths[:1]
    assert loaded(path="nyu-mll/glue", name="sst2") == []
    assert own_files({"tasks": {"t": {}}, "release": {"files": {"test": "x.json"}}}) == ["x.json"]
