"""Will it fit? Estimated before a long run, which is refused if it cannot.

Memory is counted for the longest rows that the cutoff allows, with PyTorch's sdpa attention (BLOOM has only the eager
one, which keeps T x T matrices), as what PyTorch reserves: CUDA's own context comes on top (CONTEXT). Symbols: H hidden
size, I inner size, V vocabulary, T tokens of a row.
"""

import os
import resource
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rllr import gpus, ranks
from rllr.base import NO_SHARING
from rllr.cli import UserError, log
from rllr.files import read_json
from rllr.lm import duration

BYTES = {"auto": 2, "bf16": 2, "fp16": 2, "fp32": 4}
OVERHEAD = 1.1  # fragmentation and workspaces
CONTEXT = 0.7 * 2**30  # bytes that CUDA takes on a GPU before anything is computed
UNTRAINED = 4  # times a micro-batch: responses of pairs side by side where nothing is trained
ADAM = 16  # bytes per trained parameter: fp32 weight, gradient, two moments


@dataclass(frozen=True)
class Sizes:
    """What decides memory, of a model's config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    gated: bool = True  # three matrices in the feed-forward part, else two
    tied: bool = False  # one matrix for embedding and output
    eager: bool = False  # attention without sdpa
    alibi: bool = False  # an additive mask of one T x T matrix per head
    shares: bool = True  # responses to one prompt are computed beside each other, under a T x T mask

    @classmethod
    def read(cls, folder: Path) -> "Sizes | None":
        """The sizes of a base folder; None for architectures that name them otherwise."""
        config = read_json(folder / "config.json")
        family, hidden = config["model_type"], config.get("hidden_size")
        heads = config.get("num_attention_heads", config.get("n_head"))
        layers = config.get("num_hidden_layers", config.get("n_layer"))
        inner = 4 * hidden if family == "bloom" and hidden else config.get("intermediate_size")
        if None in (hidden, heads, layers, inner):
            return None
        return cls(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            inner=inner,
            vocab=config["vocab_size"],
            gated=family != "bloom",
            tied=config.get("tie_word_embeddings", family == "bloom"),
            eager=family == "bloom",
            alibi=family == "baichuan2-13b",
            shares=family not in NO_SHARING,
        )

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    def cache(self, width: int) -> int:
        """Bytes of a token's keys and values in all layers."""
        return self.layers * 2 * self.keys * width

    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps, by the names that LoRA targets go by."""
        attention = {name: (self.hidden, self.keys) for name in ("k_proj", "v_proj")}
        attention |= {"q_proj": (self.hidden, self.queries), "o_proj": (self.queries, self.hidden)}
        up = {name: (self.hidden, self.inner) for name in ("gate_proj", "up_proj")[not self.gated :]}
        return attention | up | {"down_proj": (self.inner, self.hidden)}

    def parameters(self) -> int:
        """Weights of all matrices (biases and norms, under 0.1%, are left out)."""
        layer = sum(a * b for a, b in self.linears().values())
        return self.layers * layer + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, lora: dict) -> int:
        linears = self.linears() | {"query_key_value": (self.hidden, self.queries + 2 * self.keys)}
        linears |= {"gate_up_proj": (self.hidden, 2 * self.inner)}
        return self.layers * lora["r"] * sum(sum(linears.get(name, (0, 0))) for name in lora["target_modules"])


def square_matrices(sizes: Sizes, rows: int, length: int, width: int) -> tuple[int, int]:
    """Bytes of T x T matrices: (kept for the backward pass by each layer, in use once at a time)."""
    matrix = rows * sizes.heads * length**2
    if sizes.eager:  # the softmax in fp32, and once more in the model's dtype; scores, mask, sum
        return matrix * (4 + width % 4), matrix * 3 * width
    return 0, matrix * 2 * width if sizes.alibi else 0  # the mask, shared by all layers, while it is built


def kept_for_backward(
    sizes: Sizes, lora: dict, rows: int, length: int, width: int, checkpointing: bool, masked: bool = False
) -> int:
    """Bytes of activations that the backward pass of `rows` rows needs (frozen weights, LoRA, `width` bytes each).

    Args:
        masked: under a mask sdpa has keys and values once for every query head.
    """
    norms = 2 * 4 * sizes.hidden  # computed in fp32
    attention = width * (2 * sizes.queries + 2 * (sizes.queries if masked else sizes.keys))  # q, k, v and the result
    inner = width * sizes.inner * (3 if sizes.gated else 1)
    dropout = (width + 1) * sizes.hidden if lora["dropout"] else 0
    adapters = len(lora["target_modules"]) * dropout + width * sizes.hidden
    kept, once = square_matrices(sizes, rows, length, width)
    layer = rows * length * (norms + attention + inner + adapters) + kept
    if checkpointing:  # every layer's input, and one layer at a time in full
        return sizes.layers * rows * length * width * sizes.hidden + layer + once
    return sizes.layers * layer + once


def gradients(sizes: Sizes, rows: int, length: int, width: int) -> int:
    """Bytes of the gradients of one layer's activations, in use at a time in the backward pass."""
    return rows * length * (2 * 4 * sizes.hidden + width * (2 * sizes.queries + 2 * sizes.keys + 2 * sizes.inner))


def logits(sizes: Sizes, tokens: int, width: int) -> int:
    """Bytes of logits, their fp32 copy, log-probabilities and gradients."""
    return tokens * sizes.vocab * (12 + 2 * width)


def group_mask(groups: int, length: int, width: int) -> int:
    """Bytes of the mask of groups of responses, and of the truth values that it is made from."""
    return groups * length**2 * (width + 3)


def reading(sizes: Sizes, rows: int, length: int, width: int) -> int:
    """Bytes of a pass without gradients."""
    once = sum(square_matrices(sizes, rows, length, width))
    return rows * length * width * (4 * sizes.hidden + 3 * sizes.inner) + once


def generation(sizes: Sizes, rows: int, length: int, width: int, caches: int = 1) -> float:
    """Bytes of the KV caches of `rows` rows, of reading their prompts and of drawing a token.

    Args:
        caches: how many there are at a time. One layer's is there twice while it grows or rows leave it.
    """
    cache = rows * length * sizes.cache(width)
    drawing = rows * sizes.vocab * (36 + width)  # the distribution in fp32, its sum in fp64
    return cache * (caches + 1 / sizes.layers) + max(reading(sizes, rows, length, width), drawing)


def memory(sizes: Sizes, config: dict, section: str, rewards: int = 0) -> dict[str, float]:
    """Bytes on one device that a stage needs, without CUDA's context.

    Args:
        config: a resolved stage config.
        section: sft, reward, dpo, ppo or predict.
        rewards: reward models that a PPO run keeps as adapters; above 0: prediction loads one beside the model.

    Returns:
        `floor`: weights, adapters and their optimiser, whatever the batch; `peak`: with the longest rows allowed.
    """
    width, length = BYTES[config["precision"]], config["cutoff"]
    if config["attention"] == "eager":
        sizes = replace(sizes, eager=True)
    floor = sizes.parameters() * width
    if section == "predict":  # what was read of the prompts is kept for the labels' probabilities
        floor *= 2 if rewards else 1
        peak = generation(sizes, config["batch_size"], length, width, caches=2)
        return {"floor": floor, "peak": OVERHEAD * (floor + peak)}
    lora, rows = config["lora"], config["micro_batch_size"]
    if section == "ppo":  # which has no dropout
        lora = {**lora, "dropout": 0.0}
    adapter = sizes.lora_parameters(lora)
    trained = 2 if section == "ppo" and config["baseline"] == "value" else 1  # policy and value function
    floor += adapter * (trained * ADAM + 4 * rewards)
    room = config.get("max_new_tokens", length)
    room = length if room == "auto" else room
    # Responses beside each other, and the groups that they make: the sides of a pair, the samples of a prompt, and
    # under all_labels the claims of all labels, a few tokens each.
    together = config["samples_per_prompt"] if section == "ppo" else 2 if section in ("reward", "dpo") else 1
    rows *= together if section != "ppo" else 1

    def masks(responses: int) -> int:
        side_by_side = min(together, responses)
        longest = length + (side_by_side - 1) * room
        if not sizes.shares:
            return 0
        claims = group_mask(responses, length, width) if config.get("baseline") == "all_labels" else 0
        return max(claims, group_mask(responses // side_by_side, longest, width) if side_by_side > 1 else 0)

    masked = masks(rows) > 0
    peak = kept_for_backward(sizes, lora, rows, length, width, config["gradient_checkpointing"], masked) + masks(rows)
    peak += gradients(sizes, rows, length, width)
    if section == "reward":
        peak += rows * length * sizes.hidden * 2 * 4  # the head's input in fp32, and its gradient
    else:
        peak += logits(sizes, rows * room, width)
    if section in ("reward", "dpo"):  # held-out pairs; the reference's pass
        read = UNTRAINED * config["micro_batch_size"]
        scoring = reading(sizes, read, length, width) + masks(read)
        if section == "dpo":
            scoring += logits(sizes, read * room, width)
        peak = max(peak, scoring)
    if section == "ppo":
        rollout = config["rollout_batch_size"]
        scoring = reading(sizes, rollout, length, width) + rollout * room * sizes.vocab * (12 + width) + masks(rollout)
        peak = max(peak, scoring, generation(sizes, rollout, length, width))
    return {"floor": floor, "peak": OVERHEAD * (floor + peak)}


def gib(count: float) -> str:
    """Bytes as GiB (MiB when small)."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def check_disk(folder: Path, needed: float, what: str) -> None:
    """Raise UserError if `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(next(f for f in [folder, *folder.absolute().parents] if f.exists())).free
    if needed > free:
        raise UserError(f"{folder}: {gib(needed)} needed for {what}, {gib(free)} free on this disk")


def available_memory() -> tuple[int, str]:
    """Bytes free on the device that would be used (a GPU's context is there already), and its name."""
    import torch

    if gpus.usable():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 2**63, "this machine"
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free, group = int(line.split()[1]) * 1024, control_group_room()
    share = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of this run on this machine
    return (group // share, "this job's control group") if group < free else (free // share, "this machine")


def control_group_room(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process's control group, or one around it, leaves it: a container, a job of a cluster (cgroup
    v2); inactive file cache, which makes room, does not count.
    """
    lines = proc.read_text().splitlines() if proc.is_file() else []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    room, folder = 2**63, root / own
    while folder.is_relative_to(root):
        try:
            most, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["inactive_file"]
            room = min(room, int(most) - int(used) + int(cache)) if most != "max" else room
        except (OSError, ValueError, KeyError):
            pass  # no limit that can be read
        folder = folder.parent
    return max(0, room)


def peak_memory() -> int:
    """Bytes so far: what PyTorch reserved on the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(estimate: float | None) -> None:
    """Log, at the end of a stage, what it took beside what `check` had estimated."""
    told = "" if estimate is None else f"; estimated for the longest rows: {gib(estimate)}"
    log(f"memory: {gib(peak_memory())} at its peak{told}")


def as_run(config: dict, section: str) -> dict:
    """A stage's config with what this machine takes for `auto`: precision, and the attention that trains on a CPU."""
    import torch

    from rllr.lm import models

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    dtype = models.dtype_of(config["precision"])
    attention = models.attention_for(config["attention"], dtype, training=section != "predict")
    return {**config, "precision": names[dtype], "attention": attention}


def check(base: Path, config: dict, section: str, work: duration.Work, out: Path, rewards: int = 0) -> float | None:
    """Log what a stage will take, memory and time; refuse it if it cannot fit.

    Args:
        base: folder of the model that the stage starts from.
        config: the resolved stage config.
        section, rewards: as for `memory`.
        out: folder of the stage's results and checkpoints.

    Returns:
        bytes at the peak with the longest rows; None where the architecture is not known.

    Raises:
        UserError: weights and optimiser alone exceed the device's memory, or checkpoints the disk.
    """
    sizes = Sizes.read(base)
    if sizes is None:
        return None
    config = as_run(config, section)
    need = memory(sizes, config, section, rewards)
    free, device = available_memory()
    if section != "predict":  # adapters with optimiser state; two checkpoints are kept while one is written
        check_disk(out, 3 * 2 * ADAM * sizes.lora_parameters(config["lora"]), "checkpoints")
    if need["floor"] > free:
        raise UserError(
            f"{config['model']} {config['stage']}: weights, adapters and optimiser alone need {gib(need['floor'])}, "
            f"{device} has {gib(free)} free; use a larger device or a smaller model"
        )
    width, recompute = BYTES[config["precision"]], bool(config.get("gradient_checkpointing"))
    expected = duration.seconds(
        sizes.parameters(), work, duration.here(width), width, sizes.cache(width), recompute, ranks.world()
    )
    decoding = f" and {work.steps:.0f} tokens decoded one after the other" if work.steps else ""
    log(
        f"estimate: {gib(need['floor'])} for weights and optimiser, up to {gib(need['peak'])} with the longest rows; "
        f"{gib(free)} free on {device}; about {expected / 60:.0f} min at half of its speed in matrix products{decoding}"
    )
    if need["peak"] > free:
        log("estimate: the longest rows may not fit: lower micro_batch_size or set gradient_checkpointing")
    return need["peak"]
