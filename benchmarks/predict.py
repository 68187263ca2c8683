"""Rows per second of our prediction beside transformers' text-generation pipeline: same model, same rows, greedy.

    .venv/bin/python benchmarks/predict.py --model results/smollm2/sft_wrat/merged --data results/data/demo/test.jsonl
    .venv/bin/python benchmarks/predict.py --model results/tiny/sft_wrat/merged --data results/data/demo/test.jsonl \\
        --rows 64 --batch-sizes 1 8

The pipeline runs at each of --batch-sizes (its default is 1; no number leaves it out), we at our own. Both decode in
the same precision and stop at EOS. Prints rows per second, the best of --repeats runs, and how many answers, and
labels read from them, are the same as those of greedy decoding without batches. On a quiet machine: `OMP_NUM_THREADS`
decides the cores. Tasks come from the tasks.json beside the data.
"""

import argparse
import json
import sys
import time
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
sys.path.insert(0, str(PROGRAMS))


def pipeline_answers(model, tokenizer, prompts: list[str], new_tokens: int, batch_size: int) -> list[str]:
    """The text-generation pipeline, as its documentation shows it."""
    from transformers import pipeline

    tokenizer.padding_side = "left"
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    outputs = generate(
        prompts, batch_size=batch_size, max_new_tokens=new_tokens, do_sample=False, return_full_text=False,
        add_special_tokens=False,
    )  # fmt: skip
    return [output[0]["generated_text"] for output in outputs]


def our_answers(model, tokenizer, prompts: list[str], new_tokens: int, batch_size: int, dtype) -> list[str]:
    from rllr.lm import sampling

    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    found = [""] * len(ids)
    for indices, result in sampling.respond(model, tokenizer, ids, batch_size, new_tokens, dtype):
        texts = tokenizer.batch_decode(result.responses, skip_special_tokens=True)
        for i, text in zip(indices, texts, strict=True):
            found[i] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder, e.g. a merged sft_wrat")
    parser.add_argument("--data", type=Path, required=True, help="prompts, e.g. test.jsonl")
    parser.add_argument("--rows", type=int, default=128, help="rows to answer, spread evenly over the file")
    parser.add_argument("--new-tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--batch-size", type=int, default=64, help="our batch size")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 16, 32, 64], help="the pipeline's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each; the fastest counts")
    args = parser.parse_args()

    from transformers.utils import logging

    from rllr.files import read_jsonl
    from rllr.lm import models
    from rllr.tasks import load_tasks, read_label

    logging.set_verbosity_error()
    dtype = models.dtype_of(args.precision)
    model, tokenizer = models.load_adapter(args.model, None, dtype), models.load_tokenizer(args.model)
    plain = models.load_causal(args.model, dtype)
    rows = [row for _, row in read_jsonl(args.data)]
    rows = rows[:: max(1, len(rows) // args.rows)][: args.rows]
    tasks = load_tasks(args.data.with_name("tasks.json"))
    turns = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"} for row in rows]
    prompts = [tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True) for turn in turns]

    def timed(answer) -> tuple[float, list[str]]:
        best, texts = 0.0, []
        for _ in range(args.repeats):
            start = time.perf_counter()
            texts = answer()
            best = max(best, len(prompts) / (time.perf_counter() - start))
        return best, texts

    def labels(texts: list[str]) -> list[str | None]:
        return [read_label(text, tasks[row["task"]]) for text, row in zip(texts, rows, strict=True)]

    reference = our_answers(model, tokenizer, prompts, args.new_tokens, 1, dtype)
    results = []
    engines = [
        (
            "ours",
            args.batch_size,
            lambda: our_answers(model, tokenizer, prompts, args.new_tokens, args.batch_size, dtype),
        )
    ]
    for size in args.batch_sizes:
        engines.append(
            ("pipeline", size, lambda size=size: pipeline_answers(plain, tokenizer, prompts, args.new_tokens, size))
        )
    for engine, size, answer in engines:
        speed, texts = timed(answer)
        results.append(
            {
                "engine": engine,
                "batch_size": size,
                "rows_per_second": round(speed, 2),
                "same_answers": sum(a.strip() == b.strip() for a, b in zip(texts, reference, strict=True)),
                "same_labels": sum(a == b for a, b in zip(labels(texts), labels(reference), strict=True)),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    ours, *theirs = [r["rows_per_second"] for r in results]
    if not theirs:
        return
    print(f"{len(prompts)} rows: {ours / max(theirs):.2f} times the pipeline's speed at its best batch size")
    if 1 in args.batch_sizes:
        default = theirs[args.batch_sizes.index(1)]
        print(f"{ours / default:.2f} times its speed at its default batch size, 1")


if __name__ == "__main__":
    main()
