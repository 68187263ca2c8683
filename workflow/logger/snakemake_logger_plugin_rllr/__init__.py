"""A short account of a run: one line a stage, one of progress. Snakemake's logger plugin interface, found by its name.

    PYTHONPATH=workflow/logger snakemake --logger rllr --cores all results/tiny/rllr_mix/metrics.json

Snakemake's own account is in `.snakemake/log/`, what jobs say in their logs, where this looks for progress bars and
the last line of train_log.jsonl. An error is told in its own line, with the log's path.
"""

import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

HIDDEN = {"resolved", "all"}  # rules that are no stage
START = Path.cwd()  # the folder of the command, which Snakemake may leave for another (--directory)
SHELL_OUTPUT = START / ".snakemake/log/jobs.log"  # all that jobs print
# A failed job, told in a line of ours; Snakemake says it thrice more.
TOLD = ("CalledProcessError", "Exiting because a job execution failed", "At least one job did not complete")
SECONDS = {True: 1, False: 60}  # between two looks, on a terminal or in a file

# `sft:  90%|█████ | 54/60 [04:26<00:27,  4.50s/it, ...]`, as tqdm writes it
BAR = re.compile(
    r"(?:^|[\r\n])([^\r\n|]*?):? +\d+%\|[^|]*\| *([\d.]+[kM]?)/([\d.]+[kM]?) \[[\d:]+<([\d:?]+), +([\d.?]+)(\S*)"
)
# What a stage says of the rows that it trains on: `...: 320 sequences, 19456 tokens, ...`, two for a pair.
READ = re.compile(r": (\d+) sequences, (\d+) tokens")
# Keys of train_log.jsonl, and how they are shown.
NUMBERS = {
    "loss": "loss", "reward": "reward", "pair_accuracy": "accuracy", "label_accuracy": "accuracy",
    "samples_per_second": "samples/s", "length": "length",
}  # fmt: skip
SPEEDS = ("samples/s", "tokens/s")


def from_start(path: Path) -> str:
    """A path as one opens it where the command was given."""
    full = path.absolute()
    return str(full.relative_to(START) if full.is_relative_to(START) else full)


@dataclass
class Job:
    """A stage at work."""

    number: int
    message: str
    logs: list[Path]
    began: float = field(default_factory=time.time)

    def tail(self, size: int = 8192) -> str:
        """The end of its log."""
        for path in self.logs:
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                    return file.read().decode("utf-8", "replace")
            except OSError:
                continue
        return ""

    def tokens(self, length: float | None) -> float | None:
        """Tokens of a training row, all of a pair's; under RL of a prompt and its response of `length` tokens."""
        with open(self.logs[0], "rb") as file:
            told = file.read(65536).decode("utf-8", "replace")
        read, rows = READ.search(told), re.search(r"; (\d+) rows x ", told)
        if not read or not (rows or length):
            return None
        sequences, tokens = map(int, read.groups())
        return tokens / sequences + length if length else tokens / int(rows[1])  # type: ignore[index]

    def numbers(self) -> dict[str, float]:
        """What the last line of the training log says."""
        path = self.logs[0].parent.parent / "train_log.jsonl" if self.logs else Path()
        if not self.logs or self.logs[0].name != "train.log" or not path.is_file() or path.stat().st_mtime < self.began:
            return {}
        found: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines()[-2:]:  # the trainer's last line has totals alone
            values = json.loads(line)
            found |= {shown: values[key] for key, shown in NUMBERS.items() if values.get(key) is not None}
        if "reward" in found:  # under PPO the loss says little
            del found["loss"]
        return found

    def batch_size(self) -> int:
        """Samples in a training step."""
        config = self.logs[0].parent.parent / "config.yaml"
        found = (
            re.search(r"^batch_size: (\d+)$", config.read_text(encoding="utf-8"), re.M) if config.is_file() else None
        )
        return int(found[1]) if found else 1

    def progress(self) -> str:
        """Steps, time left, numbers; empty before there are any."""
        bars = [bar for bar in BAR.findall(self.tail()) if bar[0] != "Loading weights"]
        if not bars:
            return ""
        what, done, total, left, rate, unit = bars[-1]
        numbers = self.numbers()
        trains = bool(numbers)
        if "samples/s" not in numbers and re.fullmatch(r"[\d.]+", rate) and float(rate):
            steps = float(rate) if unit.startswith("it/s") else 1 / float(rate)
            numbers["samples/s"] = steps * (self.batch_size() if trains else 1)
        tokens = self.tokens(numbers.get("length")) if trains and "samples/s" in numbers else None
        if tokens:
            numbers["tokens/s"] = round(tokens * numbers["samples/s"])
        parts = [f"{what + ' ' if what and not trains else ''}{done}/{total}"]
        parts += [f"{left} left"] if "?" not in left else []
        return ", ".join([*parts, *shown(numbers)])

    def outcome(self) -> str:
        minutes, seconds = divmod(round(time.time() - self.began), 60)
        return ", ".join([f"{minutes}:{seconds:02d}", *shown(self.numbers())])

    def error(self) -> str:
        """The line that says what went wrong: the program's own, else an exception's."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.tail())]
        told = [line for line in lines if line.startswith("error: ") or re.match(r"[\w.]+(Error|Exception)\b", line)]
        return told[-1].removeprefix("error: ") if told else "ended without a message of its own (killed?)"


def shown(numbers: dict[str, float]) -> list[str]:
    told = {name: value for name, value in numbers.items() if name != "length"}  # a part of the speed
    return [f"{value:.3g} {name}" if name in SPEEDS else f"{name} {value:.3g}" for name, value in told.items()]


class LogHandler(LogHandlerBase):
    """Snakemake's events as lines; file descriptors 1 and 2, which jobs inherit, lead into a file meanwhile."""

    writes_to_stream, writes_to_file, has_filter, has_formatter, needs_rulegraph = True, False, True, True, False

    def __post_init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.begun = self.total = 0
        self.kept = [os.dup(1), os.dup(2)]
        self.python = sys.stdout, sys.stderr
        self.terminal = open(os.dup(2), "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.live = self.terminal.isatty()
        SHELL_OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        with open(SHELL_OUTPUT, "wb") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        # Snakemake's own prints and tracebacks still reach the user.
        sys.stdout, sys.stderr = open(os.dup(self.kept[0]), "w", buffering=1), self.terminal  # noqa: SIM115
        self.over = threading.Event()
        self.follower = threading.Thread(target=self.follow, daemon=True)
        self.follower.start()

    def emit(self, record: logging.LogRecord) -> None:
        values = record.__dict__
        match values.get("event"):
            case LogEvent.RUN_INFO:
                counts = values["stats"]
                self.total = sum(n for rule, n in counts.items() if rule not in HIDDEN and rule != "total")
            case LogEvent.JOB_INFO if values["rule_name"] not in HIDDEN:
                self.begun += 1
                logs = [Path(log) for log in values["log"]]
                message = values["rule_msg"] or values["rule_name"]
                self.jobs[values["jobid"]] = job = Job(self.begun, message, logs)
                if not self.live:
                    self.line(self.head(job))
            case LogEvent.JOB_FINISHED if values["job_id"] in self.jobs:
                job = self.jobs.pop(values["job_id"])
                self.line(f"{self.head(job)}: {job.outcome()}")
            case LogEvent.JOB_ERROR:
                job = Job(0, values["rule_name"], [Path(log) for log in values["log"]])
                job = self.jobs.pop(values["jobid"], job)
                self.line(f"failed: {job.message}: {job.error()}")
                self.line(f"  its log: {', '.join(map(from_start, job.logs)) or SHELL_OUTPUT}")
            case LogEvent.ERROR | None if record.levelno >= logging.ERROR:
                text = record.getMessage()
                if not any(known in text for known in TOLD):
                    self.line(text)
            case None if record.getMessage().startswith("Nothing to be done"):
                self.line(record.getMessage())

    def head(self, job: Job) -> str:
        return f"[{job.number}/{max(self.total, job.number)}] {job.message}"

    def line(self, text: str) -> None:
        self.terminal.write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")

    def follow(self) -> None:
        """Progress of the stages at work: on a terminal the last line, written over; in a file a line a minute."""
        while not self.over.wait(SECONDS[self.live]):
            found = [f"{self.head(job)}: {job.progress() or '...'}" for job in list(self.jobs.values())]
            if self.live:
                width = shutil.get_terminal_size().columns - 1
                self.terminal.write(f"\r\x1b[K{' | '.join(found)[:width]}")
                self.terminal.flush()
            else:
                for text in found:
                    self.line(text)

    def close(self) -> None:
        if not self.over.is_set():
            self.over.set()
            self.follower.join()
            if self.live:
                self.terminal.write("\r\x1b[K")
            for descriptor, kept in zip((1, 2), self.kept, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)
            sys.stdout, sys.stderr = self.python
        super().close()
