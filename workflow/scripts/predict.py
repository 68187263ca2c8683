"""Greedy answers of a model to the test prompts, or to texts of your own.

The workflow's use: every row of a test file, resumable, length-sorted batches:

    python workflow/scripts/predict.py --config results/tiny/predict/config.yaml --base results/tiny/sft_wrat/merged \\
        --adapter results/tiny/rllr_mix/adapter --data results/data/demo/test.jsonl \\
        --tasks results/data/demo/tasks.json --out results/tiny/rllr_mix/predictions.jsonl
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.files import stage_lock, write_jsonl
from rllr.rows import read_prompts
from rllr.tasks import load_tasks, read_label
from rllr.tokens import Encoder


@dataclass
class PredictConfig:
    """The resolved predict config (workflow/schemas/model.schema.yaml describes the keys)."""

    model: str
    stage: str
    seed: int
    precision: str
    batch_size: int
    max_new_tokens: int
    cutoff: int


def answers(model, tokenizer, prompts: list[list[int]], config: PredictConfig, kind):
    """Yield `(indices, texts)` batch by batch, longest prompts first (so the time left is not underestimated)."""
    from rllr import models
    from rllr.generate import generate

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        with models.autocast(kind):
            result = generate(
                model, [prompts[i] for i in batch], tokenizer.eos_token_id, tokenizer.pad_token_id, config.max_new_tokens
            )
        yield batch, tokenizer.batch_decode(result.responses, skip_special_tokens=True)


def resume(partial: Path, mark: str) -> dict[str, str]:
    """Answers by row id that an interrupted run of the same fingerprint already has."""
    if not partial.is_file():
        return {}
    done, stamp = {}, None
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the line that the interruption cut short
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


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved predict config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the model that the adapter belongs to")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter of the method; none: the model as it is")
    parser.add_argument("--data", type=Path, required=True, help="prompts with gold labels (test.jsonl)")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--out", type=Path, required=True, help="predictions.jsonl")
    args = parser.parse_args()
    config = load_stage(PredictConfig, args.config)
    tasks = load_tasks(args.tasks)
    rows = read_prompts(args.data, tasks, need_labels=True)

    from tqdm import tqdm

    from rllr import models
    from rllr.checkpoints import fingerprint

    with stage_lock(args.out.parent):
        inputs = [args.config, args.base, args.data, *([args.adapter] if args.adapter else [])]
        mark, partial = fingerprint(inputs), args.out.with_name("predictions.partial.jsonl")
        done = resume(partial, mark)
        kind = models.dtype(config.precision)
        tokenizer = models.load_tokenizer(args.base)
        model = models.load_adapter(args.base, args.adapter, kind)
        models.describe(model, kind)
        encoder = Encoder(tokenizer, config.cutoff)
        left = [row for row in rows if row["id"] not in done]
        prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in left]
        if prompts:
            encoder.report(str(args.data), list(map(len, prompts)))
        with open(partial, "a", encoding="utf-8") as file, tqdm(total=len(left), desc="predicting", mininterval=2) as bar:
            if not done and not file.tell():
                file.write(json.dumps({"fingerprint": mark}) + "\n")
            for indices, texts in answers(model, tokenizer, prompts, config, kind):
                for i, text in zip(indices, texts, strict=True):
                    done[left[i]["id"]] = text
                    file.write(json.dumps({"id": left[i]["id"], "answer": text}, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(indices))
        write_jsonl(args.out, (prediction(row, done[row["id"]], tasks) for row in rows))
        partial.unlink()


def prediction(row: dict, answer: str, tasks: dict) -> dict:
    """A line of predictions.jsonl; `prediction` is null where no label can be read."""
    said = read_label(answer, tasks[row["task"]])
    return {"id": row["id"], "task": row["task"], "label": row["label"], "prediction": said, "answer": answer}


if __name__ == "__main__":
    cli.run(main)
