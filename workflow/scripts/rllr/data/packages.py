"""The package files that config files name: `{file, package, sha256}` anywhere in a data or model config."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rllr.cli import UserError
from rllr.config import load_yaml
from rllr.data.catalogue import SPLITS


def find_package(file: str, folders: Iterable[Path]) -> dict:
    """The section that describes a package file, searched in the YAML files of `folders`, first match first.

    Raises:
        UserError: no config names the file.
    """
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            for section in _sections(load_yaml(path)):
                if section["file"] == file:
                    return {key: section[key] for key in ("file", "package", "sha256")}
    raise UserError(f"package file {file}: no config of data or models names it")


def _sections(value: Any) -> Iterator[dict]:
    if isinstance(value, dict):
        if {"file", "package", "sha256"} <= value.keys():
            yield value
        for child in value.values():
            yield from _sections(child)


def own_files(config: dict) -> list[str]:
    """Paths of the user's own files that a data config reads: sources, release files, rationales, confusion counts."""
    sources = [task[split] for task in config["tasks"].values() for split in SPLITS if split in task]
    paths = [pattern for source in sources for pattern in source.get("files", ())]
    local = [path for source in sources if "hub" in source for path in _loaded(source["hub"])]
    paths += config.get("release", {}).get("files", {}).values()
    paths += [section["path"] for name, section in config.get("annotator", {}).items() if name == "file"]
    confusion = config.get("pairs", {}).get("label_sensitive", {}).get("confusion")
    named = [path for pattern in [*paths, confusion] if pattern for path in sorted(glob.glob(pattern)) or [pattern]]
    return list(dict.fromkeys([*named, *local]))


def _loaded(hub: dict) -> list[str]:
    """The files here that `datasets.load_dataset` reads: those of a local folder, or a loader's; none of the hub's."""
    folder, files = Path(hub["path"]), hub.get("data_files", [])
    patterns = [f"{folder}/**"] if folder.is_dir() else [files] if isinstance(files, str) else files
    return sorted(path for pattern in patterns for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
