"""Answers to texts of a user's own."""

import json
import re
import sys

from rllr.cli import UserError
from rllr.predict.model_file import PredictConfig
from rllr.tasks import Task, read_label


def predict_texts(
    config: PredictConfig, paths: dict, task: Task, instruction: str, texts: list[dict[str, str]], as_json: bool
) -> None:
    """Print an answer to each text, in their order.

    Args:
        texts: `text`, and `text2` for a task of two texts.
    """
    from transformers.utils import logging

    from rllr.predict.predictor import Predictor

    logging.disable_progress_bar()
    shared = {"task": task.name, "instruction": instruction}
    rows = [{"id": str(i), **shared, "input": task.input.format(**given)} for i, given in enumerate(texts)]
    answers = {}
    for indices, found in Predictor(config, paths["base"], paths["adapter"], paths["reward"]).answers(rows):
        answers.update(zip(indices, found, strict=True))
    for i, given in enumerate(texts):
        label = read_label(answers[i], task)
        rationale = re.sub(task.answer, "", answers[i]).strip()
        if as_json:
            line = {"task": task.name, "label": label, "rationale": rationale, "answer": answers[i]}
            print(json.dumps({**given, **line}, ensure_ascii=False))
        else:
            print(f"{rationale}\nLabel: {label or '(none could be read)'}\n")


def split(line: str, task: Task) -> dict[str, str]:
    """`text`, and where the task takes two `text2`, which a tab separates from it."""
    if "{text2}" not in task.input:
        return {"text": line}
    text, tab, second = line.partition("\t")
    if not tab:
        raise UserError(f"task {task.name} takes two texts, with a tab between them; found {line!r:.80}")
    return {"text": text, "text2": second}


def read_texts(task: Task) -> list[dict[str, str]]:
    """The texts on standard input, one a line.

    Raises:
        UserError: it is not UTF-8, or a line has no second text where the task takes two.
    """
    try:
        lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        "".join(lines).encode()  # in the C locale other bytes come as surrogates, without an error
    except UnicodeError as error:
        raise UserError(f"standard input: not UTF-8 ({error})") from None
    return [split(line, task) for line in lines]
