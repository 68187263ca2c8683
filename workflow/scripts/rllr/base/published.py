"""A published Hugging Face folder (hub snapshot or local) -> base folder: linked as it is, or converted."""

import shutil
from pathlib import Path

from rllr.base import convert, shards, tokenizer
from rllr.cli import UserError
from rllr.files import read_json, write_json
from rllr.lm.budget import check_disk

GENERATION = "generation_config.json"


def link_or_convert(source: Path, family: str | None, folder: Path) -> None:
    """Put config, weights and tokenizer of `source` into `folder`.

    Safetensors that transformers reads as they are become links. Older .bin shards are rewritten as safetensors, and
    the families of rllr.base.convert are converted; both go shard by shard.

    Args:
        source: a folder with config.json, weights and tokenizer.
        family: a key of convert.FAMILIES, or None for a model that is native in transformers.

    Raises:
        UserError: not a model folder, not a causal language model, or weights that do not fit.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    if not (source / "config.json").is_file():
        raise UserError(f"{source}: not a model folder (no config.json)")
    files = shards.find(source)
    stops = stop_ids(source)
    if family is not None:
        spec = convert.FAMILIES[family]
        check_disk(folder, shards.size(files), "converted weights")
        convert.convert(spec, source, folder)
        special = tokenizer.published_settings(source)
        converted = tokenizer.from_sentencepiece(source / "tokenizer.model", special, spec.markers, spec.added)
        converted.save_pretrained(folder)
        write_json(folder / GENERATION, {"eos_token_id": [*stops, *converted.convert_tokens_to_ids(list(spec.stops))]})
        return
    check_native(source)
    if files[0].suffix == ".safetensors":
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
        index = source / "model.safetensors.index.json"
        if len(files) > 1:
            shutil.copyfile(index, folder / index.name)
    else:
        check_disk(folder, shards.size(files), "weights as safetensors")
        shards.rewrite(files, folder, lambda name, tensor: {name: tensor})
    shutil.copyfile(source / "config.json", folder / "config.json")
    write_json(folder / GENERATION, {"eos_token_id": stops})
    tokenizer.load(source).save_pretrained(folder)


def stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer according to a model folder's generation config; none where it says nothing."""
    path = folder / GENERATION
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    return found if isinstance(found, list) else [] if found is None else [found]


def check_native(source: Path) -> None:
    """Raise UserError unless transformers itself has a causal language model of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(source / "config.json")
    kind = config.get("model_type")
    if "quantization_config" in config:
        raise UserError(f"{source}: quantised weights cannot be fine-tuned and merged; use the unquantised model")
    if config.get("is_encoder_decoder") or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        families = [name for name, family in convert.FAMILIES.items() if family.model_type == kind]
        hint = f"; set base.convert to {' or '.join(families)}" if families else ""
        raise UserError(f"{source}: model_type {kind!r} is no causal language model that transformers has{hint}")
