"""Checkpoints on disk: which weight files a folder holds, and rewriting them tensor by tensor."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllr.cli import UserError, log
from rllr.files import read_json, write_json

if TYPE_CHECKING:
    import torch

# File names of a checkpoint in the order of preference: one file, or an index that lists the shards.
LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
SHARD = 2 * 2**30  # bytes after which an output shard is written


def find(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, safetensors before .bin.

    Raises:
        UserError: there are none, or a shard that the index lists is missing.
    """
    for single, index in LAYOUTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = sorted(set(read_json(folder / index)["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{folder}: {index} lists {len(missing)} shards that are missing: {missing[0]} ...")
            return [folder / shard for shard in shards]
    raise UserError(f"{folder}: no weights; expected {' or '.join(name for layout in LAYOUTS for name in layout)}")


def tensors(path: Path) -> Iterator[tuple]:
    """Yield `(name, tensor)` of one weight file; the file is mapped, not read at once.

    Raises:
        UserError: the file is damaged, or it is a pickle that holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, file.get_tensor(name)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(state, dict):
                raise UserError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
            while state:  # popping frees each tensor once it has been used
                name = next(iter(state))
                yield name, state.pop(name)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides tensors, which could run code and are never loaded "
            f"({str(error).splitlines()[0]})"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: damaged weight file ({str(error).splitlines()[0]}); fetch it again") from None


def rewrite(files: list[Path], folder: Path, convert: "Callable[[str, torch.Tensor], dict[str, torch.Tensor]]") -> None:
    """Pass every tensor of `files` through `convert` and write the results as safetensors shards to `folder`.

    Inputs are mapped and an output shard is written as soon as it is full, so that memory holds about one of these.

    Args:
        files: a checkpoint's weight files.
        convert: (name, tensor) -> {new name: new tensor}; raises UserError for what it does not expect.

    Raises:
        UserError: a tensor appears twice.
    """
    from safetensors.torch import save_file

    seen: set[str] = set()  # all new names
    part: dict[str, Any] = {}  # the tensors of the shard in work
    written: list[list[str]] = []  # the names in each one done

    def write() -> None:
        save_file(part, folder / f"part-{len(written)}", {"format": "pt"})
        written.append(list(part))
        part.clear()

    for path in files:
        log(f"reading {path.name}")
        for name, tensor in tensors(path):
            for new, value in convert(name, tensor).items():
                if new in seen:
                    raise UserError(f"{path}: {name}: {new} comes twice")
                seen.add(new)
                part[new] = value.clone().contiguous()  # no storage shared with the source or with another tensor
            if sum(value.nbytes for value in part.values()) >= SHARD:
                write()
    if part:
        write()

    weight_map: dict[str, str] = {}
    for number, names in enumerate(written):
        shard = f"model-{number + 1:05}-of-{len(written):05}.safetensors" if len(written) > 1 else LAYOUTS[0][0]
        (folder / f"part-{number}").rename(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    if len(written) > 1:
        write_json(folder / LAYOUTS[0][1], {"metadata": {}, "weight_map": weight_map})


def size(files: list[Path]) -> int:
    """Bytes of the files together."""
    return sum(path.stat().st_size for path in files)
