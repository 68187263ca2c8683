"""Answers to texts of a user's own, as they come."""

import json
import queue
import re
import sys
import threading
from collections.abc import Iterator
from itertools import chain, repeat

from rllr.cli import UserError
from rllr.files import writable
from rllr.predict.confidence import certainty
from rllr.predict.predictor import Predictor
from rllr.tasks import Task, read_label

AHEAD = 8  # batches answered together at most: rows of one length stand together among so many


class Texts:
    """Answers to texts, in their order.

    Args:
        instruction: put before each text.
        temperature: of the label probabilities.
        abstain_below: an answer less probable than this has no label; 0: every answer has its own.
    """

    def __init__(
        self, predictor: Predictor, task: Task, instruction: str, temperature: float = 1.0, abstain_below: float = 0.0
    ) -> None:
        self.predictor, self.task, self.instruction = predictor, task, instruction
        self.temperature, self.abstain_below = temperature, abstain_below
        self.seen = 0

    def answer(self, texts: list[dict]) -> list[dict]:
        """For each text (`text`, for a task of two `text2`, and whatever else): the same with task, label, how sure
        it is, rationale and answer; `error` in their place where the prompt cannot be made.
        """
        places, rows, prompts = [], [], []
        found: list[dict] = [{} for _ in texts]
        for i, given in enumerate(texts):
            row = {"id": str(self.seen + i), "task": self.task.name, "instruction": self.instruction}
            row["input"] = self.task.input.format(text=given["text"], text2=given.get("text2", ""))
            try:
                prompts.append(self.predictor.prompt(row))
                places.append(i)
                rows.append(row)
            except UserError as error:
                found[i] = {**given, "error": str(error)}
        self.seen += len(texts)
        for indices, answers in self.predictor.answers(rows, prompts):
            for k, answer in zip(indices, answers, strict=True):
                found[places[k]] = {**texts[places[k]], **self._line(answer)}
        return found

    def _line(self, answer: dict) -> dict:
        text, task = answer["answer"], self.task
        label, sure = read_label(text, task), certainty(answer, task, self.temperature)
        line = {"task": task.name, "label": label, **sure}
        shares = sure.get("probabilities") or sure.get("votes") or {}
        if self.abstain_below and label is not None and shares.get(label, 0.0) < self.abstain_below:
            line["label"] = None
            line["abstained"] = label
        return {**line, "rationale": re.sub(task.answer, "", text).strip(), "answer": text}

    def stream(self, lines: Iterator[bytes], size: int) -> Iterator[dict]:
        """`answer` of each line, as batches finish; a line that holds no text gives an object with `error`.

        As many lines as are there, up to AHEAD x `size`, are answered together, so that a line that stands alone does
        not wait for others.
        """
        waiting: queue.Queue = queue.Queue(2 * AHEAD * size)

        def read() -> None:
            for line in chain(lines, repeat(None, 1)):
                waiting.put(line)

        threading.Thread(target=read, daemon=True).start()
        ended = False
        while not ended:
            taken = [waiting.get()]
            while len(taken) < AHEAD * size and taken[-1] is not None:
                try:
                    taken.append(waiting.get_nowait())
                except queue.Empty:
                    break
            ended = taken[-1] is None
            given = [parse(line, self.task) for line in taken if line is not None and line.strip()]
            good = iter(self.answer([text for text in given if "error" not in text]))
            yield from (text if "error" in text else next(good) for text in given)


def parse(line: bytes, task: Task) -> dict:
    """A line's `text`, and where the task takes two `text2`: the line itself, with a tab between two texts, or a JSON
    object. `error`, with the line in `line`, where it is neither. (Empty lines are passed over.)
    """
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeError as error:
        return {"error": f"not UTF-8 ({error})", "line": line.decode(errors="replace").rstrip("\r\n")}
    two = "{text2}" in task.input
    if text.lstrip("\ufeff \t").startswith("{"):
        try:
            given = json.loads(text.lstrip("\ufeff"))
        except ValueError as error:
            return {"error": f"not JSON ({error}); a text that begins with a brace has to be in JSON", "line": text}
        for field in ("text", "text2")[: 1 + two]:
            if not isinstance(given.get(field), str) or not given[field].strip():
                return {"error": f"field {field}: expected a text, found {given.get(field)!r:.80}", "line": text}
        if not writable(given):
            return {"error": "half of a surrogate pair; expected Unicode text", "line": text}
        if not two and "text2" in given:
            return {"error": f"task {task.name} takes one text", "line": text}
        return {key: value for key, value in given.items() if key != "error"}
    if not two:
        return {"text": text}
    first, _, second = text.partition("\t")
    if not (first.strip() and second.strip()):
        told = f"task {task.name} takes two texts, with a tab between them or as JSON; found {text!r:.80}"
        return {"error": told, "line": text}
    return {"text": first, "text2": second}


def told(line: dict) -> str:
    """An answer for people."""
    sure = line.get("probabilities") or line.get("votes") or {}
    label = line["label"] or line.get("abstained")
    share = f" ({sure[label]:.0%})" if label in sure else ""
    shown = f"{line['label'] or '(none could be read)'}{share}"
    if "abstained" in line:
        shown = f"(none: {line['abstained']} is too unsure{share})"
    return f"{line['rationale']}\nLabel: {shown}\n"


def answer_lines(texts: Texts, as_json: bool) -> int:
    """Answer standard input, a text a line; returns the number of lines with an error.

    Raises:
        UserError: a line has an error, and answers are written for people.
    """
    bad = 0
    for line in texts.stream(iter(sys.stdin.buffer), texts.predictor.config.batch_size):
        if "error" in line and not as_json:
            raise UserError(f"standard input: {line['error']}")
        bad += "error" in line
        print(json.dumps(line, ensure_ascii=False) if as_json else told(line), flush=True)
    return bad
