"""Will it fit, and how long will it take? Estimated before a long run, which is refused if it cannot fit.

Memory is counted for the longest rows that the cutoff allows, with PyTorch's sdpa attention (BLOOM has only the eager
one, which keeps T x T matrices). Symbols: H hidden size, I inner size, V vocabulary, T tokens of a row.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rllr.cli import UserError, log
from rllr.files import read_json

BYTES = {"auto": 2, "bf16": 2, "fp16": 2, "fp32": 4}
OVERHEAD = 1.1  # fragmentation and workspaces
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

    @classmethod
    def read(cls, folder: Path) -> "Sizes | None":
        """The sizes of a base folder; None for architectures that name them otherwise."""
        config = read_json(folder / "config.json")
        kind, hidden = config["model_type"], config.get("hidden_size")
        heads = config.get("num_attention_heads", config.get("n_head"))
        layers = config.get("num_hidden_layers", config.get("n_layer"))
        inner = 4 * hidden if kind == "bloom" and hidden else config.get("intermediate_size")
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
            gated=kind != "bloom",
            tied=config.get("tie_word_embeddings", kind == "bloom"),
            eager=kind == "bloom",
            alibi=kind == "baichuan2-13b",
        )

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

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


def kept_for_backward(sizes: Sizes, lora: dict, rows: int, length: int, width: int, checkpointing: bool) -> int:
    """Bytes of activations that the backward pass of `rows` rows needs (frozen weights, LoRA, `width` bytes each)."""
    norms = 2 * 4 * sizes.hidden  # computed in fp32
    attention = width * (2 * sizes.queries + 2 * sizes.keys)  # q, k, v and the result
    inner = width * sizes.inner * (3 if sizes.gated else 1)
    dropout = (width + 1) * sizes.hidden if lora["dropout"] else 0
    adapters = len(lora["target_modules"]) * dropout + width * sizes.hidden
    kept, once = square_matrices(sizes, rows, length, width)
    layer = rows * length * (norms + attention + inner + adapters) + kept
    if checkpointing:  # every layer's input, and one layer at a time in full
        return sizes.layers * rows * length * width * sizes.hidden + layer + once
    return sizes.layers * layer + once


def logits(sizes: Sizes, tokens: int, width: int) -> int:
    """Bytes of logits, their fp32 copy, log-probabilities and gradients."""
    return tokens * sizes.vocab * (12 + 2 * width)


def generation(sizes: Sizes, rows: int, length: int, width: int) -> int:
    """Bytes of the KV cache of `rows` rows and of reading their prompts."""
    cache = rows * length * sizes.layers * 2 * sizes.keys * width
    reading = rows * length * width * (4 * sizes.hidden + 3 * sizes.inner)
    return cache + reading + sum(square_matrices(sizes, rows, length, width))


def memory(sizes: Sizes, config: dict, section: str, rewards: int = 1) -> dict[str, float]:
    """Bytes on one device that a stage needs.

    Args:
        config: a resolved stage config.
        section: sft, reward, ppo or predict.
        rewards: reward models that a PPO run keeps as adapters.

    Returns:
        `floor`: weights, adapters and their optimiser, whatever the batch; `peak`: with the longest rows allowed.
    """
    width, length = BYTES[config["precision"]], config["cutoff"]
    if config["attention"] == "eager":
        sizes = replace(sizes, eager=True)
    floor = sizes.parameters() * width
    if section == "predict":
        return {"floor": floor, "peak": OVERHEAD * (floor + generation(sizes, config["batch_size"], length, width))}
    lora, rows = config["lora"], config["micro_batch_size"]
    adapter = sizes.lora_parameters(lora)
    floor += adapter * (ADAM if section != "ppo" else 2 * ADAM + 4 * rewards)  # PPO trains policy and value
    rows *= 2 if section == "reward" else 1  # chosen and rejected side by side
    peak = kept_for_backward(sizes, lora, rows, length, width, config["gradient_checkpointing"])
    if section == "sft":
        peak += logits(sizes, rows * length, width)
    if section == "ppo":
        room = config["max_new_tokens"]
        peak += logits(sizes, rows * (length if room == "auto" else room), width)
        rollout = config.get("rollout_batch_size", config["batch_size"])
        peak = max(peak, generation(sizes, rollout, length, width))
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
    """Bytes free on the device that would be used, and its name."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 2**63, "this machine"
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024, "this machine"


def matmul_speed(width: int) -> float:
    """Floating-point operations per second of a large matrix product on the device, measured for a moment."""
    import time

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.float32 if width == 4 else torch.bfloat16)
    for _attempt in range(2):  # the first one warms up
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        (a @ a).sum().item()
        elapsed = time.perf_counter() - start
    return 2 * size**3 / elapsed


def check(base: Path, config: dict, section: str, tokens: int, out: Path, rewards: int = 1) -> None:
    """Log what a stage will take; refuse it if it cannot fit.

    Args:
        base: folder of the model that the stage starts from.
        config: the resolved stage config.
        section: sft, reward, ppo or predict.
        tokens: tokens that pass through the model forward and backward, all epochs together.
        out: folder of the stage's results and checkpoints.

    Raises:
        UserError: weights and optimiser alone exceed the device's memory, or checkpoints the disk.
    """
    sizes = Sizes.read(base)
    if sizes is None:
        return
    need = memory(sizes, config, section, rewards)
    free, device = available_memory()
    if section != "predict":  # adapters with optimiser state; two checkpoints are kept while one is written
        check_disk(out, 3 * 2 * ADAM * sizes.lora_parameters(config["lora"]), "checkpoints")
    if need["floor"] > free:
        raise UserError(
            f"{config['model']} {config['stage']}: weights, adapters and optimiser alone need {gib(need['floor'])}, "
            f"{device} has {gib(free)} free; use a larger device or a smaller model"
        )
    recompute = config.get("gradient_checkpointing", False)
    passes = 1 if section == "predict" else 3 if recompute else 2  # frozen weights: no pass for their gradients
    seconds = 2 * sizes.parameters() * tokens * passes / (0.5 * matmul_speed(BYTES[config["precision"]]))
    log(
        f"estimate: {gib(need['floor'])} for weights and optimiser, up to {gib(need['peak'])} with the longest rows; "
        f"{gib(free)} free on {device}; about {seconds / 60:.0f} min at half of its speed in matrix products"
    )
    if need["peak"] > free:
        log("estimate: the longest rows may not fit: lower micro_batch_size or set gradient_checkpointing")
