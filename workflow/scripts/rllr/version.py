"""Which code wrote a file: the project's version, its commit, and whether files of the commit had been changed."""

import functools
import subprocess
import tomllib
from pathlib import Path

from rllr.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[3]


@functools.cache
def made_with() -> dict[str, str | bool | None]:
    """version (of pyproject.toml), commit, clean; None for what a copy of the project without these cannot know."""
    found: dict[str, str | bool | None] = {"version": None, "commit": None, "clean": None}
    if (ROOT / "pyproject.toml").is_file():
        found["version"] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if (ROOT / ".git").exists():  # a copy inside of another project's repository has no commit of its own
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        if commit is not None and changes is not None:
            found |= {"commit": commit, "clean": not changes}
    return found


def _git(*arguments: str) -> str | None:
    """What git says; None without git, or where it refuses (a folder of somebody else)."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def stamp(path: Path) -> None:
    """Add `made_with` to a JSON file. No digest sees this call (rllr.provenance): a new version reruns nothing."""
    write_json(path, {**read_json(path), "made_with": made_with()})


def told(made: dict | None) -> str:
    """`made_with` in words."""
    if not made or not (made["version"] or made["commit"]):
        return "an unknown version of RLLR"
    words = f"RLLR {made['version'] or 'of an unknown version'}"
    if made["commit"]:
        words += f", commit {made['commit'][:12]}{'' if made['clean'] else ' with uncommitted changes'}"
    return words
