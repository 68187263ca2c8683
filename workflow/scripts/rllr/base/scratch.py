"""A small random Llama with a tokenizer trained on the data: for tests and for trying changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rllr.cli import UserError
from rllr.files import read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# As in SmolLM2, so that both share one template: pad (and unknown), start of a turn, end of a turn.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def texts(path: Path | str) -> Iterator[str]:
    """Every text of an alpaca-style JSON-lines file: instruction, input and output (one text or several)."""
    for number, row in read_jsonl(path):
        for field in ("instruction", "input", "output"):
            value = row.get(field, "")
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str):
                    raise UserError(f"{path} line {number}: field {field}: expected text, found {text!r}")
                yield text


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer that splits digits one by one. Deterministic in the texts and their order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, start, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, unk_token=pad, pad_token=pad
    )


def build(base: dict, data: Path | str, folder: Path) -> None:
    """Write tokenizer and random fp32 weights to `folder`; `base` gives the sizes and the seed.

    Raises:
        UserError: the data file is missing or malformed, or the sizes do not fit together.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if base["hidden_size"] % base["heads"] or base["heads"] % base["kv_heads"]:
        raise UserError("base: hidden_size must be a multiple of heads, and heads a multiple of kv_heads")
    tokenizer = train_tokenizer(texts(data), base["vocab_size"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # fewer than asked for when the data is small
        hidden_size=base["hidden_size"],
        intermediate_size=base["intermediate_size"],
        num_hidden_layers=base["layers"],
        num_attention_heads=base["heads"],
        num_key_value_heads=base["kv_heads"],
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(base["seed"])
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
