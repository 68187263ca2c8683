"""Several processes: who writes, who waits, and sums over all of them. With one process all of this does nothing."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# torch is imported where it is used: programs look at their input first.


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def sharded() -> bool:
    """Whether each process holds a part of the model's weights (FSDP): then all compute at once or none does."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def start() -> None:
    """Join the other processes that `accelerate launch` started (gloo on CPU, nccl on GPUs)."""
    if world() == 1:
        return
    import torch

    from rllr import gpus  # which needs rllr.cli, which needs this

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if gpus.usable() else "gloo")


def barrier() -> None:
    if world() > 1:
        import torch

        torch.distributed.barrier()


def on_first(function: Callable[[], Any]) -> Any:
    """`function()`, called by the first process alone; the others wait and get its value."""
    value = [function() if rank() == 0 else None]
    if world() > 1:
        import torch

        torch.distributed.broadcast_object_list(value)
    return value[0]


def total(tensor: "torch.Tensor") -> "torch.Tensor":
    """Sum of `tensor` over all processes."""
    if world() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def gather(value: list) -> list:
    """The processes' lists, one after the other, on every process."""
    if world() == 1:
        return value
    import torch

    parts: list[list] = [[]] * world()
    torch.distributed.all_gather_object(parts, value)
    return [item for part in parts for item in part]


def share_out(items: list, values_of: Callable[[list], list], together: bool = False) -> list:
    """The values of `items`, in order, on every process; each computes those of its share, which may be empty.

    Args:
        together: every process computes all of them, as where each holds a part of the model (`sharded`).
    """
    if together:
        return values_of(items)
    mine = range(rank(), len(items), world())
    found = gather([*zip(mine, values_of([items[i] for i in mine]), strict=True)])
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]
