"""Files that appear whole or not at all, JSON lines, checksums and the lock on a stage folder."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rllr import ranks
from rllr.cli import UserError


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path`; rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def plain(value: Any) -> Any:
    """`value` with null for numbers that are not finite, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_json(path: Path | str, value: Any) -> None:
    with atomic_file(path) as file:
        json.dump(plain(value), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can write one, UTF-8 cannot


def writable(value: Any) -> bool:
    """Whether a value read from JSON can be written as UTF-8: it holds no half of a surrogate pair."""
    return not HALF.search(json.dumps(value, ensure_ascii=False))


def read_json(path: Path | str) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # with a byte-order mark or without
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a JSON document ({error})") from None


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict]]:
    """Yield `(line number from 1, row)` of a JSON-lines file.

    Raises:
        UserError: the file is missing, not UTF-8, or a line is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} line {number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None


def has_rows(path: Path | str) -> bool:
    """Whether a data file is there and not empty."""
    return Path(path).is_file() and Path(path).stat().st_size > 0


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def stage_lock(folder: Path | str) -> Iterator[None]:
    """Hold the lock of a stage folder, so that two programs never write to it at once.

    The operating system drops the lock with the process, so a killed program leaves nothing to clean up. Of several
    processes of one program the first holds it, which alone writes.

    Raises:
        UserError: another process holds it.
    """
    if ranks.rank() > 0:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another program is working in this folder (its lock is held); wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()
