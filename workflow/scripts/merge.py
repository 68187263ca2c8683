"""Merge a LoRA adapter into its base model (computed in fp32, stored in the base model's dtype).

    python workflow/scripts/merge.py --base results/tiny/base --adapter results/tiny/sft_wrat/adapter \\
        --out results/tiny/sft_wrat/merged
"""

from pathlib import Path

from rllr import cli
from rllr.files import atomic_dir, sha256, write_json
from rllr.store import CONTENTS


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the LoRA adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder of the merged model")
    args = parser.parse_args()

    import torch
    from transformers import AutoConfig

    from rllr.base import register
    from rllr.lm import models

    register()
    tokenizer = models.load_tokenizer(args.base)
    stored = AutoConfig.from_pretrained(args.base).dtype or torch.float32
    merged = models.load_adapter(args.base, args.adapter, torch.float32).to(stored)
    with atomic_dir(args.out) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        # What later stages compare, instead of reading all weights again.
        write_json(temporary / CONTENTS, {str(path.relative_to(temporary)): sha256(path) for path in files})
    cli.log(f"merged {args.adapter} into {args.base}, stored as {str(stored).removeprefix('torch.')}")


if __name__ == "__main__":
    cli.run(main)
