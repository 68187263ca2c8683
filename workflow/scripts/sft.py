"""Supervised fine-tuning with LoRA on prompt -> response rows (methods sft and sft_wrat).

The loss is the mean over the response tokens of an optimiser batch, answers in a row's history included, as published.
A killed run resumes from its newest checkpoint.

    python workflow/scripts/sft.py --config results/tiny/sft_wrat/config.yaml --base results/tiny/base \\
        --data results/data/demo/sft_with_rat_train.jsonl --tasks results/data/demo/tasks.json \\
        --out results/tiny/sft_wrat

Writes <out>/adapter (PEFT) and <out>/train_log.jsonl.
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.rows import read_responses
from rllr.tasks import load_tasks
from rllr.train.trainer import SupervisedConfig


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="sft_train.jsonl or sft_with_rat_train.jsonl")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()
    config = load_stage(SupervisedConfig, args.config)
    rows = read_responses(args.data, load_tasks(args.tasks))

    from rllr.train.supervised import fine_tune  # heavy: only once the input is known to be good

    fine_tune(config, args.config, args.base, args.data, rows, args.out)


if __name__ == "__main__":
    cli.run(main)
