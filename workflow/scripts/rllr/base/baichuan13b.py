"""Baichuan2-13B: Llama with ALiBi instead of rotary positions (Press et al. 2022, https://arxiv.org/abs/2108.12409).

The modules are Llama's. Two things differ: the rotation is the identity, and the attention mask is an additive one that
holds, for each head, slope x (key position - query position). It has shape (B, heads, Q, K), which sdpa takes as it is;
flash attention has no place for it. Distances do not change with padding on the left or with a cache.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel


class Baichuan13BConfig(LlamaConfig):
    model_type = "baichuan2-13b"


def slopes(heads: int) -> list[float]:
    """ALiBi's slope of each head: a geometric series; heads beyond a power of two take every second of the next one."""
    power = 2 ** math.floor(math.log2(heads))
    series = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return series + [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * (heads - power), 2)]


def alibi_mask(attention_mask: torch.Tensor, queries: int, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive attention mask of the last `queries` positions.

    Args:
        attention_mask: (B, K), true for tokens and false for padding, cached positions included.

    Returns:
        (B, heads, queries, K): slope x (key - query), counted in tokens, where the query may look, the dtype's lowest
        number elsewhere.
        Finite, so that a padding position, which sees nothing, gets a uniform softmax and not NaN.
    """
    keys = attention_mask.shape[1]
    column = torch.arange(keys, device=attention_mask.device)
    place = attention_mask.long().cumsum(1)  # padding between tokens is no distance
    distance = place[:, None, :] - place[:, keys - queries :, None]
    slope = torch.tensor(slopes(heads), device=distance.device)
    visible = (column <= column[keys - queries :, None]) & attention_mask[:, None, None, :].bool()
    bias = (slope[:, None, None] * distance[:, None]).to(dtype)
    return torch.where(visible, bias, torch.finfo(dtype).min)


class NoRotation(nn.Module):
    """Stands where Llama's rotary embedding does: cosine 1 and sine 0 leave queries and keys as they are."""

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ones = hidden.new_ones(1, 1, 1)
        return ones, torch.zeros_like(ones)


class Baichuan13BPreTrainedModel(LlamaPreTrainedModel):
    config: Baichuan13BConfig
    _supports_flash_attn = False
    _supports_flex_attn = False


class Baichuan13BModel(Baichuan13BPreTrainedModel, LlamaModel):
    def __init__(self, config: Baichuan13BConfig) -> None:
        super().__init__(config)
        self.rotary_emb = NoRotation()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        queries = inputs.shape[1]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = torch.ones(1, seen + queries, dtype=torch.bool, device=inputs.device)  # broadcast
        if attention_mask.ndim == 2:
            heads = self.config.num_attention_heads
            attention_mask = alibi_mask(attention_mask, queries, heads, self.embed_tokens.weight.dtype)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class Baichuan13BForCausalLM(Baichuan13BPreTrainedModel, LlamaForCausalLM):
    def __init__(self, config: Baichuan13BConfig) -> None:
        super().__init__(config)
        self.model = Baichuan13BModel(config)
        self.post_init()


class Baichuan13BForSequenceClassification(GenericForSequenceClassification, Baichuan13BPreTrainedModel):
    pass


def register() -> None:
    """Make the classes known to the Auto classes; doing so again changes nothing."""
    AutoConfig.register(Baichuan13BConfig.model_type, Baichuan13BConfig, exist_ok=True)
    for auto, model in (
        (AutoModel, Baichuan13BModel),
        (AutoModelForCausalLM, Baichuan13BForCausalLM),
        (AutoModelForSequenceClassification, Baichuan13BForSequenceClassification),
    ):
        auto.register(Baichuan13BConfig, model, exist_ok=True)
