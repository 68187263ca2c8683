"""Training curves of a stage as svg.

    python workflow/scripts/curves.py --log results/tiny/rllr_mix/train_log.jsonl --title "rllr_mix, tiny" \\
        --out results/tiny/rllr_mix/curves.svg
"""

from pathlib import Path

from rllr import cli
from rllr.files import read_jsonl
from rllr.plots import curves


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--log", type=Path, required=True, help="train_log.jsonl of the stage")
    parser.add_argument("--title", required=True, help="title of the figure")
    parser.add_argument("--out", type=Path, required=True, help="curves.svg")
    args = parser.parse_args()
    curves([row for _, row in read_jsonl(args.log)], args.title, args.out)


if __name__ == "__main__":
    cli.run(main)
