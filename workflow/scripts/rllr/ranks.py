"""Several processes: who writes, who waits, and sums over all of them. With one process all of this does nothing."""

import os

import torch
import torch.distributed as dist


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def start() -> None:
    """Join the other processes that `accelerate launch` or torchrun started (gloo on CPU, nccl on GPUs)."""
    if world() > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of `tensor` over all processes."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(value: list) -> list:
    """The processes' lists, one after the other, on every process."""
    if world() == 1:
        return value
    parts = [None] * world()
    dist.all_gather_object(parts, value)
    return [item for part in parts for item in part]
