"""Answers to every row of a test file, kept as they come: an interrupted run goes on from there."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.checkpoints import fingerprint
from rllr.files import has_rows, stage_lock, write_jsonl
from rllr.lm import budget, duration, fitting
from rllr.predict.confidence import certainty, fit_temperature
from rllr.predict.model_file import PredictConfig, describe
from rllr.predict.predictor import Predictor
from rllr.rows import read_prompts
from rllr.tasks import Task, dump_tasks, read_label

HELD = "validation/"  # before the ids of validation rows


def resume(partial: Path, mark: str) -> dict[str, dict]:
    """Answers by row id that an interrupted run of the same fingerprint already has."""
    if not partial.is_file():
        return {}
    done, stamp = {}, None
    for line in partial.read_bytes().split(b"\n"):  # not splitlines, which also splits within an answer
        try:
            row = json.loads(line)
        except ValueError:
            break  # the line that the interruption cut short, or the empty end
        if stamp is None:
            stamp = row.get("fingerprint")
        else:
            done[row.pop("id")] = row
    if stamp != mark:
        partial.unlink()
        return {}
    # Written anew, so that a line cut short does not swallow the next one.
    write_jsonl(partial, [{"fingerprint": mark}, *({"id": i, **answer} for i, answer in done.items())])
    cli.log(f"resuming: {len(done)} answers are there")
    return done


def prediction(row: dict, answer: dict, task: Task, temperature: float) -> dict:
    """A line of predictions.jsonl; `prediction` is null where no label can be read."""
    said = read_label(answer["answer"], task)
    line = {"id": row["id"], "task": row["task"], "label": row["label"], "prediction": said}
    return {**line, **certainty(answer, task, temperature), "answer": answer["answer"]}


def temperatures(validation: list[dict], done: dict[str, dict], tasks: dict[str, Task]) -> dict[str, float]:
    """Task -> temperature under which its label probabilities fit the validation rows."""
    found: dict[str, list[tuple]] = defaultdict(list)
    for row in validation:
        logprobs = done[row["id"]].get("logprobs")
        if logprobs and tasks[row["task"]].kind != "score":
            found[row["task"]].append((logprobs, row["label"]))
    return {
        task: round(fit_temperature([found for found, _ in rows], [label for _, label in rows]), 4)
        for task, rows in found.items()
    }


def predict_file(
    config: PredictConfig, paths: dict, tasks: dict, data: Path, validation: Path | None, votes: int,
    claims: dict[str, dict[str, str]], known: dict[str, float], out: Path, described: bool,
) -> None:  # fmt: skip
    """Answer every row of `data`, keeping answers as they come so that an interrupted run goes on from there.

    Args:
        validation: rows, answered too, by which label probabilities are calibrated; None: they stay as they are.
        votes: answers sampled per prompt, which vote; 0: one answer each.
        claims: task -> label -> claim, from `claims_by_label`.
        known: task -> temperature of its label probabilities, where `validation` fits none.
        described: write model.json beside `out`.
    """
    from tqdm import tqdm

    rows = read_prompts(data, tasks, need_labels=True)
    held = []
    if validation and has_rows(validation) and not votes:
        held = [{**row, "id": HELD + row["id"]} for row in read_prompts(validation, tasks, need_labels=True)]
    with stage_lock(out.parent):
        used = {"best_of": config.best_of, "votes": votes, "claims": claims, "max_new_tokens": config.max_new_tokens}
        used["tasks"] = dump_tasks(tasks)
        inputs = [data, *([validation] if held else []), *filter(None, paths.values())]
        mark = fingerprint(inputs, **used)
        partial = out.with_name("predictions.partial.jsonl")
        done = resume(partial, mark)
        left = [row for row in [*rows, *held] if row["id"] not in done]
        loaded = int(bool(paths["reward"]))  # beside the model that answers
        config = fitting.settled(config, paths["base"], "predict", rewards=loaded)
        estimate = None
        if left:
            samples = votes or (config.best_of if paths["reward"] else 1)
            # About 1.5 tokens a word.
            words = sum(len((row["instruction"] + row["input"]).split()) for row in left) * 3 // 2
            asked, room = samples * len(left), config.max_new_tokens
            work = duration.answering(asked, words / len(left), room, config.batch_size)
            estimate = budget.check(paths["base"], asdict(config), "predict", work, out.parent, loaded)
            predictor = Predictor(config, paths["base"], paths["adapter"], paths["reward"], tasks, votes, claims)
            with (
                open(partial, "a", encoding="utf-8") as file,
                tqdm(total=len(left), desc="predicting", mininterval=2) as bar,
            ):
                if not done and not file.tell():
                    file.write(json.dumps({"fingerprint": mark}) + "\n")
                prompts = [predictor.prompt(row) for row in left]
                predictor.encoder.report("prompts", list(map(len, prompts)))
                for indices, answers in predictor.answers(left, prompts):
                    for i, answer in zip(indices, answers, strict=True):
                        done[left[i]["id"]] = answer
                        file.write(json.dumps({"id": left[i]["id"], **answer}, ensure_ascii=False) + "\n")
                    file.flush()
                    bar.update(len(indices))
        fitted = known | temperatures(held, done, tasks)
        if described:
            found = {"max_new_tokens": config.max_new_tokens, "votes": votes, "claims": claims, "temperatures": fitted}
            describe(out.with_name("model.json"), paths, tasks, rows, **found)
        lines = ((row, done[row["id"]], tasks[row["task"]], fitted.get(row["task"], 1.0)) for row in rows)
        write_jsonl(out, (prediction(*line) for line in lines))
        partial.unlink()
        budget.report(estimate)
