"""What a file says of the code that wrote it: against git itself."""

import subprocess

import pytest

from rllr import version
from rllr.files import read_json, write_json


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository of one commit in the place of the project's."""
    git(tmp_path, "init", "-q")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "rllr"\nversion = "1.2.3"\n')
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    version.made_with.cache_clear()
    yield tmp_path
    version.made_with.cache_clear()


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_file_says_what_git_says(project):
    write_json(project / "x.json", {"a": 1})
    version.stamp(project / "x.json")  # itself not of the commit, and no change of it
    commit = git(project, "rev-parse", "HEAD")
    assert read_json(project / "x.json") == {
        "a": 1,
        "made_with": {"version": "1.2.3", "commit": commit, "clean": True},
    }
    assert version.told(version.made_with()) == f"RLLR 1.2.3, commit {commit[:12]}"


def test_a_changed_file_is_told(project):
    (project / "pyproject.toml").write_text('[project]\nversion = "1.3"\n')
    assert version.made_with()["clean"] is False
    assert version.told(version.made_with()).endswith("with uncommitted changes")


def test_a_copy_in_another_repository_has_no_commit(project, monkeypatch):
    (project / "copy").mkdir()
    monkeypatch.setattr(version, "ROOT", project / "copy")
    assert version.made_with() == {"version": None, "commit": None, "clean": None}
    assert version.told(version.made_with()) == version.told(None) == "an unknown version of RLLR"
