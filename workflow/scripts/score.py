"""Scores of responses by a reward model, as JSON lines.

Answers to rows of a data file, joined by id:

    python workflow/scripts/score.py --reward-model results/tiny/rm_rllr --data results/data/demo/test.jsonl \\
        --responses results/tiny/rllr_mix/predictions.jsonl --out scores.jsonl

Rows of your own, with instruction, input and answer, on standard input:

    echo '{"instruction": "Positive or negative?", "input": "A fine film.", "answer": "Label: positive"}' \\
        | python workflow/scripts/score.py --reward-model results/tiny/rm_rllr

Each line comes back with its `score`. The base model is found beside the reward model, in sft_wrat/merged.
"""

import json
import sys
from pathlib import Path

from rllr import cli
from rllr.cli import UserError
from rllr.config import load_stage
from rllr.files import read_jsonl, writable, write_jsonl
from rllr.lm.tokens import Encoder
from rllr.rows import bad_history
from rllr.train.trainer import RewardConfig


def joined(responses: list[tuple[int, dict]], rows: dict[str, dict], where: str) -> list[dict]:
    """The prompt row and answer of each response: instruction, input, history and answer.

    Raises:
        UserError: a response has no answer, or neither a prompt of its own nor an id among `rows`; or something is no
            Unicode text or history.
    """
    found = []
    for number, response in responses:
        prompt = rows.get(str(response.get("id")), response)
        missing = [f for f in ("instruction", "input") if not isinstance(prompt.get(f), str)]
        if missing:
            raise UserError(f"{where} line {number}: no {' and no '.join(missing)}, and its id is not in --data")
        if not isinstance(response.get("answer"), str):
            raise UserError(f"{where} line {number}: field answer: expected text, found {response.get('answer')!r:.80}")
        if problem := bad_history(prompt):
            raise UserError(f"{where} line {number}: {problem}")
        if not writable(response):
            raise UserError(f"{where} line {number}: found half of a surrogate pair, expected Unicode text")
        found.append({"id": f"line {number}", **prompt, "answer": response["answer"]})
    if not found:
        raise UserError(f"{where}: no responses; expected at least one line")
    return found


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--reward-model", type=Path, required=True, help="folder of the reward model's stage")
    parser.add_argument("--base", type=Path, help="merged sft_wrat model (default: ../sft_wrat/merged from there)")
    parser.add_argument(
        "--responses", type=Path, default=Path("/dev/stdin"), help="JSON lines (default: standard input)"
    )
    parser.add_argument("--data", type=Path, help="prompts that the responses' ids refer to")
    parser.add_argument("--out", type=Path, help="JSON lines (default: standard output)")
    args = parser.parse_args()
    base = args.base or args.reward_model.parent / "sft_wrat" / "merged"
    config = load_stage(RewardConfig, args.reward_model / "config.yaml")
    rows = {row["id"]: row for _, row in read_jsonl(args.data) if "id" in row} if args.data else {}
    responses = list(read_jsonl(args.responses))
    found = joined(responses, rows, str(args.responses))

    from transformers.utils import logging

    from rllr.lm import fitting, models, rewards

    logging.disable_progress_bar()
    dtype, config = models.dtype_of(config.precision), fitting.settled(config, base, "reward")
    encoder = Encoder(models.load_tokenizer(base), config.cutoff)
    answers = [encoder.response(row["answer"]) for row in found]
    prompts = [encoder.prompt(row, room=len(answer)) for row, answer in zip(found, answers, strict=True)]
    encoder.report(str(args.responses), [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])
    reward = rewards.load_reward(base, args.reward_model / "adapter", dtype, config.attention)
    scores = rewards.scores(reward, encoder.tokenizer, prompts, answers, 2 * config.micro_batch_size, dtype)
    lines = [{**response, "score": score} for (_, response), score in zip(responses, scores, strict=True)]
    if args.out:
        write_jsonl(args.out, lines)
    else:
        sys.stdout.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    cli.run(main)
