"""PPO on a merged sft_wrat model (the stage config names the method: rlhf, rllr, rllr_mix, rlvr, ...).

    python workflow/scripts/ppo.py --config results/tiny/rllr_mix/config.yaml --base results/tiny/sft_wrat/merged \\
        --data results/data/demo --rewards results/tiny --out results/tiny/rllr_mix

Writes <out>/adapter (the policy's LoRA), reward.json (the threshold tau and where it comes from), train_log.jsonl
(one line an iteration) and samples.jsonl; TensorBoard events go to <out>/tensorboard. A killed run resumes from its
newest checkpoint and ends with the same adapter (on a CPU, bit by bit).
"""

from pathlib import Path

from rllr import cli
from rllr.cli import UserError
from rllr.config import load_stage, load_yaml
from rllr.files import has_rows
from rllr.methods import GOLD, METHODS, trained_by
from rllr.rows import read_prompts
from rllr.tasks import load_tasks


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--rewards", type=Path, required=True, help="folder that holds the reward models' stages")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()

    tasks = load_tasks(args.data / "tasks.json")
    values = load_yaml(args.config)
    name = values.get("stage") if isinstance(values, dict) else None
    if name not in trained_by("ppo"):
        raise UserError(f"{args.config}: stage: expected one of {', '.join(trained_by('ppo'))}, found {name!r}")
    method = METHODS[name]
    rows = read_prompts(args.data / f"{method.data}.jsonl", tasks, need_labels=method.label_reward == GOLD)

    from rllr.ppo.iteration import PPOConfig  # heavy: only once the input is known to be good
    from rllr.ppo.run import Run

    config = load_stage(PPOConfig, args.config)
    validation = []
    if config.validate_iterations and (config.keep == "best" or has_rows(args.data / "validation.jsonl")):
        validation = read_prompts(args.data / "validation.jsonl", tasks, need_labels=True)
    Run(config, args.config, args.base, args.data, args.rewards, args.out, tasks, rows, validation).train()


if __name__ == "__main__":
    cli.run(main)
