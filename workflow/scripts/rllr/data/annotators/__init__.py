"""Rationale writers. An annotator turns asks (a row and the label to argue for) into rationales.

The interface is two functions of an object:

- `count(rows)` / `fit(counts)`: statistics over training rows, only if `learns` is true;
- `write(asks)`: a rationale, or None where none could be had, for each ask, in order.

`parallel` says whether `write` may run in forked worker processes.
"""

from pathlib import Path
from typing import Any, NamedTuple


class Ask(NamedTuple):
    """Write a rationale for `label` (which may be wrong) of this row."""

    task: str
    id: str
    text: str
    text2: str
    label: str
    fold: int  # the row's fold in the training statistics; -1: the row is in none
    variant: int = 0  # a second rationale for the same row and label has another number


def make_annotator(name: str, settings: dict, specs: dict, cache: Path) -> Any:
    """The annotator a data config names. `cache` is a file in which it may keep what it paid for."""
    match name:
        case "cue":
            from rllr.data.annotators.cue import CueAnnotator

            return CueAnnotator(specs, **settings)
        case "endpoint":
            from rllr.data.annotators.endpoint import EndpointAnnotator

            return EndpointAnnotator(specs, {"cache": str(cache), **settings})
        case "file":
            from rllr.data.annotators.file import FileAnnotator

            return FileAnnotator(specs, **settings)
    raise AssertionError(name)
