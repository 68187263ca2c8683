"""Several answers of a policy to each validation prompt, for judging rewards among them (reward_quality.py).

    python workflow/scripts/sample_policy.py --config results/tiny/quality/config.yaml \\
        --base results/tiny/sft_wrat/merged --adapter results/tiny/rllr/adapter \\
        --data results/data/demo/validation.jsonl --tasks results/data/demo/tasks.json \\
        --responses results/data/demo/sft_with_rat_train.jsonl \\
        --out results/tiny/rllr/validation_samples.jsonl

Writes a line a prompt: its id and the token ids of the answers.
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.predict.model_file import PredictConfig
from rllr.rows import read_prompts
from rllr.tasks import load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved config of sampling (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--adapter", type=Path, nargs="?", help="LoRA adapter; none: the merged model itself")
    parser.add_argument("--data", type=Path, required=True, help="prompts (validation.jsonl)")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--responses", type=Path, required=True, help="training responses (sft_with_rat_train.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="validation_samples.jsonl")
    args = parser.parse_args()
    config = load_stage(PredictConfig, args.config)
    rows = read_prompts(args.data, load_tasks(args.tasks), need_labels=True)

    from rllr.predict.validation_samples import write_samples

    write_samples(config, args.base, args.adapter, rows, args.responses, args.out)


if __name__ == "__main__":
    cli.run(main)
