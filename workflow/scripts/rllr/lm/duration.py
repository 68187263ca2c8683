"""How long a stage takes: what passes through the model, by the speed of a device. No time of loading or writing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rllr import gpus

CACHE = 7.5e-5  # bytes of keys and values of a token, by parameter, in 16 bits: a 7B model without grouped heads


@dataclass(frozen=True)
class Work:
    """What passes through the model in a stage, on all devices together.

    Attributes:
        trained: tokens, forward and backward.
        read: tokens, forward alone.
        steps: tokens decoded one after the other on each device; each takes a reading of all weights.
        held: tokens whose keys and values such a step reads besides.
    """

    trained: float = 0
    read: float = 0
    steps: float = 0
    held: float = 0


def answering(answers: int, prompt: float, room: int, side_by_side: int) -> Work:
    """Of `answers` answers to prompts of `prompt` tokens, half their room long in the mean, the longest all of it."""
    length = prompt + room / 2
    rows = min(answers, side_by_side)
    return Work(read=answers * length, steps=-(-answers // side_by_side) * room, held=rows * length)


def rl(config: dict, prompts: int, validation: int, prompt: float, rewards: int, processes: int) -> Work:
    """Of a PPO stage.

    Args:
        config: its resolved config, with numbers for `auto`. prompts, validation: rows. prompt: their mean tokens.
        rewards: reward models.
    """
    room, length = config["max_new_tokens"], prompt + config["max_new_tokens"] / 2
    tokens = prompts * config["epochs"] * config["samples_per_prompt"] * length
    iterations = -(-prompts // config["batch_size"]) * config["epochs"]
    responses = -(-config["batch_size"] // processes) * config["samples_per_prompt"]
    side_by_side = config["rollout_batch_size"]
    rollouts = iterations * -(-responses // side_by_side)
    validations = iterations // (config["validate_iterations"] or iterations or 1) + 1
    rollouts += validations * -(-validation // side_by_side)
    functions = 2 if config["baseline"] == "value" else 1  # policy and value function
    return Work(
        trained=tokens * functions * config["update_epochs"],
        read=tokens * (2 + rewards),  # the policy that writes, the reference, the rewards
        steps=rollouts * room,
        held=min(responses, side_by_side) * length,
    )


@dataclass(frozen=True)
class Device:
    """Speeds: floating-point operations a second in a whole model's matrix products, bytes a second read from memory,
    and seconds that a decoded token takes at least.
    """

    operations: float
    reading: float
    token: float = 0


# A GPU of the 80 GB class in 16 bits: half of an A100's peak, three quarters of its bandwidth, no CUDA graph.
CLUSTER = Device(1.5e14, 1.5e12, 5e-3)


def here(width: int) -> Device:
    """This machine's device at half of its speed in large matrix products of `width` bytes, measured for a moment."""
    return Device(0.5 * matmul_speed(width), reading_speed())


def seconds(
    parameters: float, work: Work, device: Device, width: int, cache: float, recompute: bool, processes: int
) -> float:
    """Estimated time of a stage.

    Args:
        width: bytes of a weight. cache: bytes of a token's keys and values. recompute: gradient checkpointing.
    """
    passes = work.trained * (3 if recompute else 2) + work.read  # frozen weights: no pass for their gradients
    step = max(device.token, (parameters * width + work.held * cache) / device.reading)
    return 2 * parameters * passes / processes / device.operations + work.steps * step


def matmul_speed(width: int) -> float:
    """Floating-point operations per second of a large matrix product on the device, measured for a moment."""
    import torch

    device = "cuda" if gpus.usable() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.float32 if width == 4 else torch.bfloat16)
    return 2 * size**3 / timed(lambda: (a @ a).sum().item())


def reading_speed() -> float:
    """Bytes per second that the device reads and writes, measured for a moment."""
    import torch

    a = torch.ones(2**26, device="cuda" if gpus.usable() else "cpu")
    b = torch.empty_like(a)
    return 2 * a.nbytes / timed(lambda: b.copy_(a)[-1].item())


def timed(function: Callable[[], float]) -> float:
    """Seconds of a function that ends with a number from the device, the second time."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
