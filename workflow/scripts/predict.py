"""Answers of a model: to a test file, or to texts of your own.

Texts of your own, given or as lines on standard input (two texts of a pair with a tab between them); prints rationale
and label, or JSON lines:

    python workflow/scripts/predict.py --model results/smollm2/rllr_mix --task movie_reviews --text "A fine film."
    python workflow/scripts/predict.py --model results/smollm2/rllr_mix --task movie_reviews --jsonl < reviews.txt

The workflow's use: every row of a test file, resumable. Answers are greedy; with --reward they are the best of
several samples by that reward model:

    python workflow/scripts/predict.py --config results/tiny/predict/config.yaml --base results/tiny/sft_wrat/merged \\
        --adapter results/tiny/rllr_mix/adapter --data results/data/demo/test.jsonl \\
        --tasks results/data/demo/tasks.json --out results/tiny/rllr_mix/predictions.jsonl

Beside the predictions that use writes model.json, from which --model knows what to load.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from rllr import cli
from rllr.cli import UserError
from rllr.config import load_stage
from rllr.files import stage_lock, write_jsonl
from rllr.lm.tokens import Encoder
from rllr.predict.model_file import PATHS, PredictConfig, describe, find
from rllr.rows import read_prompts
from rllr.tasks import load_tasks, read_label


class Predictor:
    """A loaded model and, for best-of-n, the reward model that picks among its samples."""

    def __init__(self, config: PredictConfig, base: Path, adapter: Path | None, reward: Path | None) -> None:
        from rllr.lm import models, sampling

        self.config, self.kind = config, models.dtype(config.precision)
        self.tokenizer = models.load_tokenizer(base)
        self.model = models.load_adapter(base, adapter, self.kind, config.attention)
        self.reward = sampling.load_reward(base, reward, self.kind, config.attention) if reward else None
        self.encoder = Encoder(self.tokenizer, config.cutoff)
        models.describe(self.model, self.kind)

    def answers(self, rows: list[dict]) -> Iterator[tuple[list[int], list[str]]]:
        """Yield `(indices, answers)` of batches of rows, longest prompts first."""
        from rllr.lm import sampling
        from rllr.lm.generation import decoded, stop_ids

        if not rows:
            return
        config = self.config
        prompts = [self.encoder.prompt(row, room=config.max_new_tokens) for row in rows]
        self.encoder.report("prompts", list(map(len, prompts)))
        if self.reward:
            batches = self._best_of(rows, prompts)
        else:
            batches = sampling.respond(
                self.model, self.tokenizer, prompts, config.batch_size, config.max_new_tokens, self.kind
            )
        for indices, responses in batches:
            yield indices, decoded(self.tokenizer, responses, stop_ids(self.model, self.tokenizer))

    def _best_of(self, rows: list[dict], prompts: list[list[int]]) -> Iterator[tuple[list[int], list[list[int]]]]:
        """The sample with the highest reward of each prompt (the first among equals)."""
        from rllr.lm import sampling

        n, config = self.config.best_of, self.config
        order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
        size = max(1, config.batch_size // n)
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            own, ids = [prompts[i] for i in batch], [rows[i]["id"] for i in batch]
            drawn = sampling.sample(self.model, self.tokenizer, own, ids, n, config, self.kind)
            flat = [response for responses in drawn for response in responses]
            repeated = [prompt for prompt in own for _ in range(n)]
            values = sampling.scores(self.reward, self.tokenizer, repeated, flat, config.batch_size, self.kind)
            best = [max(range(k, k + n), key=values.__getitem__) for k in range(0, len(flat), n)]
            yield batch, [flat[k] for k in best]


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

    from rllr.checkpoints import fingerprint
    from rllr.lm import budget, models, sampling  # noqa: F401  (their code is part of the fingerprint)

    rows = read_prompts(data, tasks, need_labels=True)
    with stage_lock(out.parent):
        mark = fingerprint([data, *filter(None, paths.values())], best_of=config.best_of)
        partial = out.with_name("predictions.partial.jsonl")
        done = resume(partial, mark)
        left = [row for row in rows if row["id"] not in done]
        if left:
            samples = config.best_of if paths["reward"] else 1
            words = (
                sum(len((row["instruction"] + row["input"]).split()) for row in left) * 3 // 2
            )  # about 1.5 tokens each
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
            describe(out.with_name("model.json"), paths, tasks, rows)
        write_jsonl(out, (prediction(row, done[row["id"]], tasks) for row in rows))
        partial.unlink()


def predict_texts(
    config: PredictConfig, paths: dict, task, instruction: str, texts: list[dict[str, str]], as_json: bool
) -> None:
    """Print an answer to each text, in their order.

    Args:
        texts: `text`, and `text2` for a task of two texts.
    """
    from transformers.utils import logging

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


def split(line: str, task) -> dict[str, str]:
    """`text`, and where the task takes two `text2`, which a tab separates from it."""
    if "{text2}" not in task.input:
        return {"text": line}
    text, tab, second = line.partition("\t")
    if not tab:
        raise UserError(f"task {task.name} takes two texts, with a tab between them; found {line!r:.80}")
    return {"text": text, "text2": second}


def main() -> None:
    parser = cli.parser(__doc__)
    model = parser.add_argument_group("the model: --model, or --config, --base and --tasks")
    model.add_argument("--model", type=Path, help="a method's folder, results/<model>/<method>")
    model.add_argument("--config", type=Path, help="resolved predict config (YAML)")
    model.add_argument("--base", type=Path, help="folder of the model that the adapter belongs to")
    model.add_argument("--adapter", type=Path, nargs="?", help="LoRA adapter of the method; none: the model as it is")
    model.add_argument("--tasks", type=Path, help="tasks.json of the data")
    model.add_argument("--reward", type=Path, nargs="?", help="adapter of a reward model on the same base: best of n")
    model.add_argument("--best-of", type=int, help="samples per prompt with --reward (default: the config's best_of)")
    prompts = parser.add_argument_group("the prompts: --data and --out, or --task")
    prompts.add_argument("--data", type=Path, help="prompts with gold labels (test.jsonl)")
    prompts.add_argument("--out", type=Path, help="predictions.jsonl")
    prompts.add_argument("--task", help="task of the texts")
    prompts.add_argument("--text", help="one text; without it, every line of standard input")
    prompts.add_argument("--text2", help="the second text, for a task of two")
    prompts.add_argument("--instruction", help="put before the text (default: the task's, as in the test file)")
    prompts.add_argument("--jsonl", action="store_true", help="print JSON lines")
    args = parser.parse_args()

    paths, tasks, instructions = {name: getattr(args, name) for name in PATHS}, {}, {}
    if args.model:
        found, tasks, instructions = find(args.model)
        paths = {name: paths[name] or found[name] for name in PATHS}
    if args.tasks:
        tasks = load_tasks(args.tasks)
    if not (paths["config"] and paths["base"] and tasks):
        parser.error("give --model, or --config, --base and --tasks")
    config = load_stage(PredictConfig, paths["config"])
    if args.best_of is not None:
        if args.best_of < 1:
            parser.error(f"--best-of: expected at least 1, found {args.best_of}")
        if not paths["reward"]:
            parser.error("--best-of needs --reward, the adapter of a reward model")
        config = replace(config, best_of=args.best_of)
    if args.data and args.out:
        predict_file(config, paths, tasks, args.data, args.out, described=not args.model)
        return
    if not args.task:
        parser.error("give --data and --out, or --task")
    if args.task not in tasks:
        raise UserError(f"unknown task {args.task!r}; known: {', '.join(tasks)}")
    instruction = args.instruction if args.instruction is not None else instructions.get(args.task)
    if instruction is None:
        parser.error("give --instruction: none is known that all texts of this task share")
    task = tasks[args.task]
    if args.text is None:
        try:
            lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
            "".join(lines).encode()  # in the C locale other bytes come as surrogates, without an error
        except UnicodeError as error:
            raise UserError(f"standard input: not UTF-8 ({error})") from None
        texts = [split(line, task) for line in lines]
    elif (args.text2 is None) == ("{text2}" in task.input):
        parser.error(f"task {task.name} takes {'two texts' if args.text2 is None else 'one text'}")
    else:
        texts = [{"text": args.text} if args.text2 is None else {"text": args.text, "text2": args.text2}]
    predict_texts(config, paths, task, instruction, texts, args.jsonl)


if __name__ == "__main__":
    cli.run(main)
