"""How sure a label is: its probability where the answer decides, or its share of sampled answers; calibration."""

import math
import re
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from rllr.lm import fitting, models
from rllr.lm.choices import continuation_logprobs
from rllr.lm.generation import Reading
from rllr.tasks import ANSWER, Task, read_label, respond, written

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rllr.lm.tokens import Encoder

FEWEST = 20  # validation rows of a task by which a temperature is fitted


def choices(task: Task) -> list[str]:
    """The labels that are weighed against each other; for a score about a hundred steps of its range, as written."""
    if task.kind != "score":
        return list(task.labels)
    digits = 2 - math.ceil(math.log10(task.high - task.low))
    step = 10.0**-digits
    count = math.floor((task.high - task.low) / step + 1e-9)
    return [written(round(task.low + i * step, max(0, digits))) for i in range(count + 1)]


def completed(answer: str, task: Task, claims: dict[str, str] | None = None) -> tuple[list[str], bool] | None:
    """The answer up to where it decides, with each of `choices` there, and whether it ends with them.

    It decides in its last answer line or, if it claims that label before (in the words of `claims`, or a label and a
    mark of punctuation after at most two words: "It is positive,"), right there: what follows only repeats it. None
    where it has no answer line and none is known.

    Args:
        claims: label -> what training rationales for it begin with (`claims_by_label`), where that is known.
    """
    if task.kind != "score":
        claims = claims or {}
        said = claims.get(read_label(answer, task) or "")
        if said and answer.startswith(said) and claims.keys() >= set(task.labels):
            return [claims[label] for label in task.labels], False
        names = "|".join(map(re.escape, sorted(task.labels, key=len, reverse=True)))
        claim = re.match(rf"((?:[^\s,.;:]+ ){{0,2}}?)({names})([,.;:])", answer, re.IGNORECASE)
        if claim and (read_label(answer, task) or claim[2]).casefold() == claim[2].casefold():
            capital = str.upper if claim[2][0].isupper() else str.lower if claim[2] not in task.labels else str
            return [f"{claim[1]}{capital(label[0])}{label[1:]}{claim[3]}" for label in task.labels], False
    lines = list(re.finditer(task.answer, answer))
    if lines and lines[-1].group(1) is not None:
        start, said = lines[-1].start(1), lines[-1].group(1)
        before = answer[: start + len(said) - len(said.lstrip())]
        space = " " if not said and before.endswith(":") else ""
        return [f"{before}{space}{label}" for label in choices(task)], True
    return ([respond(answer.rstrip(), label) for label in choices(task)], True) if task.answer == ANSWER else None


def label_logprobs(
    model: "PreTrainedModel", encoder: "Encoder", prompts: list[list[int]], answers: list[str], tasks: list[Task],
    batch_size: int, dtype: "torch.dtype",
    reading: Reading | None = None, claims: dict[str, dict[str, str]] | None = None,
) -> list[dict[str, float] | None]:  # fmt: skip
    """Log-probability of each label where an answer decides (`completed`), given what stands before it; one dictionary
    a row.

    In the answer line every label ends in EOS, so that "4" is not part of "4.5". They are not normalised: together they
    are what the model gives the task's labels at all. The work: the answer is read once more, the prompt too unless its
    `reading` was kept, and a few tokens a label.

    Args:
        encoder: an rllr.lm.tokens.Encoder. prompts: token ids.
        batch_size: continuations read side by side; all of a row's at once in any case.
        reading: of the prompts, if it was kept. claims: task -> label -> claim, as for `completed`.
    """
    found: list[dict[str, float] | None] = [None] * len(prompts)
    rows = []
    for i, (answer, task) in enumerate(zip(answers, tasks, strict=True)):
        if place := completed(answer, task, (claims or {}).get(task.name)):
            ids = [encoder.response(text) if place[1] else encoder.ids(text) for text in place[0]]
            # As far as they are alike, they belong to what is read once.
            shared = next((p for p, several in enumerate(zip(*ids)) if len(set(several)) > 1), 0)
            rows.append((i, ids[0][:shared], [own[shared:] for own in ids]))
    rows.sort(key=lambda row: -len(prompts[row[0]]) - len(row[1]))

    def scored(batch: list[tuple]) -> list[list[float]]:
        numbers, rests, continuations = (list(part) for part in zip(*batch, strict=True))
        known = reading and reading.select(numbers)
        with models.autocast(dtype):
            return continuation_logprobs(
                model, [prompts[i] for i in numbers], continuations, encoder.tokenizer.pad_token_id, known, rests
            )

    while rows:
        together = list(accumulate(len(continuations) for *_, continuations in rows[:batch_size]))
        size = max(1, bisect_right(together, batch_size))
        batch, rows = rows[:size], rows[size:]
        for part, values in fitting.parts("label probabilities", batch, size, scored):
            for (i, *_), own in zip(part, values, strict=True):
                found[i] = dict(zip(choices(tasks[i]), own, strict=True))
    return found


def probabilities(logprobs: dict[str, float], temperature: float = 1.0) -> dict[str, float]:
    """The softmax of log-probabilities over `temperature`."""
    scaled = np.array(list(logprobs.values())) / temperature
    weights = np.exp(scaled - scaled.max())
    return dict(zip(logprobs, (weights / weights.sum()).tolist(), strict=True))


def fit_temperature(logprobs: list[dict[str, float]], gold: list[str]) -> float:
    """The temperature under which the gold labels are likeliest (Guo et al. 2017, arXiv 1706.04599), in 1/20 to 20; 1
    for fewer than FEWEST rows.
    """
    from scipy.optimize import minimize_scalar

    if len(gold) < FEWEST:
        return 1.0
    values = np.array([list(own.values()) for own in logprobs])
    right = np.array([list(own).index(label) for own, label in zip(logprobs, gold, strict=True)])

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        top = scaled.max(1)
        norm = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((norm - scaled[np.arange(len(right)), right]).mean())

    return math.exp(minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded").x)


def vote(labels: list[str | None], task: Task) -> tuple[str | None, dict[str, float]]:
    """The label most answers give (Wang et al. 2023, arXiv 2203.11171; of equals the one given first) and each one's
    share of all answers; of scores the median.
    """
    said = [label for label in labels if label is not None]
    shares = {label: count / len(labels) for label, count in Counter(said).most_common()}
    if task.kind == "score" and said:
        return sorted(said, key=float)[(len(said) - 1) // 2], shares
    return next(iter(shares), None), shares


def certainty(answer: dict, task: Task, temperature: float = 1.0) -> dict:
    """What predictions.jsonl says of how sure an answer is: `votes`, or `probabilities` (of a score `expectation`)."""
    if "votes" in answer:
        return {"votes": answer["votes"]}
    if not answer.get("logprobs"):
        return {}
    found = probabilities(answer["logprobs"], temperature)
    if task.kind == "score":
        return {"expectation": round(sum(float(label) * p for label, p in found.items()), 4)}
    return {"probabilities": {label: round(p, 6) for label, p in found.items()}}
