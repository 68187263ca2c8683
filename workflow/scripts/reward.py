"""Train a reward model with LoRA on chosen / rejected pairs (rm_rlhf: rationale-sensitive, rm_rllr: label-sensitive).

    python workflow/scripts/reward.py --config results/tiny/rm_rllr/config.yaml --base results/tiny/sft_wrat/merged \\
        --data results/data/demo --out results/tiny/rm_rllr

Reads <data>/{rllr,rlhf}_reward_train.jsonl by the stage's name, then evaluates on the held-out pairs. Writes
<out>/adapter (PEFT, with its score head), <out>/metrics.json, <out>/pair_scores.jsonl and <out>/train_log.jsonl.
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.data.catalogue import HELD_OUT_PAIRS
from rllr.files import has_rows
from rllr.methods import REWARD_MODELS
from rllr.rows import read_pairs
from rllr.tasks import load_tasks
from rllr.train.trainer import RewardConfig


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()
    config = load_stage(RewardConfig, args.config)
    tasks = load_tasks(args.data / "tasks.json")
    if config.stage not in REWARD_MODELS:
        raise cli.UserError(f"{args.config}: stage: expected one of {', '.join(REWARD_MODELS)}, found {config.stage!r}")
    reward_model = REWARD_MODELS[config.stage]
    train_file = args.data / f"{reward_model.data}.jsonl"
    rows = read_pairs(train_file, tasks, reward_model.label_sensitive)
    held_out = {
        name: read_pairs(args.data / f"{file}.jsonl", tasks, sensitive)
        for name, (file, sensitive) in HELD_OUT_PAIRS.items()
        if name == "label_sensitive" or has_rows(args.data / f"{file}.jsonl")
    }

    from rllr.train.pairwise import train_reward_model  # heavy: only once the input is known to be good

    train_reward_model(config, args.config, args.base, train_file, rows, held_out, tasks, args.out)


if __name__ == "__main__":
    cli.run(main)
