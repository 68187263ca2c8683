"""Whether a reward model tells right from wrong among the policies' own samples, before and after RL.

    python workflow/scripts/reward_quality.py --config results/tiny/quality/config.yaml \\
        --base results/tiny/sft_wrat/merged --reward results/tiny/rm_rllr/adapter \\
        --samples results/tiny/sft_wrat/validation_samples.jsonl results/tiny/rllr/validation_samples.jsonl \\
        --data results/data/demo/validation.jsonl --tasks results/data/demo/tasks.json \\
        --responses results/data/demo/sft_with_rat_train.jsonl \\
        --out results/tiny/rm_rllr/quality.json

Pair accuracy is measured on responses that others wrote; RL only ever sees the policy's own. A policy goes by the name
of its samples' folder. Writes quality.json (AUC, rank correlation, accuracy by quintile of the reward) and beside it
quality_samples.jsonl.
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
    parser.add_argument("--reward", type=Path, required=True, help="adapter of the reward model")
    parser.add_argument(
        "--samples", type=Path, nargs="+", required=True, help="what sample_policy.py wrote, a policy each"
    )
    parser.add_argument("--data", type=Path, required=True, help="prompts with gold labels (validation.jsonl)")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--responses", type=Path, required=True, help="training responses (sft_with_rat_train.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="quality.json")
    args = parser.parse_args()
    config = load_stage(PredictConfig, args.config)
    tasks = load_tasks(args.tasks)
    rows = read_prompts(args.data, tasks, need_labels=True)

    from rllr.evaluate.judging import judge

    judge(config, args.base, args.reward, args.samples, rows, tasks, args.responses, args.out)


if __name__ == "__main__":
    cli.run(main)
