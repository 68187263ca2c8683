"""Decoding: greedy for prediction, sampling for rollouts, which stop, pad and cut alike.

On a CPU rows that are done leave the batch. On a GPU a step costs the same for many rows as for few, and launching its
kernels one by one more than running them: there the shapes stay, and a step is captured once and replayed.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer

from rllr.cli import log
from rllr.lm import models
from rllr.lm.packing import shares_prompts
from rllr.lm.padding import fill


@dataclass
class Generated:
    """Responses to B prompts, in the order of the prompts.

    Attributes:
        responses: B lists of token ids, the stop token included where one was given.
        logprobs: B lists, log-probability of each token under the distribution it was drawn from.
        entropies: B lists, entropy of that distribution in nats.
        reading: what the model kept of the prompts; None unless asked for.
    """

    responses: list[list[int]]
    logprobs: list[list[float]]
    entropies: list[list[float]]
    reading: "Reading | None" = None


class RoomyLayer(DynamicLayer):
    """A cache layer that grows by blocks of tokens: transformers' own copies all keys and values at every token."""

    BLOCK = 64

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, new tokens, D) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.store: Any = None
            self.length = 0
        end = self.length + key_states.shape[-2]
        if self.store is None or end > self.store.shape[-2]:
            batch, heads, _, width = key_states.shape
            grown = key_states.new_empty(2, batch, heads, end + self.BLOCK, width)
            if self.store is not None:
                grown[..., : self.length, :] = self.store[..., : self.length, :]
            self.store = grown
        self.store[0, ..., self.length : end, :] = key_states
        self.store[1, ..., self.length : end, :] = value_states
        self.length = end
        self.keys, self.values = self.store[..., :end, :]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.store = self.store.repeat_interleave(repeats, 1)
        self.keys, self.values = self.store[..., : self.length, :]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.store = self.store[:, indices]
        self.keys, self.values = self.store[..., : self.length, :]


class FixedLayer(DynamicLayer):
    """A cache layer that never grows, written at the column that a tensor names.

    Args:
        store: (2, B, heads, L, D) keys and values. column: (1,), shared by all layers.
    """

    def __init__(self, store: torch.Tensor, column: torch.Tensor) -> None:
        super().__init__()
        (self.keys, self.values), self.column, self.is_initialized = store, column, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, 1, D) keys and values; returns all L columns."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values


@dataclass
class Reading:
    """Keys and values of B prompts, left-padded to T columns, before anything is written behind them.

    Attributes:
        layers: a (2, B, heads, T, D) tensor of each layer. mask: (B, T). positions: (B, T).
    """

    layers: list[torch.Tensor]
    mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, cache: Cache, mask: torch.Tensor, positions: torch.Tensor) -> "Reading":
        # Views: a layer only ever writes behind them, or into a copy.
        return cls([layer.store[..., : layer.length, :] for layer in cache.layers], mask, positions)

    def select(self, indices: list[int]) -> "Reading":
        """That of some of the prompts."""
        return Reading([layer[:, indices] for layer in self.layers], self.mask[indices], self.positions[indices])

    def without_last(self) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """A cache of the prompts without their last token, its mask (B, T - 1), the last token's position (B, 1)."""
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        for number, layer in enumerate(self.layers if self.mask.shape[1] > 1 else []):
            cache.update(*layer[..., :-1, :], number)
        return cache, self.mask[:, :-1], self.positions[:, -1:]


def positions_for(model: PreTrainedModel, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument for architectures that take positions; the others have them from the mask."""
    takes = "position_ids" in inspect.signature(models.without_peft(model).forward).parameters
    return {"position_ids": positions} if takes else {}


@torch.no_grad()
def read(model: PreTrainedModel, prompts: list[list[int]], pad: int) -> Reading:
    """Read prompts (token ids) without answering them."""
    ids, mask = fill(prompts, pad, next(model.parameters()).device, left=True)
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), Cache(layer_class_to_replicate=RoomyLayer)
    model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1,
        **positions_for(model, positions),
    )  # fmt: skip
    return Reading.of(cache, mask, positions)


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF samples: the first token whose cumulative probability exceeds its row's uniform number.

    One uniform number per token makes a sample a function of the numbers alone, whatever the batch around it.

    Args:
        probabilities: (B, V) fp32. uniforms: (B,) in [0, 1).
    """
    cdf = probabilities.cumsum(-1, dtype=torch.float64)
    threshold = uniforms.to(cdf)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, threshold, right=True)[:, 0].clamp(max=cdf.shape[-1] - 1)


def choose(
    logits: torch.Tensor, uniforms: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B,) tokens, their log-probabilities and the entropies of their distributions; greedy without `uniforms`, where
    there is no use for the latter two, which are NaN.

    Args:
        logits: (B, V) fp32. uniforms: (B,) in [0, 1).
    """
    if uniforms is None:
        unknown = logits.new_full(logits.shape[:1], float("nan"))
        return logits.argmax(-1), unknown, unknown
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    probabilities = logp.exp()
    tokens = draw(probabilities, uniforms)
    return tokens, logp.gather(1, tokens[:, None])[:, 0], -(probabilities * logp).sum(-1)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response: EOS, and those of the base model's generation config (`<|user|>` of ChatGLM3)."""
    published = model.generation_config.eos_token_id
    listed = published if isinstance(published, list) else [] if published is None else [published]
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def decoded(tokenizer: PreTrainedTokenizerBase, responses: list[list[int]], stops: Collection[int]) -> list[str]:
    """The responses' texts, without special tokens and without the stop token, which need not be a special one."""
    ended = [response[:-1] if response and response[-1] in stops else response for response in responses]
    return tokenizer.batch_decode(ended, skip_special_tokens=True)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    stops: Collection[int],
    pad: int,
    max_new_tokens: int,
    uniforms: torch.Tensor | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    keep_reading: bool = False,
    fixed: bool | None = None,
) -> Generated:
    """Decode responses to `prompts` side by side.

    Args:
        model: a causal language model (PEFT or plain) in eval mode.
        prompts: B lists of token ids.
        stops: tokens of which any ends a response.
        uniforms: (B * samples, max_new_tokens) numbers in [0, 1) that decide the samples; None decodes greedily.
        samples: responses to each prompt, which is read once for all of them; they stand next to each other.
        keep_reading: keep what was computed of the prompts.
        fixed: rows that are done stay, and so do the shapes (`decode_fixed`); None: on a GPU, for models that take a
            mask of one's own.
    """
    device = next(model.parameters()).device
    ids, mask = fill(prompts, pad, device, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    count = len(prompts) * samples
    result = Generated(*([[] for _ in range(count)] for _ in range(3)))  # type: ignore[arg-type]  # three fields of four
    alive, ends = torch.arange(count), torch.tensor(list(stops), device=device)
    fixed = device.type == "cuda" and shares_prompts(model) if fixed is None else fixed
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    # The last position by its index: the slice that a plain 1 stands for is not contiguous, and for that PyTorch's
    # product on a CPU copies the output layer once for every row (1.8 GB in bf16 for 32 rows of the demo's model).
    last = torch.tensor([-1], device=device)
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=last,
            **positions_for(model, positions),
        )  # fmt: skip
        logits = output.logits[:, -1].float()
        if step == 0 and keep_reading:
            result.reading = Reading.of(cache, mask, positions)
        if step == 0 and samples > 1:
            cache.batch_repeat_interleave(samples)
            logits, mask, positions = (part.repeat_interleave(samples, 0) for part in (logits, mask, positions))
        if fixed:
            decode_fixed(model, cache, mask, positions, logits, ends, max_new_tokens, uniforms, temperature, result)
            return result
        numbers = None if uniforms is None else uniforms[alive, step].to(device)
        tokens, *measured = choose(logits, numbers, temperature)
        values = (part.tolist() for part in (alive, tokens, *measured))
        for row, token, logprob, entropy in zip(*values, strict=True):
            result.responses[row].append(token)
            result.logprobs[row].append(logprob)
            result.entropies[row].append(entropy)
        running = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
        if not len(running):
            break
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if len(running) < len(alive):
            cache.batch_select_indices(running)
            ids, positions, mask = ids[running], positions[running], mask[running]
            alive = alive[running.cpu()]
    return result


BUCKET = 64  # columns: kernels like round numbers
LOOK = 16  # steps between looks at whether all rows are done, for each of which the device is waited for
WARM = 3  # steps before one is captured


def decode_fixed(
    model: PreTrainedModel, cache: Cache, mask: torch.Tensor, positions: torch.Tensor, logits: torch.Tensor,
    ends: torch.Tensor, max_new_tokens: int, uniforms: torch.Tensor | None, temperature: float, result: Generated,
) -> None:  # fmt: skip
    """The steps of `generate` after B prompts are read, in shapes that stay, as a CUDA graph where there is a GPU.

    Args:
        cache, mask, positions, logits: of the prompts: mask and positions (B, T), logits (B, V) of the first token. The
            cache is emptied.
        result: filled.
    """
    (rows, length), device = mask.shape, mask.device
    columns = -(-(length + max_new_tokens) // BUCKET) * BUCKET
    column, step = torch.tensor([length], device=device), torch.tensor([0], device=device)
    layers, dtype = [], cache.layers[0].keys.dtype
    for layer in cache.layers:
        store = layer.store.new_zeros(*layer.store.shape[:3], columns, layer.store.shape[-1])
        store[..., :length, :] = layer.store[..., :length, :]
        layers.append(FixedLayer(store, column))
        layer.store = layer.keys = layer.values = None
    held = Cache(layers=layers)
    hidden = torch.full((rows, 1, 1, columns), torch.finfo(dtype).min, dtype=dtype, device=device)
    hidden[:, 0, 0, :length].masked_fill_(mask.bool(), 0.0)
    tokens, positions = torch.zeros(rows, 1, dtype=torch.long, device=device), positions[:, -1:] + 1
    numbers = None if uniforms is None else uniforms.to(device)
    said = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
    found = (said, *(torch.zeros(rows, max_new_tokens, device=device) for _ in range(2)))
    done = torch.zeros(rows, dtype=torch.bool, device=device)

    def keep(logits: torch.Tensor) -> None:
        chosen = choose(logits, None if numbers is None else numbers.index_select(1, step)[:, 0], temperature)
        for part, values in zip(found, chosen, strict=True):
            part.index_copy_(1, step, values[:, None])
        tokens.copy_(chosen[0][:, None])
        done.logical_or_((tokens == ends).any(1))
        step.add_(1)

    def advance() -> None:
        hidden.index_fill_(3, column, 0.0)
        output = model(
            input_ids=tokens, attention_mask=hidden, position_ids=positions, past_key_values=held, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        column.add_(1)
        positions.add_(1)
        keep(output.logits[:, -1].float())

    keep(logits)
    take, made = advance, 1
    while made < max_new_tokens and (made % LOOK or not done.all()):
        if made == WARM and device.type == "cuda" and max_new_tokens > LOOK:
            take = captured(advance)
        take()
        made += 1
    stops = set(ends.tolist())
    for row, (own, *measured) in enumerate(zip(*(part[:, :made].tolist() for part in found), strict=True)):
        end = next((place for place, token in enumerate(own) if token in stops), made - 1) + 1
        result.responses[row], result.logprobs[row], result.entropies[row] = (part[:end] for part in (own, *measured))


def captured(function: Callable[[], None]) -> Callable[[], None]:
    """`function`, which works on the same tensors at every call, as a CUDA graph; itself where that cannot be had."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log(f"decoding: no CUDA graph ({str(error).splitlines()[0]:.100}); every step is launched by itself")
        return function
    return graph.replay
