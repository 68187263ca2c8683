"""Raw rows to data files, streamed: two passes over a spool on disk, with only hashes and counts in memory.

1. Read every source once, check each row, write it to the spool and keep its hashes.
2. Plan on the hashes: duplicates, test sets, which row goes into which file (plan.py).
3. Count the training rows for an annotator that learns from them.
4. Write rationales and files, chunk by chunk in random order.

Chunks have a fixed size and come back in order, so files do not depend on the number of worker processes.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rllr.cli import UserError, log
from rllr.data.annotators import Ask, make_annotator
from rllr.data.catalogue import FILES
from rllr.data.counts import count_row
from rllr.data.mixing import mix
from rllr.data.plan import USES, Plan, Rows, make_plan, overlaps
from rllr.data.rejected import corrupt, read_confusion, score_weights, usable, wrong_labels
from rllr.data.sources import read_rows
from rllr.data.spec import DataConfig
from rllr.tasks import respond

CHUNK = 2000  # rows a worker takes at a time; part of the result (never derived from the number of workers)

encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder at every call


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def normalise(text: str) -> str:
    """The text as duplicates are compared: case, punctuation, spacing and Unicode forms do not count."""
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(re.findall(r"\w+", text)) or text  # emoticons and the like count as they are


def spool_rows(config: DataConfig, packages: Path, spool: Any) -> tuple[Rows, dict[str, Counter], dict[str, Counter]]:
    """Read and check every source; write `[where, id, text, text2, label]` lines to the binary file `spool`.

    Returns:
        the arrays of the rows kept, task -> what was dropped -> rows, and task -> label -> training rows.
    """
    columns = {name: array(code) for name, code in zip(Rows.__annotations__, "BBiQQQq", strict=True)}
    identity = array("Q")
    dropped: dict[str, Counter] = {}
    occurring: dict[str, Counter] = {}
    for number, (name, spec) in enumerate(config.specs.items()):
        dropped[name], occurring[name] = Counter(), Counter()
        classes = {label: i for i, label in enumerate(spec.claims or spec.task.labels)}
        for split, source in spec.sources.items():
            prefix = f"{name}-" if split == "train" else f"{name}-test-"
            ordinal = 0
            for row in read_rows(spec, source, config.packages, packages):
                ordinal += 1
                if not row.text or (spec.pair and not row.text2):
                    dropped[name][f"{split} rows with an empty text, removed"] += 1
                    continue
                if row.label is None:
                    dropped[name][f"{split} rows with no label of the task, removed"] += 1
                    continue
                row_id = prefix + (row.id or str(ordinal))
                if split == "train":
                    occurring[name][row.label] += 1
                texts = [normalise(row.text), normalise(row.text2)] if spec.pair else [normalise(row.text)]
                key = hash64("\n".join(texts))
                columns["content"].append(hash64("\n".join(sorted(texts))) if spec.pair else key)
                columns["task"].append(number)
                columns["split"].append(split == "test")
                columns["label"].append(classes.get(spec.label_class(row.label), 0))
                columns["exact"].append(hash64(f"{row.text}\n{row.text2}"))
                columns["key"].append(key)
                columns["offset"].append(spool.tell())
                identity.append(hash64(row_id))
                spool.write(encode([row.where, row_id, row.text, row.text2, row.label]).encode() + b"\n")
    columns["offset"].append(spool.tell())
    spool.flush()
    rows = Rows(**{name: np.array(values) for name, values in columns.items()})
    _check_ids(np.array(identity), rows, spool.name, config)
    return rows, dropped, occurring


def _check_ids(identity: np.ndarray, rows: Rows, spool: str, config: DataConfig) -> None:
    """Two rows with one id cannot be told apart in predictions."""
    order = np.argsort(identity, kind="stable")
    again = order[1:][identity[order][1:] == identity[order][:-1]]
    if not len(again):
        return
    second = again.min()
    first = np.flatnonzero(identity == identity[second])[0]
    with open(spool, "rb") as file:
        where, earlier = (
            json.loads(os.pread(file.fileno(), rows.offset[i + 1] - rows.offset[i], rows.offset[i]))[0]
            for i in (second, first)
        )
    source = list(config.specs.values())[rows.task[second]].sources["test" if rows.split[second] else "train"]
    raise UserError(f"{where}: field {source.get('id', 'id')}: the same id as {earlier}, expected a unique one")


@lru_cache(maxsize=1024)
def uses_of(bits: int) -> frozenset[str]:
    return frozenset(use for use, bit in USES.items() if bits & bit)


# The uses whose rows become pairs -> their files.
LABEL_PAIRS = {
    "label_pairs": "rllr_reward_train",
    "test_label_pairs": "label_sensitive_pairs_for_test",
    "validation_label_pairs": "label_sensitive_pairs_for_validation",
}
RATIONALE_PAIRS = {
    "rationale_pairs": "rlhf_reward_train",
    "test_rationale_pairs": "rationale_sensitive_pairs_for_test",
}


@dataclass
class Written:
    """A row and what was written for it.

    Attributes:
        number: its place in Rows. wanted: slot -> what was asked for, from `_wanted`. got: slot -> rationale.
        good: slot -> response, of the usable ones. judged: (better, worse) rationale, where a judge was asked.
        donor: another row of its label, whose rationale or words a worse one may take.
    """

    number: int
    ask: Ask
    wanted: dict[str, Ask]
    got: dict[str, str | None]
    good: dict[str, str]
    judged: tuple[str, str] | None
    donor: Ask | None

    @property
    def gold(self) -> str | None:
        """The response with the row's own label."""
        return self.good.get("gold")


class Builder:
    """What the workers share: config, plan, spool and annotator. Forked, not sent."""

    def __init__(self, config: DataConfig, rows: Rows, plan: Plan, spool: str, annotator: Any, occurring: dict) -> None:
        self.config, self.rows, self.plan, self.spool, self.annotator = config, rows, plan, spool, annotator
        self.weights = {
            name: score_weights(spec, occurring[name], config.label_pairs["min_distance"])
            if spec.task.kind == "score"
            else {}
            for name, spec in config.specs.items()
        }
        self.names = list(config.specs)
        path = config.label_pairs["confusion"]
        self.confusion = read_confusion(path, config.tasks) if path else {}
        self.folds = getattr(annotator, "folds", 1)

    def read(self, chunk: np.ndarray) -> list[tuple[int, Ask]]:
        """(row number, the Ask for its own label) of each row."""
        rows, counted = self.rows, self.plan.uses[chunk] & USES["statistics"] > 0
        columns = (chunk, rows.task[chunk], counted, rows.offset[chunk], rows.offset[chunk + 1])
        result = []
        with open(self.spool, "rb") as file:
            for i, task, seen, start, end in zip(*(column.tolist() for column in columns), strict=True):
                _, row_id, text, text2, label = json.loads(os.pread(file.fileno(), end - start, start))
                # By the first text: pairs that share it (a premise, once a label) tell of each other.
                fold = hash64(normalise(text)) % self.folds if seen else -1
                result.append((i, Ask(self.names[task], row_id, text, text2, label, fold)))
        return result

    def count(self, chunk: np.ndarray) -> Any:
        return self.annotator.count(ask for _, ask in self.read(chunk))

    def write(self, chunk: np.ndarray) -> tuple[dict[str, bytes], Counter]:
        """The chunk's lines of every file, and what the report counts."""
        rows = self.read(chunk)
        donors = self._donors(rows)
        asks: list[Ask] = []
        plans: list[tuple] = []
        for i, ask in rows:
            uses = uses_of(int(self.plan.uses[i]))
            wanted = self._wanted(i, ask, uses, donors.get(i))
            plans.append((i, ask, uses, wanted))
            asks.extend(wanted.values())
        rationales = self.annotator.write(asks)
        judged = self._judge(plans, asks, rationales)
        lines: dict[str, list[str]] = {file: [] for file in FILES}
        counts: Counter = Counter()
        given = iter(rationales)
        for i, ask, uses, wanted in plans:
            got = {slot: next(given) for slot in wanted}
            row = Written(i, ask, wanted, got, {}, judged.get(i), donors.get(i))
            self._check(row, counts)
            self._emit(row, uses, self._emitter(ask, lines, counts), counts)
        return {file: "".join(text).encode() for file, text in lines.items()}, counts

    def _donors(self, rows: list[tuple[int, Ask]]) -> dict[int, Ask]:
        if self.config.rationale_pairs["by"] == "judge":
            return {}
        bits = USES["rationale_pairs"] | USES["test_rationale_pairs"]
        pairs = [
            (i, self.plan.donor[i])
            for i, _ in rows
            if self.plan.uses[i] & bits and self.plan.donor[i] >= 0 and self._corruptions(i)[0] != "contentless"
        ]
        asks = self.read(np.array([donor for _, donor in pairs], dtype=np.int64))
        return {i: ask for (i, _), (_, ask) in zip(pairs, asks, strict=True)}

    def _wanted(self, i: int, ask: Ask, uses: frozenset[str], donor: Ask | None) -> dict[str, Ask]:
        """slot -> ask: `gold`, `wrong 0`.., `other` (second rationale for gold) or `donor`."""
        wanted = {}
        if uses & {"sft", "label_pairs", "rationale_pairs", "test_label_pairs", "test_rationale_pairs"} or (
            "validation_label_pairs" in uses
        ):
            wanted["gold"] = ask
        if uses & {"label_pairs", "test_label_pairs", "validation_label_pairs"}:
            spec, settings = self.config.specs[ask.task], self.config.label_pairs
            row_hash = int(self.plan.rank[i])
            labels = wrong_labels(
                spec, ask.label, row_hash, settings["wrong"], settings["min_distance"], self.confusion,
                self.weights[ask.task],
            )  # fmt: skip
            wanted |= {f"wrong {n}": ask._replace(label=label) for n, label in enumerate(labels)}
        if uses & {"rationale_pairs", "test_rationale_pairs"}:
            if self.config.rationale_pairs["by"] == "judge":
                wanted["other"] = ask._replace(variant=1)
            elif donor is not None and self._corruptions(i)[0] == "other_row":
                wanted["donor"] = donor
        return wanted

    def _corruptions(self, i: int) -> list[str]:
        """The corruptions to try on a row: the drawn one first, the others if that is not possible."""
        known = self.config.rationale_pairs["corruptions"]
        start = mix(int(self.plan.rank[i]), 7) % len(known)
        return known[start:] + known[:start]

    def _judge(self, plans: list, asks: list[Ask], rationales: list[str | None]) -> dict[int, tuple[str, str] | None]:
        """row number -> (better, worse) rationale where the config asks for a judge."""
        if self.config.rationale_pairs["by"] != "judge":
            return {}
        given, cases = iter(rationales), []
        for i, ask, _, wanted in plans:
            got = {slot: next(given) for slot in wanted}
            if got.get("gold") and got.get("other"):
                cases.append((i, ask, got["gold"], got["other"]))
        verdicts = self.annotator.judge([(ask, first, second) for _, ask, first, second in cases])
        pairs = {0: lambda a, b: (a, b), 1: lambda a, b: (b, a), None: lambda a, b: None}
        return {i: pairs[v](a, b) for (i, _, a, b), v in zip(cases, verdicts, strict=True)}

    def _check(self, row: "Written", counts: Counter) -> None:
        """Keep the responses from which exactly their label is read."""
        task = self.config.specs[row.ask.task].task
        for slot, rationale in row.got.items():
            if usable(rationale, row.wanted[slot].label, task):
                row.good[slot] = respond(rationale, row.wanted[slot].label)
            else:
                counts["dropped", task.name, "rationales missing or unusable"] += 1

    def _emitter(self, ask: Ask, lines: dict[str, list[str]], counts: Counter) -> Callable[[str, dict], None]:
        """What appends a line of a file: the row's prompt and the fields given."""
        spec = self.config.specs[ask.task]
        prompt = {
            "id": ask.id,
            "task": ask.task,
            "instruction": spec.instruction,
            "input": spec.task.input.format(text=ask.text, text2=ask.text2),
        }
        start, n_words = encode(prompt)[:-1], len(prompt["input"].split())

        def emit(file: str, fields: dict) -> None:
            lines[file].append(f"{start}, {encode(fields)[1:]}\n")
            count_row(counts, file, ask.task, fields, n_words)

        return emit

    def _emit(self, row: "Written", uses: set[str], emit: Callable[[str, dict], None], counts: Counter) -> None:
        """A row's lines of every file that it is drawn for."""
        label, gold = row.ask.label, row.gold
        if "sft" in uses:
            emit("sft_train", {"output": respond(None, label), "label": label})
            if gold:
                emit("sft_with_rat_train", {"output": gold, "label": label})
        if uses & {"sft", "label_pairs"} and gold:
            emit("sft_with_rat_all", {"output": gold, "label": label})
        for use in ("unsupervised", "validation", "test"):
            if use in uses:
                emit(use, {"label": label})
        for use, file in LABEL_PAIRS.items():
            if use in uses:
                self._emit_label_pairs(row, file, emit, counts)
        for use, file in RATIONALE_PAIRS.items():
            if use in uses and gold:
                self._emit_rationale_pair(row, file, emit, counts)

    def _emit_label_pairs(self, row: "Written", file: str, emit: Callable, counts: Counter) -> None:
        """The gold response beside one for each wrong label."""
        task = row.ask.task
        if not any(slot.startswith("wrong") for slot in row.wanted):
            counts["dropped", task, "rows without a label min_distance away from their own"] += 1
        for slot, rejected in row.good.items() if row.gold else ():
            if slot.startswith("wrong") and row.got[slot] == row.got["gold"]:
                counts["dropped", task, "label-sensitive pairs with one rationale on both sides"] += 1
            elif slot.startswith("wrong"):
                fields = {"output": [row.gold, rejected], "label": row.ask.label}
                emit(file, fields | {"rejected_label": row.wanted[slot].label})

    def _emit_rationale_pair(self, row: "Written", file: str, emit: Callable, counts: Counter) -> None:
        """The gold response beside one for the same label with a worse rationale."""
        if self.config.rationale_pairs["by"] == "judge":
            how: str | None = "judge"
            pair = row.judged and [respond(text, row.ask.label) for text in row.judged]
        else:
            how, pair = self._corrupted(row)
        if pair:
            emit(file, {"output": pair, "label": row.ask.label})
            counts["rejected by", file, how] += 1
        else:
            counts["dropped", row.ask.task, "rationale-sensitive pairs without a worse rationale"] += 1

    def _corrupted(self, row: "Written") -> tuple[str | None, list[str] | None]:
        spec = self.config.specs[row.ask.task]
        for corruption in self._corruptions(row.number):
            cited = getattr(self.annotator, "cited", 2)
            worse = corrupt(corruption, spec, row.ask, row.donor, row.got.get("donor"), cited)
            if usable(worse, row.ask.label, spec.task) and (rejected := respond(worse, row.ask.label)) != row.gold:
                return corruption, [str(row.gold), rejected]
        return None, None


_builder: Builder  # of this process and, by fork, of its workers


def _count_chunk(chunk: np.ndarray) -> Any:
    return _builder.count(chunk)


def _write_chunk(chunk: np.ndarray) -> Any:
    return _builder.write(chunk)


@contextmanager
def _mapper(builder: Builder, workers: int) -> Iterator[Callable]:
    """`map` over chunks in order, in forked workers that share the builder's memory, or in this process."""
    global _builder
    _builder = builder
    if workers == 1:
        yield map
        return
    # A worker that is told to end before it has its own answer to that would answer as this process, and stay.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        started = multiprocessing.get_context("fork").Pool(workers, _start_worker)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with started as pool:
        yield pool.imap
        pool.close()
        pool.join()


def _start_worker() -> None:
    """Leave signals to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the pool stops its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _chunks(rows: np.ndarray) -> Iterable[np.ndarray]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def build(config: DataConfig, packages: Path, folder: Path, cache: Path, workers: int) -> dict[str, Any]:
    """Write every file of FILES into `folder`; an endpoint's answers go to `cache` unless the config names another.

    Returns:
        what the report needs.
    """
    name, settings = config.annotator
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".spool-")))
        with open(temporary / "rows", "wb") as spool:
            rows, dropped, occurring = spool_rows(config, packages, spool)
        log(f"{len(rows.task)} rows read and checked")
        wrong = config.label_pairs["wrong"]
        per_row = {
            task: min(wrong, len(spec.task.labels) - 1) if spec.task.kind == "label" else wrong
            for task, spec in config.specs.items()
        }
        plan = make_plan(config, rows, per_row)
        annotator = make_annotator(name, settings, config.specs, cache)
        workers = workers if annotator.parallel else 1
        builder = Builder(config, rows, plan, str(temporary / "rows"), annotator, occurring)
        if annotator.learns:
            counted = np.flatnonzero(plan.uses & USES["statistics"])
            with _mapper(builder, workers) as mapped:
                annotator.fit(mapped(_count_chunk, _chunks(counted)))
            log(f"statistics of {len(counted)} training rows, {annotator.folds} folds")
        drawn = np.flatnonzero(plan.uses & np.uint16(0xFFFF & ~USES["statistics"]))
        # Not by rank itself: the rows of a large task, drawn first, would stand first.
        drawn = drawn[np.argsort(mix(plan.rank[drawn], 1), kind="stable")]
        counts: Counter = Counter()
        files = {file: stack.enter_context(open(folder / f"{file}.jsonl", "wb")) for file in FILES}
        with _mapper(builder, workers) as mapped:
            for lines, found in mapped(_write_chunk, _chunks(drawn)):
                counts.update(found)
                for file, text in lines.items():
                    files[file].write(text)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return {
        "counts": counts,
        "sources": {task: {**dropped[task], **plan.hygiene[task]} for task in config.specs},
        "asked": plan.asked,
        "shared": overlaps(plan),
        "annotator": {"name": name, **annotator.summary()},
    }
