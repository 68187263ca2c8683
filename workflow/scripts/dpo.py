"""Direct preference optimisation on label-sensitive pairs, from the merged sft_wrat model (method dpo).

    python workflow/scripts/dpo.py --config results/tiny/dpo/config.yaml --base results/tiny/sft_wrat/merged \\
        --data results/data/demo --out results/tiny/dpo

Writes <out>/adapter (PEFT) and <out>/train_log.jsonl. A killed run resumes from its newest checkpoint.
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.methods import METHODS, trained_by
from rllr.rows import read_pairs
from rllr.tasks import load_tasks
from rllr.train.trainer import PreferenceConfig


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()
    config = load_stage(PreferenceConfig, args.config)
    if config.stage not in trained_by("dpo"):
        raise cli.UserError(f"{args.config}: stage: expected {', '.join(trained_by('dpo'))}, found {config.stage!r}")
    train_file = args.data / f"{METHODS[config.stage].data}.jsonl"
    rows = read_pairs(train_file, load_tasks(args.data / "tasks.json"), label_sensitive=True)

    from rllr.train.preference import train_preference  # heavy: only once the input is known to be good

    train_preference(config, args.config, args.base, train_file, rows, args.out)


if __name__ == "__main__":
    cli.run(main)
