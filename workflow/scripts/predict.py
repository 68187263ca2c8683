"""Answers of a model: to a test file, or to texts of your own.

Texts of your own, given or as lines on standard input (two texts of a pair with a tab between them, or JSON lines with
`text` and `text2`), answered as they come; prints rationale and label with its probability, or JSON lines:

    python workflow/scripts/predict.py --model results/smollm2/rllr_mix --task movie_reviews --text "A fine film."
    python workflow/scripts/predict.py --model results/smollm2/rllr_mix --task movie_reviews --jsonl < reviews.txt

With --jsonl a line that cannot be answered gets an object with `error` in its place, and the exit status is 1.

The workflow's use: every row of a test file, resumable. Answers are greedy; with --reward they are the best of
several samples by that reward model, with --votes the label is the one that most of several samples give:

    python workflow/scripts/predict.py --config results/tiny/predict/config.yaml --base results/tiny/sft_wrat/merged \\
        --adapter results/tiny/rllr_mix/adapter --data results/data/demo/test.jsonl \\
        --tasks results/data/demo/tasks.json --responses results/data/demo/sft_with_rat_train.jsonl \\
        --out results/tiny/rllr_mix/predictions.jsonl

Beside the predictions that use writes model.json, from which --model knows what to load.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rllr import cli
from rllr.cli import UserError
from rllr.config import load_stage
from rllr.predict.model_file import PATHS, PredictConfig, find
from rllr.tasks import Task, load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    model = parser.add_argument_group("the model: --model, or --config, --base and --tasks")
    model.add_argument("--model", type=Path, help="a method's folder, results/<model>/<method>")
    model.add_argument("--config", type=Path, help="resolved predict config (YAML)")
    model.add_argument("--base", type=Path, help="folder of the model that the adapter belongs to")
    model.add_argument("--adapter", type=Path, nargs="?", help="LoRA adapter of the method; none: the model as it is")
    model.add_argument("--tasks", type=Path, help="tasks.json of the data")
    model.add_argument("--reward", type=Path, nargs="?", help="adapter of a reward model on the same base: best of n")
    model.add_argument(
        "--votes",
        type=int,
        nargs="?",
        const=True,
        help="sample so many answers (default: the config's), whose labels vote; 0: one greedy answer",
    )
    model.add_argument("--best-of", type=int, help="samples per prompt with --reward (default: the config's best_of)")
    prompts = parser.add_argument_group("the prompts: --data and --out, or --task")
    prompts.add_argument("--data", type=Path, help="prompts with gold labels (test.jsonl)")
    prompts.add_argument("--responses", type=Path, help="training responses: how long an answer may have to be")
    prompts.add_argument("--validation", type=Path, help="labelled prompts by which label probabilities are calibrated")
    prompts.add_argument("--out", type=Path, help="predictions.jsonl")
    prompts.add_argument("--task", help="task of the texts")
    prompts.add_argument("--text", help="one text; without it, every line of standard input")
    prompts.add_argument("--text2", help="the second text, for a task of two")
    prompts.add_argument("--instruction", help="put before the text (default: the task's, as in the test file)")
    prompts.add_argument("--jsonl", action="store_true", help="print JSON lines")
    prompts.add_argument(
        "--abstain-below", type=float, default=0.0, help="no label where it is less probable than this"
    )
    args = parser.parse_args()

    paths = {name: getattr(args, name) for name in PATHS}
    tasks: dict[str, Task] = {}
    known: dict[str, Any] = {}
    if args.model:
        found, tasks, known = find(args.model)
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
    if args.responses:
        from rllr.lm.claims import claims_in
        from rllr.lm.lengths import answer_room
        from rllr.lm.models import load_tokenizer
        from rllr.lm.tokens import Encoder

        encoder = Encoder(load_tokenizer(paths["base"]), config.cutoff)
        known["max_new_tokens"] = answer_room(config.max_new_tokens, args.responses, encoder)
        known["claims"] = claims_in(args.responses, tasks)
    config = replace(config, max_new_tokens=known.get("max_new_tokens", config.max_new_tokens))
    if config.max_new_tokens == "auto":
        parser.error("max_new_tokens is auto: give --responses, the file that answers are to be like")
    claims = known.get("claims", {})
    asked = config.votes if args.votes is True else args.votes
    votes = known.get("votes", 0) if asked is None else asked
    if votes < 0 or (votes and paths["reward"]):
        parser.error("--votes: expected 0 or more, and no --reward beside votes")
    if args.data and args.out:
        if args.abstain_below:
            parser.error("--abstain-below is for texts; metrics.json has the accuracy by coverage")
        from rllr.predict.test_file import predict_file

        predict_file(
            config, paths, tasks, args.data, args.validation, votes, claims, known.get("temperatures", {}), args.out,
            described=not args.model,
        )  # fmt: skip
        return
    if not args.task:
        parser.error("give --data and --out, or --task")
    if args.task not in tasks:
        raise UserError(f"unknown task {args.task!r}; known: {', '.join(tasks)}")
    instruction = args.instruction if args.instruction is not None else known.get("instructions", {}).get(args.task)
    if instruction is None:
        parser.error("give --instruction: none is known that all texts of this task share")
    task = tasks[args.task]
    if not 0 <= args.abstain_below <= 1 or (args.abstain_below and task.kind == "score"):
        parser.error("--abstain-below: expected a probability from 0 to 1, and a task with labels")
    if args.text is None and args.text2 is not None:
        parser.error("--text2 needs --text")
    if args.text is not None and (args.text2 is None) == ("{text2}" in task.input):
        parser.error(f"task {task.name} takes {'two texts' if args.text2 is None else 'one text'}")

    from transformers.utils import logging

    from rllr.predict.predictor import Predictor
    from rllr.predict.texts import Texts, answer_lines, told

    logging.disable_progress_bar()
    predictor = Predictor(config, paths["base"], paths["adapter"], paths["reward"], tasks, votes, claims)
    temperature = known.get("temperatures", {}).get(task.name, 1.0)
    texts = Texts(predictor, task, instruction, temperature, args.abstain_below)
    if args.text is None:
        if bad := answer_lines(texts, args.jsonl):
            raise UserError(f"{bad} lines could not be answered: each has an error in its place")
        return
    (line,) = texts.answer([{"text": args.text} | ({} if args.text2 is None else {"text2": args.text2})])
    if "error" in line:
        raise UserError(line["error"])
    print(json.dumps(line, ensure_ascii=False) if args.jsonl else told(line))


if __name__ == "__main__":
    cli.run(main)
