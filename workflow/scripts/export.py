"""A method's model on its own: LoRA merged, tokenizer with chat template, a model card; transformers alone loads it.

    python workflow/scripts/export.py --base results/tiny/sft_wrat/merged --adapter results/tiny/rllr_mix/adapter \\
        --config results/tiny/rllr_mix/config.yaml --metrics results/tiny/rllr_mix/metrics.json \\
        --used results/tiny/rllr_mix/model.json --origin results/tiny/base/origin.json --out results/tiny/rllr_mix/model

Merged in fp32, stored in the base model's dtype. Baichuan2-13B needs this project's model class, as its card says.
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_yaml
from rllr.files import read_json


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model that the adapter belongs to")
    parser.add_argument("--adapter", type=Path, nargs="?", help="LoRA adapter of the method")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of the stage (YAML)")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of the method")
    parser.add_argument("--used", type=Path, required=True, help="model.json of the method")
    parser.add_argument("--origin", type=Path, required=True, help="origin.json of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the standalone model")
    args = parser.parse_args()
    metrics, used, origin = map(read_json, (args.metrics, args.used, args.origin))

    from rllr.predict.standalone import export

    export(args.base, args.adapter, load_yaml(args.config), metrics, used, origin, args.out)


if __name__ == "__main__":
    cli.run(main)
