"""The shared store: entries named by the digest of what they are made from, built once, whoever asks first.

An entry is a folder beside which its lock lies; it counts once contents.json, written last, is there. Run folders link
to entries, and Snakemake only ever sees the links, so that no run can delete what another reads.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from rllr.cli import log
from rllr.files import atomic_dir, read_json, sha256, write_json

CONTENTS = "contents.json"  # file -> SHA-256


def whole(entry: Path) -> bool:
    """Whether an entry has all files that its contents.json names."""
    return (entry / CONTENTS).is_file() and all((entry / name).is_file() for name in read_json(entry / CONTENTS))


def build_once(entry: Path, make: Callable[[Path], None]) -> None:
    """Have the folder `entry`: there already, made by another run meanwhile, or made by `make(temporary folder)`."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_name(f".{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"{entry}: another run is making it; waiting")
        lock.acquire()
    try:
        if whole(entry):
            log(f"{entry}: there already")
            return
        with atomic_dir(entry) as folder:
            make(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            write_json(folder / CONTENTS, {str(path.relative_to(folder)): sha256(path) for path in files})
    finally:
        lock.release()


def link(entry: Path, place: Path) -> None:
    """Make `place` a link to `entry` (a file or a folder), relative where they share a folder below the root."""
    place.parent.mkdir(parents=True, exist_ok=True)
    inside = os.path.commonpath([entry.resolve(), place.parent.resolve()]) != entry.resolve().anchor
    target = os.path.relpath(entry.resolve(), place.parent.resolve()) if inside else str(entry.resolve())
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    place.symlink_to(target)
