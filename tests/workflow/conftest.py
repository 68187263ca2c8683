"""Snakemake itself on the tiny model: a copy of the project, one finished run, and copies of it to spoil."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
ALL = ["results/tiny/sft/metrics.json", "results/tiny/rlhf/metrics.json", "results/tiny/rllr_mix/metrics.json"]

# The demo's data in small, so that every stage runs in seconds and still takes several steps and checkpoints.
ROWS = {
    "test": 40, "validation": 20, "sft": 160, "label_pairs": 160, "rationale_pairs": 160, "unsupervised": 96,
    "test_label_pairs": 40, "test_rationale_pairs": 40, "validation_label_pairs": 20,
}  # fmt: skip


class Run:
    """A run folder of a project copy."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.project, self.folder = project, folder

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.project / "Snakefile"),
            "--directory", str(self.folder), "--profile", str(self.project / "profiles" / "default"), "--cores", "2",
            *arguments,
        ]  # fmt: skip

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=600)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def planned(self, *arguments: str) -> set[str]:
        """The messages of the jobs that a dry run would start."""
        done = self("-n", *arguments)
        return set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE))

    def config(self, **overrides: dict) -> list[str]:
        return ["--config", f"overrides={yaml.safe_dump({'tiny': overrides}, default_flow_style=True).strip()}"]


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project whose programs may be edited."""
    return project_copy(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, project) -> Run:
    """A finished run of sft, rlhf and rllr_mix on the tiny model (from a run folder, not from the project's).

    The worker that needs it first makes it; the others take a copy.
    """
    folder, base = tmp_path_factory.mktemp("run"), tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    run = Run(project, folder)
    with FileLock(f"{shared}.lock"):
        if shared.is_dir():
            shutil.copytree(shared, folder, symlinks=True, dirs_exist_ok=True)
            return run
        data = yaml.safe_load((ROOT / "config" / "data" / "demo.yaml").read_text())
        (folder / "config" / "data").mkdir(parents=True)
        (folder / "config" / "data" / "demo.yaml").write_text(yaml.safe_dump({**data, "rows": ROWS}, sort_keys=False))
        run(*ALL)
        shutil.copytree(folder, shared, symlinks=True)
    return run


def project_copy(folder: Path, source: Path = ROOT) -> Path:
    """The project's files at another place, as new as a fresh checkout."""
    for name in ("config", "workflow", "profiles"):
        shutil.copytree(
            source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
        )
    for name in ("Snakefile", "environment.yml"):
        shutil.copyfile(source / name, folder / name)
    config = folder / "config/config.yaml"  # the tiny model gains nothing by threads, and workers need the cores
    config.write_text(config.read_text().replace("\nthreads: 8\n", "\nthreads: 1\n"))
    return folder


LABELS = ["positive", "negative"]
OWN = {
    "seed": 1,
    "tasks": {
        "reviews": {
            "kind": "label", "labels": LABELS, "instruction": "Good?",
            "claims": {"positive": "praise", "negative": "blame"},
            "train": {"files": ["rows/train.jsonl"], "text": "text", "label": "label", "id": "id"},
            "test": {"files": ["rows/test.jsonl"], "text": "text", "label": "label", "id": "id"},
        }
    },
    "rows": {"test": 12, "sft": 40},
}  # fmt: skip


def own_rows(path: Path, count: int, first: int = 0) -> None:
    """Film reviews of a kind."""
    words = ("fine", "lovely", "warm", "clever"), ("dull", "flat", "cold", "clumsy")
    rows = [
        {
            "id": str(i),
            "text": f"A {words[i % 2][i // 2 % 4]} film, number {i}.",
            "label": ["positive", "negative"][i % 2],
        }
        for i in range(first, first + count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def own_finished(tmp_path_factory, project) -> Run:
    """A finished run of sft on the tiny model and on rows in files of the run folder."""
    run = Run(project, tmp_path_factory.mktemp("own"))
    own_rows(run.folder / "rows/train.jsonl", 60)
    own_rows(run.folder / "rows/test.jsonl", 12, first=100)
    (run.folder / "config/data").mkdir(parents=True)
    (run.folder / "config/data/own.yaml").write_text(yaml.safe_dump(OWN, sort_keys=False))
    run("--config", "data=own", "--", "results/tiny/sft/metrics.json")
    return run


@pytest.fixture
def own(own_finished, tmp_path) -> Run:
    """A copy of the finished run on own rows."""
    shutil.copytree(own_finished.folder, tmp_path / "own", symlinks=True)
    return Run(own_finished.project, tmp_path / "own")


@pytest.fixture
def again(finished, tmp_path) -> Run:
    """A copy of the finished run, to change or to break."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Run(finished.project, folder)
