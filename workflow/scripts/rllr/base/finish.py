"""What every base folder gets, wherever it came from: special tokens, chat template, and a last check."""

from pathlib import Path
from typing import TYPE_CHECKING

from rllr.base.published import stop_ids
from rllr.cli import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def choose_pad(tokenizer: "PreTrainedTokenizerBase", wanted: str | None) -> str:
    """The pad token: the configured one, else the tokenizer's own, else its unknown token; never EOS.

    A sequence-classification head reads the score at the last token that is not pad: were pad and EOS the same
    token, it would read the score before EOS.

    Raises:
        UserError: no token is left to pad with, or the configured one is not in the vocabulary.
    """
    if wanted is not None and wanted not in tokenizer.get_vocab():
        raise UserError(f"base.pad: {wanted!r} is not in the tokenizer's vocabulary")
    for token in [wanted] if wanted is not None else [tokenizer.pad_token, tokenizer.unk_token]:
        if token is not None and token != tokenizer.eos_token:
            return token
    raise UserError(
        "the tokenizer has no pad token that differs from its end-of-sequence token "
        f"{tokenizer.eos_token!r}: name another token of its vocabulary in base.pad"
    )


def prefix_every_text(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Let a sentencepiece-like tokenizer put its space before the text after a special token, too.

    The published engine tokenises each text between special tokens on its own: `<s>[INST]` is `<s>`, `▁[`, `INST`. A
    tokenizer.json whose Metaspace says `first` (newer conversions, Mistral's among them) gives `[` there.
    """
    from tokenizers.pre_tokenizers import Metaspace

    found = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(found, Metaspace) and found.prepend_scheme == "first":
        found.prepend_scheme = "always"
        tokenizer.backend_tokenizer.pre_tokenizer = found


def finish(folder: Path, pad: str | None, template: str | None) -> None:
    """Settle the tokenizer, its chat template (None: its own), and the special ids of model and generation config.

    The generation config holds those ids, other tokens that end an answer among them (a list of EOS ids), and nothing
    else: what a published one adds (temperature, top_k, ...) would enter sampling behind the recipe's back.

    Raises:
        UserError: no end-of-sequence token, no usable pad token, no template, more tokens than embeddings, or a stop
            token that is none of them.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no end-of-sequence token; responses could never end")
    tokenizer.pad_token = choose_pad(tokenizer, pad)
    if template is not None:
        # A text file ends in a newline; the prompt must not.
        tokenizer.chat_template = template.removesuffix("\n")
        prefix_every_text(tokenizer)
    if not tokenizer.chat_template:
        raise UserError("template: tokenizer: this tokenizer has none of its own; name one of config/templates")
    tokenizer.save_pretrained(folder)

    config = AutoConfig.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size} embeddings")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config.update(ids)
    config.save_pretrained(folder)
    # Not pad, were it published as one: reward heads take the last token that is not pad for a response's end.
    others = [stop for stop in stop_ids(folder) if stop not in (ids["eos_token_id"], ids["pad_token_id"])]
    if strange := [stop for stop in others if stop not in range(config.vocab_size)]:
        raise UserError(f"generation_config.json: eos_token_id: {strange[0]!r} is no token of this model")
    stops = {"eos_token_id": [ids["eos_token_id"], *others]} if others else {}
    GenerationConfig(**ids | stops).save_pretrained(folder)


def check(folder: Path) -> dict:
    """Compare every weight's name and shape with the architecture, without reading the weights.

    Returns:
        What origin.json tells of the model: architecture, number of parameters, dtype.

    Raises:
        UserError: a weight is missing, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # its own report of the same would come first
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity_warning()
    for what, keys in (
        ("missing", found["missing_keys"]),
        ("left over", found["unexpected_keys"]),
        ("of another shape", [f"{name} {tuple(a)} != {tuple(b)}" for name, a, b in found["mismatched_keys"]]),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:5]) + (" ..." if len(keys) > 5 else "")
            raise UserError(f"the weights do not fit {type(model).__name__}: {len(keys)} {what}: {some}")
    return {
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
