"""Answers to every row of a test file, kept as they come: an interrupted run goes on from there."""

import json
from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.checkpoints import fingerprint
from rllr.files import stage_lock, write_jsonl
from rllr.lm import budget
from rllr.predict.model_file import PredictConfig, describe
from rllr.predict.predictor import Predictor
from rllr.rows import read_prompts
from rllr.tasks import read_label


def resume(partial: Path, mark: str) -> dict[str, str]:
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
            done[row["id"]] = row["answer"]
    if stamp != mark:
        partial.unlink()
        return {}
    # Written anew, so that a line cut short does not swallow the next one.
    write_jsonl(partial, [{"fingerprint": mark}, *({"id": i, "answer": a} for i, a in done.items())])
    cli.log(f"resuming: {len(done)} answers are there")
    return done


def prediction(row: dict, answer: str, tasks: dict) -> dict:
    """A line of predictions.jsonl; `prediction` is null where no label can be read."""
    said = read_label(answer, tasks[row["task"]])
    return {"id": row["id"], "task": row["task"], "label": row["label"], "prediction": said, "answer": answer}


def predict_file(config: PredictConfig, paths: dict, tasks: dict, data: Path, out: Path, described: bool) -> None:
    """Answer every row of `data`, keeping answers as they come so that an interrupted run goes on from there.

    Args:
        described: write model.json beside `out`.
    """
    from tqdm import tqdm

    rows = read_prompts(data, tasks, need_labels=True)
    with stage_lock(out.parent):
        used = {"best_of": config.best_of, "max_new_tokens": config.max_new_tokens}
        mark = fingerprint([data, *filter(None, paths.values())], **used)
        partial = out.with_name("predictions.partial.jsonl")
        done = resume(partial, mark)
        left = [row for row in rows if row["id"] not in done]
        if left:
            samples = config.best_of if paths["reward"] else 1
            # About 1.5 tokens a word.
            words = sum(len((row["instruction"] + row["input"]).split()) for row in left) * 3 // 2
            tokens = samples * (words + len(left) * config.max_new_tokens // 2)  # answers of half the room
            budget.check(paths["base"], asdict(config), "predict", tokens, out.parent)
        predictor = Predictor(config, paths["base"], paths["adapter"], paths["reward"])
        with (
            open(partial, "a", encoding="utf-8") as file,
            tqdm(total=len(left), desc="predicting", mininterval=2) as bar,
        ):
            if not done and not file.tell():
                file.write(json.dumps({"fingerprint": mark}) + "\n")
            for indices, texts in predictor.answers(left):
                for i, text in zip(indices, texts, strict=True):
                    done[left[i]["id"]] = text
                    file.write(json.dumps({"id": left[i]["id"], "answer": text}, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(indices))
        if described:
            describe(out.with_name("model.json"), paths, tasks, rows, config.max_new_tokens)
        write_jsonl(out, (prediction(row, done[row["id"]], tasks) for row in rows))
        partial.unlink()
