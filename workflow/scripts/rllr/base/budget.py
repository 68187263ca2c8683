"""Will it fit? Disk and memory are estimated before a long run, which is refused with the numbers if they say no."""

import shutil
from pathlib import Path

from rllr.cli import UserError


def gib(count: float) -> str:
    """Bytes as GiB (MiB when small)."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise UserError if `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder.parent}: {gib(needed)} needed for {what}, {gib(free)} free on this disk")
