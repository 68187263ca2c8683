"""Checkpoints beside a stage's outputs: found again after a kill, never trusted blindly, gone when the stage is done.

A checkpoint counts once its manifest of checksums is in place, which is written last. The folder carries a
fingerprint of everything the stage depends on; a changed stage starts afresh.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from rllr import ranks
from rllr.cli import UserError, log
from rllr.files import sha256, write_json
from rllr.store import CONTENTS

MANIFEST = "manifest.json"
KEPT = 2  # the newest, and the one before it in case the newest is damaged


def fingerprint(inputs: Iterable[Path | str], **settings: object) -> str:
    """Checksum over the files of `inputs` and `settings`; of a model folder its contents.json says what it holds.

    The stage's config.yaml, one of the inputs, holds the digest of the code that decides its result.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in map(Path, inputs):
        files = [path]
        if path.is_dir():
            listed = path / CONTENTS
            files = [listed] if listed.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            digest.update(f"{file.name}:{sha256(file) if file.is_file() else ''}\n".encode())
    return digest.hexdigest()


def prepare(folder: Path, inputs: Iterable[Path | str], **settings: object) -> None:
    """Make `folder` ready for a stage; checkpoints of another fingerprint are removed. By the first process alone.

    Raises:
        UserError: this machine's clock is behind the inputs.
    """
    check_clock(inputs, tolerance=60)  # a file server's clock may run a little ahead; training takes longer
    ranks.on_first(lambda: _prepare(folder, fingerprint(inputs, processes=ranks.world(), **settings)))


def finish(folder: Path, inputs: Iterable[Path | str]) -> None:
    """Remove the checkpoints of a stage whose outputs are in place.

    Raises:
        UserError: the clock went back behind the inputs meanwhile; the checkpoints stay.
    """
    check_clock(inputs)
    ranks.barrier()
    if ranks.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


def check_clock(inputs: Iterable[Path | str], tolerance: float = 0) -> None:
    """Snakemake throws away outputs that are older than their inputs: say so before hours of work, not after.

    Raises:
        UserError: an input was written more than `tolerance` seconds in the future of this machine's clock.
    """
    for path in map(Path, inputs):
        # Of a folder that a rule makes, Snakemake reads the time stamp inside.
        marks = [p for p in (path / ".snakemake_timestamp", path) if p.exists()][:1]
        ahead = max((mark.stat().st_mtime for mark in marks), default=0) - time.time()
        if ahead > tolerance:
            raise UserError(
                f"{path}: written {ahead:.0f} s in the future of this machine's clock; set the clock, or give the file "
                "today's time with touch, and run the same command again"
            )


def _prepare(folder: Path, mark: str) -> None:
    stamp = folder / "fingerprint.json"
    if folder.exists() and (not stamp.is_file() or stamp.read_text() != json.dumps(mark, indent=2) + "\n"):
        log(f"{folder}: checkpoints of another configuration, data or code; starting afresh")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(stamp, mark)


def seal(checkpoint: Path) -> None:
    """Write the manifest that makes `checkpoint` count, with its files safely on the disk first."""
    sums = {}
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        sums[str(file.relative_to(checkpoint))] = sha256(file)
    write_json(checkpoint / MANIFEST, sums)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: None if every file is there with its checksum."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it was not finished (no manifest)"
    try:
        sums = json.loads(manifest.read_text())
    except ValueError:
        return "its manifest is damaged"
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256(checkpoint / name) != expected:
            return f"{name} is damaged (its checksum differs)"
    return None


def by_age(folder: Path) -> list[Path]:
    """`checkpoint-<step>` folders, newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and removed."""
    for checkpoint in by_age(folder):
        problem = damage(checkpoint)
        if problem is None:
            log(f"resuming from {checkpoint}")
            return checkpoint
        log(f"{checkpoint}: not used, {problem}")
        shutil.rmtree(checkpoint)
    return None


def rotate(folder: Path) -> None:
    """Remove all but the newest sealed checkpoints."""
    for checkpoint in [p for p in by_age(folder) if (p / MANIFEST).is_file()][KEPT:]:
        shutil.rmtree(checkpoint)
