"""The locks of `make locks` against the pins and against what the installed packages themselves ask for."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {"cpu": "requirements-dev.txt", "cuda": "requirements.txt"}


def lines(path: Path) -> list[Requirement]:
    """The requirements of a file, those of the files it includes among them."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found += lines(path.with_name(line[3:]))
        elif line and not line.startswith(("#", "--")):
            found.append(Requirement(line.partition("  #")[0]))
    return found


def locked(name: str) -> dict[str, str]:
    """Package -> version; that of PyTorch's CPU build without what it is a build of."""
    pins = [line.split("==") for line in (ROOT / "locks" / f"{name}.txt").read_text().splitlines() if "==" in line]
    return {canonicalize_name(package): version.removesuffix("+cpu") for package, version in pins}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_every_pin(name):
    found = locked(name)
    for requirement in lines(ROOT / LOCKS[name]):
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_all_that_the_packages_ask_for(name):
    found, seen, left = locked(name), set(), lines(ROOT / LOCKS[name])
    while left:
        requirement = left.pop()
        package = canonicalize_name(requirement.name)
        assert package in found, requirement
        if (package, *requirement.extras) in seen:
            continue
        seen.add((package, *requirement.extras))
        try:
            asked = [Requirement(text) for text in requires(package) or []]
        except PackageNotFoundError:  # a linter, where only the pipeline is installed
            continue
        extras = [{"extra": extra} for extra in [*requirement.extras, ""]]
        left += [r for r in asked if r.marker is None or any(r.marker.evaluate(extra) for extra in extras)]
    assert len(seen) > 50


def test_only_one_lock_brings_cuda():
    assert not [package for package in locked("cpu") if package.startswith("nvidia")]
    assert [package for package in locked("cuda") if package.startswith("nvidia")]
    assert "torch==" in (text := (ROOT / "locks/cpu.txt").read_text()) and re.search(
        r"^torch==[\d.]+\+cpu$", text, re.M
    )


def test_the_image_takes_files_that_are_there():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
    (default,) = re.findall(r"^ARG LOCK=(\w+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert default in LOCKS
