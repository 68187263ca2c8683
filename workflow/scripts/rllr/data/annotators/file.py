"""Rationales that the user already has."""

from collections import defaultdict

from rllr.cli import UserError
from rllr.data.annotators import Ask
from rllr.data.spec import TaskSpec
from rllr.files import read_jsonl, writable


class FileAnnotator:
    """Looks rationales up in JSON lines `{id, label, rationale}`; ids are those of the data files.

    Raises:
        UserError: a line lacks a field. Rationales that nobody has are dropped and counted by the builder.
    """

    learns = False
    parallel = True

    def __init__(self, specs: dict[str, TaskSpec], path: str) -> None:
        self.path = path
        self.rationales: dict[tuple[str, str], list[str]] = defaultdict(list)
        for number, row in read_jsonl(path):
            for field in ("id", "label", "rationale"):
                if not isinstance(row.get(field), str) or not row[field].strip():
                    raise UserError(f"{path} line {number}: field {field}: found {row.get(field)!r:.80}, expected text")
            if not writable(row):
                raise UserError(f"{path} line {number}: found half of a surrogate pair, expected Unicode text")
            self.rationales[row["id"], row["label"]].append(row["rationale"].strip())
        if not self.rationales:
            raise UserError(f"{path}: no rows, expected at least one")
        self.rationales.default_factory = None

    def write(self, asks: list[Ask]) -> list[str | None]:
        found = (self.rationales.get((ask.id, ask.label), []) for ask in asks)
        return [
            texts[ask.variant] if ask.variant < len(texts) else None for ask, texts in zip(asks, found, strict=True)
        ]

    def summary(self) -> dict:
        return {"path": self.path, "rationales": sum(map(len, self.rationales.values()))}
