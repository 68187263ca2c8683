"""The published files: alpaca rows (instruction, input, output) of a JSON list or JSON lines, checked and completed.

The config says which task a row belongs to (`match` on the instruction) and how to read its label (`answer`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rllr.cli import UserError, log
from rllr.data.build import hash64, normalise
from rllr.data.catalogue import FILES
from rllr.data.counts import count_row
from rllr.data.mixing import mix
from rllr.data.sources import MAX_CHARS
from rllr.data.spec import DataConfig
from rllr.files import read_json, read_jsonl, writable
from rllr.rows import is_pair
from rllr.tasks import Task, read_label

PAIRS = {file for file, fields in FILES.items() if "output" in fields and "pairs" in file} | {
    "rlhf_reward_train",
    "rllr_reward_train",
}
LABEL_SENSITIVE = {file for file, fields in FILES.items() if "rejected_label" in fields}
TRAINING = ("rllr_reward_train", "sft_with_rat_train", "sft_train", "rlhf_reward_train", "unsupervised")


def read_release(file: str, path: str, config: DataConfig, counts: Counter) -> Iterator[dict]:
    """The rows of one published file with `id`, `task`, `label` (and `rejected_label`) added.

    Raises:
        UserError: naming file, row and field.
    """
    patterns = [(task, config.match.get(name)) for name, task in config.tasks.items()]
    found = False
    for where, number, raw in _alpaca(path):
        found = True
        for field in ("instruction", "input"):
            value = raw.get(field, "" if field == "input" else None)
            if not isinstance(value, str) or len(value) > MAX_CHARS:
                what = "nothing" if value is None else f"{len(str(value))} characters of {type(value).__name__}"
                raise UserError(f"{where}: field {field}: found {what}, expected a text of at most {MAX_CHARS}")
        if not writable(raw):
            raise UserError(f"{where}: found half of a surrogate pair, expected Unicode text")
        task = next((task for task, match in patterns if not match or re.search(match, raw["instruction"])), None)
        if task is None:
            raise UserError(f"{where}: field instruction: no task's match fits {raw['instruction']!r:.80}")
        row = {
            "id": f"{file}-{number}",
            "task": task.name,
            "instruction": raw["instruction"],
            "input": raw.get("input", ""),
        }
        if not (row["instruction"].strip() or row["input"].strip()):
            raise UserError(f"{where}: field instruction: empty, and input too")
        row |= _responses(file, raw.get("output"), task, where, counts)
        if history := raw.get("history"):
            if not (isinstance(history, list) and all(map(is_pair, history))):
                raise UserError(f"{where}: field history: expected a list of [query, answer]")
            row["history"] = history
        yield row
    if not found:
        raise UserError(f"{path}: no rows, expected at least one")


def _alpaca(path: str) -> Iterator[tuple[str, int, dict]]:
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if start == b"[":
        for number, row in enumerate(read_json(path), 1):
            if not isinstance(row, dict):
                raise UserError(f"{path} row {number}: found {type(row).__name__}, expected a JSON object")
            yield f"{path} row {number}", number, row
    else:
        for number, row in read_jsonl(path):
            yield f"{path} line {number}", number, row


def _responses(file: str, output: Any, task: Task, where: str, counts: Counter) -> dict:
    """`output`, `label` and `rejected_label` as the file's kind has them."""
    if file in ("unsupervised", "test"):
        label = read_label(output, task) if isinstance(output, str) else None
        if label is None and file == "test":
            raise UserError(f"{where}: field output: no label of task {task.name} can be read from {output!r:.80}")
        return {"label": label} if label is not None else {}
    if file not in PAIRS:
        if not isinstance(output, str):
            raise UserError(f"{where}: field output: found {type(output).__name__}, expected a response text")
        sides = [output]
    elif not is_pair(output):
        raise UserError(f"{where}: field output: found {output!r:.80}, expected [chosen, rejected]")
    else:
        sides = output
    labels = [read_label(side, task) for side in sides]
    if None in labels:
        side = ("chosen", "rejected")[labels.index(None)] if len(sides) == 2 else "response"
        raise UserError(
            f"{where}: field output: no label of task {task.name} can be read from the {side} "
            f"{sides[labels.index(None)]!r:.80}"
        )
    result = {"output": output, "label": labels[0]}
    if file in LABEL_SENSITIVE:
        if labels[0] == labels[1]:
            raise UserError(f"{where}: field output: both sides say {labels[0]!r}, expected two different labels")
        return result | {"rejected_label": labels[1]}
    if len(labels) == 2 and labels[0] != labels[1]:  # published data has them
        counts["dropped", task.name, f"{file}: pairs whose sides carry different labels, kept"] += 1
    return result


def build_release(config: DataConfig, folder: Path) -> dict[str, Any]:
    """Write every file of FILES into `folder`; those that the release lacks stay empty.

    Training rows whose prompt stands in a test file are removed, and so are the prompts drawn for validation.

    Returns:
        what the report needs.
    """
    assert config.release is not None
    paths = config.release["files"]
    counts: Counter[tuple] = Counter()
    # 1. Check everything, keep the hash of each prompt.
    keys = {
        file: np.array([_key(row) for row in read_release(file, path, config, counts)], np.uint64)
        for file, path in paths.items()
    }
    tests = [keys[file] for file in keys if file not in TRAINING]
    test = np.unique(np.concatenate(tests)) if tests else np.array([], np.uint64)
    source = next((file for file in TRAINING[:-1] if file in keys), None)
    validation = np.array([], np.uint64)
    if source:
        prompts = np.setdiff1d(keys[source], test)
        order = np.argsort(mix(prompts, config.seed + 1), kind="stable")
        validation = prompts[order][: config.release.get("validation", 100)]
    held_out, drawn = set(test.tolist()), set(validation.tolist())

    # 2. Write. The counts of the first reading are the complete ones.
    with ExitStack() as stack:
        files = {file: stack.enter_context(open(folder / f"{file}.jsonl", "w", encoding="utf-8")) for file in FILES}

        def emit(file: str, row: dict) -> None:
            files[file].write(json.dumps(row, ensure_ascii=False) + "\n")
            count_row(counts, file, row["task"], row, len(row["input"].split()))

        for file, path in paths.items():
            seen, validated = set(), set()
            for row in read_release(file, path, config, Counter()):
                key = _key(row)
                if file in PAIRS and row["output"][0] == row["output"][1]:
                    counts["dropped", row["task"], f"{file}: pairs of one text, removed"] += 1
                    continue
                if file not in TRAINING:
                    emit(file, row)
                    continue
                whole = hash64(json.dumps([row["task"], key, row.get("output")]))
                if whole in seen:
                    counts["dropped", row["task"], f"{file}: duplicates, removed"] += 1
                    continue
                seen.add(whole)
                if key in held_out:
                    counts["dropped", row["task"], f"{file}: prompts that stand in a test file, removed"] += 1
                elif key in drawn:
                    if file == source and key not in validated:
                        validated.add(key)
                        emit("validation", {k: v for k, v in row.items() if k not in ("output", "rejected_label")})
                    if file == "rllr_reward_train":
                        emit("label_sensitive_pairs_for_validation", row)
                else:
                    emit(file, row)
    if missing := [file for file in FILES if file not in paths and "validation" not in file]:
        log(f"not in this release, left empty: {', '.join(missing)}")
    sets = {file: set(file_keys.tolist()) for file, file_keys in keys.items()}
    return {
        "counts": counts,
        "sources": {task: {} for task in config.tasks},
        "asked": {},
        "shared": {a: {b: len(sets[a] & sets[b]) for b in sets} for a in sets},
        "annotator": {"name": "none: the release has its own rationales"},
    }


def _key(row: dict) -> int:
    """What says that two rows are about the same text: files word their instructions differently."""
    return hash64(normalise(row["input"]) or normalise(row["instruction"]))
