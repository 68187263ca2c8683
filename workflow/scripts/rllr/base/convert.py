"""Published weights of Baichuan2 and ChatGLM3 -> model classes that run without their publishers' code.

Each family is a target config made from the published config.json, and a table of the published tensor names. Layouts
follow the publishers' modeling files (Baichuan2: modeling_baichuan.py; ChatGLM3: modeling_chatglm.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rllr.base import shards
from rllr.cli import UserError
from rllr.files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import GlmConfig, LlamaConfig, PreTrainedConfig

    from rllr.base.baichuan13b import Baichuan13BConfig


@dataclass(frozen=True)
class Family:
    model_type: str  # as in the published config.json
    config: Callable  # published config.json (dict) -> config of the target class
    names: dict  # regular expression of a published name -> new name(s), or a function of (tensor, config)
    markers: dict  # special token that the chat template needs -> its published id
    stops: tuple = ()  # tokens that end an answer beside EOS, where the publisher's code says so and no config does
    added: tuple = ()  # special tokens that the publisher's code appends to the sentencepiece vocabulary, in order


def expect(published: dict, **wanted: object) -> None:
    """Raise UserError if the published config differs from what the conversion rests on."""
    for key, value in wanted.items():
        if published.get(key, value) != value:
            raise UserError(f"config.json: {key} is {published[key]!r}; the conversion handles {value!r} only")


# --- Baichuan2 ---------------------------------------------------------------------------------------------------


def baichuan2_llama(published: dict) -> "LlamaConfig":
    from transformers import LlamaConfig

    if "max_position_embeddings" not in published:
        raise UserError("config.json: no max_position_embeddings: a 13B model (ALiBi)? Then set convert: baichuan2-13b")
    return LlamaConfig(**baichuan2_sizes(published, published["max_position_embeddings"]))


def baichuan2_alibi(published: dict) -> "Baichuan13BConfig":
    from rllr.base.baichuan13b import Baichuan13BConfig

    if "max_position_embeddings" in published:
        raise UserError("config.json: has max_position_embeddings: a 7B model (rotary)? Then set convert: baichuan2")
    return Baichuan13BConfig(**baichuan2_sizes(published, published["model_max_length"]))


def baichuan2_sizes(published: dict, positions: int) -> dict:
    expect(published, hidden_act="silu", tie_word_embeddings=False)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {key: published[key] for key in (*keys, "rms_norm_eps")} | {"max_position_embeddings": positions}


def split_rows(*names: str) -> "Callable[[torch.Tensor, PreTrainedConfig], dict[str, torch.Tensor]]":
    """Split the rows of a fused projection into `names`, of `q`, `k`, `v` rows each."""

    def split(tensor: "torch.Tensor", config: "PreTrainedConfig") -> "dict[str, torch.Tensor]":
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        if tensor.shape[0] != queries + 2 * keys:
            raise UserError(f"{tensor.shape[0]} rows, expected {queries + 2 * keys} (q, k and v)")
        return dict(zip(names, tensor.split([queries, keys, keys]), strict=True))

    return split


def normalised_head(tensor: "torch.Tensor", config: "PreTrainedConfig") -> "dict[str, torch.Tensor]":
    """Baichuan2's output head scales each row to unit length at every call; here it is done once, in fp32.

    Stored in the checkpoint's dtype (bf16: the logits are off by 0.17% of their size). fp32 would be lost at once: a
    run loads all weights in its own precision, and the merged model is stored in the checkpoint's.
    """
    import torch

    rows = [torch.nn.functional.normalize(rows.float()).to(tensor.dtype) for rows in tensor.split(8192)]
    return {"lm_head.weight": torch.cat(rows)}


LAYER = r"model\.layers\.(\d+)\."
BAICHUAN2 = {
    r"model\.embed_tokens\.weight": "model.embed_tokens.weight",
    LAYER + r"self_attn\.W_pack\.weight": split_rows(
        *(rf"model.layers.\1.self_attn.{name}_proj.weight" for name in "qkv")
    ),
    LAYER + r"self_attn\.o_proj\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    LAYER + r"mlp\.(gate|up|down)_proj\.weight": r"model.layers.\1.mlp.\2_proj.weight",
    LAYER + r"(input|post_attention)_layernorm\.weight": r"model.layers.\1.\2_layernorm.weight",
    LAYER + r"self_attn\.rotary_emb\.inv_freq": None,  # computed, not learnt
    r"model\.norm\.weight": "model.norm.weight",
    r"lm_head\.weight": normalised_head,
}
BAICHUAN2_MARKERS = {"<reserved_106>": 195, "<reserved_107>": 196}


# --- ChatGLM3 ----------------------------------------------------------------------------------------------------


def chatglm3_glm(published: dict) -> "GlmConfig":
    """Glm has what ChatGLM3 has: grouped queries with bias, half-rotary on interleaved pairs, gate and up in one."""
    from transformers import GlmConfig

    expect(published, multi_query_attention=True, add_qkv_bias=True, add_bias_linear=False, rmsnorm=True)
    expect(published, post_layer_norm=True, apply_residual_connection_post_layernorm=False, tie_word_embeddings=False)
    return GlmConfig(
        vocab_size=published["padded_vocab_size"],
        hidden_size=published["hidden_size"],
        intermediate_size=published["ffn_hidden_size"],
        num_hidden_layers=published["num_layers"],
        num_attention_heads=published["num_attention_heads"],
        num_key_value_heads=published["multi_query_group_num"],
        head_dim=published["kv_channels"],
        rms_norm_eps=published["layernorm_epsilon"],
        max_position_embeddings=published["seq_length"],
        attention_bias=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * published.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        eos_token_id=2,
        pad_token_id=0,
    )


BLOCK = r"transformer\.encoder\.layers\.(\d+)\."
CHATGLM3 = {
    r"transformer\.embedding\.word_embeddings\.weight": "model.embed_tokens.weight",
    r"transformer\.rotary_pos_emb\.inv_freq": None,  # computed, not learnt
    BLOCK + r"self_attention\.query_key_value\.(weight|bias)": split_rows(
        *(rf"model.layers.\1.self_attn.{name}_proj.\2" for name in "qkv")
    ),
    BLOCK + r"self_attention\.dense\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    BLOCK + r"mlp\.dense_h_to_4h\.weight": r"model.layers.\1.mlp.gate_up_proj.weight",
    BLOCK + r"mlp\.dense_4h_to_h\.weight": r"model.layers.\1.mlp.down_proj.weight",
    BLOCK + r"(input|post_attention)_layernorm\.weight": r"model.layers.\1.\2_layernorm.weight",
    r"transformer\.encoder\.final_layernorm\.weight": "model.norm.weight",
    r"transformer\.output_layer\.weight": "lm_head.weight",
}
CHATGLM3_ADDED = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
CHATGLM3_STOPS = ("<|user|>", "<|observation|>")
CHATGLM3_MARKERS = {"[gMASK]": 64790, "sop": 64792, "<|system|>": 64794, "<|user|>": 64795, "<|assistant|>": 64796}


FAMILIES = {
    "baichuan2": Family("baichuan", baichuan2_llama, BAICHUAN2, BAICHUAN2_MARKERS),
    "baichuan2-13b": Family("baichuan", baichuan2_alibi, BAICHUAN2, BAICHUAN2_MARKERS),
    "chatglm3": Family("chatglm", chatglm3_glm, CHATGLM3, CHATGLM3_MARKERS, CHATGLM3_STOPS, CHATGLM3_ADDED),
}


def renamed(family: Family, name: str, tensor: "torch.Tensor", config: "PreTrainedConfig") -> "dict[str, torch.Tensor]":
    """{new name: tensor} of one published tensor; empty for what is computed rather than learnt.

    Raises:
        UserError: the name is not of this family, or a fused tensor has the wrong number of rows.
    """
    for pattern, target in family.names.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        if target is None:
            return {}
        if isinstance(target, str):
            return {match.expand(target): tensor}
        try:
            return {match.expand(new): part for new, part in target(tensor, config).items()}
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    raise UserError(f"{name}: left over: no such tensor in a {family.model_type} model")


def convert(family: Family, source: Path, folder: Path) -> None:
    """Write config and weights of the checkpoint in `source` to `folder`, in the family's target class.

    Raises:
        UserError: it is another kind of model, or a tensor is missing, left over or of another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    published = read_json(source / "config.json")
    if published.get("model_type") != family.model_type:
        raise UserError(f"config.json: model_type is {published.get('model_type')!r}, expected {family.model_type!r}")
    try:
        config = family.config(published)
    except KeyError as error:
        raise UserError(f"config.json: no {error}") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: set[str] = set()

    def checked(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = renamed(family, name, tensor, config)
        for new, value in tensors.items():
            if new not in expected:
                raise UserError(f"{name}: left over: config.json describes a model without it")
            if tuple(value.shape) != expected[new]:
                raise UserError(f"{name}: shape {tuple(value.shape)}, expected {expected[new]}")
            config.dtype = value.dtype
        found.update(tensors)
        return tensors

    shards.rewrite(shards.find(source), folder, checked)
    missing = sorted(set(expected) - found)
    if missing:
        raise UserError(f"{source}: {len(missing)} tensors are missing, for example {', '.join(missing[:3])}")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
