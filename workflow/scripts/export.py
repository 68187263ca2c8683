"""A method's model on its own: LoRA merged, tokenizer with chat template, a model card; transformers alone loads it.

    python workflow/scripts/export.py --base results/tiny/sft_wrat/merged --adapter results/tiny/rllr_mix/adapter \\
        --config results/tiny/rllr_mix/config.yaml --metrics results/tiny/rllr_mix/metrics.json \\
        --used results/tiny/rllr_mix/model.json --origin results/tiny/base/origin.json --out results/tiny/rllr_mix/model

Merged in fp32, stored in the base model's dtype. Baichuan2-13B needs this project's model class, as its card says.

Such a folder, a method's adapter or the pairs of prepared data are put on the Hugging Face hub by hand, private unless
--public is given, with HF_TOKEN or after `hf auth login`:

    python workflow/scripts/export.py --push owner/name results/tiny/rllr_mix/model
"""

from pathlib import Path

from rllr import cli
from rllr.config import load_yaml
from rllr.files import read_json


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, help="folder of the model that the adapter belongs to")
    parser.add_argument("--adapter", type=Path, nargs="?", help="LoRA adapter of the method")
    parser.add_argument("--config", type=Path, help="resolved config of the stage (YAML)")
    parser.add_argument("--metrics", type=Path, help="metrics.json of the method")
    parser.add_argument("--used", type=Path, help="model.json of the method")
    parser.add_argument("--origin", type=Path, help="origin.json of the base model")
    parser.add_argument("--out", type=Path, help="folder of the standalone model")
    parser.add_argument("--push", nargs=2, metavar=("OWNER/NAME", "FOLDER"), help="put a folder on the hub instead")
    parser.add_argument("--public", action="store_true", help="for everybody to see")
    args = parser.parse_args()
    if args.push:
        from rllr.sharing import push

        print(push(Path(args.push[1]), args.push[0], private=not args.public))
        return
    needed = ("base", "config", "metrics", "used", "origin", "out")
    if missing := [f"--{name}" for name in needed if getattr(args, name) is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    metrics, used, origin = map(read_json, (args.metrics, args.used, args.origin))

    from rllr.predict.standalone import export

    export(args.base, args.adapter, load_yaml(args.config), metrics, used, origin, args.out)


if __name__ == "__main__":
    cli.run(main)
