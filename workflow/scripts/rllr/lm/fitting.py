"""How many rows go side by side: as many as the budget allows, and fewer where memory runs out after all.

That decides time, not results, but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from rllr import ranks
from rllr.cli import UserError, log
from rllr.config import AUTO
from rllr.lm import budget

MOST = 512  # rows
UNKNOWN = 8  # rows to start from where the budget does not know the architecture
KEYS = {"ppo": ("micro_batch_size", "rollout_batch_size"), "predict": ("batch_size",)}  # others: micro_batch_size
ENOUGH = 1024  # tokens of a micro-batch that use a device well

found_to_fit: dict[str, int] = {}  # what is done -> rows at a time, where memory once ran out in this process


def settled(config: Any, base: Path, section: str, rewards: int = 0) -> Any:
    """A stage's config with values in place of `auto`, and a line in the log about each.

    Activations are recomputed (gradient_checkpointing) where a micro-batch does not fit without: the one that is set,
    or one of ENOUGH tokens. A micro-batch divides its share of the optimiser batch. A rollout batch is not below the
    responses of an iteration, whatever the budget says: it counts the longest rows allowed, and a second rollout takes
    as long as the first.

    Args:
        config: dataclass of the stage. rewards: as for `budget.memory`.
    """
    sizes = budget.Sizes.read(base)
    free, device = budget.available_memory()
    if getattr(config, "gradient_checkpointing", None) == AUTO:
        rows = config.micro_batch_size
        if rows == AUTO:
            rows = min(-(-ENOUGH // config.cutoff), config.batch_size // ranks.world())
        tried = {"micro_batch_size": rows, "gradient_checkpointing": False}
        tried |= {"rollout_batch_size": 1} if section == "ppo" else {}  # rollouts have no backward pass
        values = {**budget.as_run(asdict(config), section), **tried}
        fits = sizes is not None and budget.memory(sizes, values, section, rewards)["peak"] <= free
        recompute = not all(ranks.gather([fits]))
        config = replace(config, gradient_checkpointing=recompute)
        log(f"gradient_checkpointing: auto, {'on' if recompute else 'off'}, for {rows} rows at a time on {device}")
    keys = [key for key in KEYS.get(section, ("micro_batch_size",)) if getattr(config, key) == AUTO]
    values = {**budget.as_run(asdict(config), section), **dict.fromkeys(keys, 1)}
    for key in keys:
        share = config.batch_size // ranks.world() if section != "predict" else MOST
        share *= config.samples_per_prompt if section == "ppo" else 1
        for size in [2**power for power in range(MOST.bit_length())]:
            need = budget.memory(sizes, {**values, key: size}, section, rewards)["peak"] if sizes else 0
            if need > free or size > (MOST if sizes else UNKNOWN):
                break
            if section in ("ppo", "predict") or share % size == 0:
                values[key] = size
        values[key] = min(ranks.gather([values[key]]))  # accumulation goes in step on all processes
        if section == "ppo":  # that many responses has an iteration
            values[key] = max(values[key], share) if key == "rollout_batch_size" else min(values[key], share)
        log(f"{key}: auto, {values[key]} rows at a time on {device}")
    return replace(config, **{key: values[key] for key in keys})


def sufficed(function: Callable, *args: Any) -> tuple[bool, Any]:
    """(True, what the function returns), or (False, None) where memory ran out, which is then free again."""
    try:
        return True, function(*args)
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
    clear_device_cache(garbage_collection=True)  # out of `except`, where the traceback still holds the tensors
    return False, None


def fewer(what: str, size: int, dividing: bool = False) -> int:
    """The number of rows to try after `size` did not fit: half.

    Args:
        dividing: or less, so that it divides `size` and batches still add up.

    Raises:
        UserError: it was one row.
    """
    if size == 1:
        raise UserError(f"{what}: out of memory with a single row; lower cutoff, or use a larger device")
    smaller = next(number for number in range(size // 2, 0, -1) if not dividing or size % number == 0)
    log(f"{what}: out of memory with {size} rows at a time, going on with {smaller}")
    return smaller


def parts(
    what: str, items: Sequence, size: int, function: Callable[[Any], Any], together: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Yield `(part, function(part))` over parts of `items`, at most `size` long; where memory runs out, smaller ones.

    Args:
        what: told in the log; what fitted is kept in mind under this name.
        together: other processes wait for this one within `function`, which they do not call again.

    Raises:
        UserError: memory ran out with a single row, or where it is done `together`.
    """
    start = 0
    while start < len(items):
        part = items[start : start + min(size, found_to_fit.get(what, size))]
        fitted, result = sufficed(function, part)
        if fitted:
            yield part, result
            start += len(part)
        elif together:
            raise UserError(f"{what}: out of memory with {len(part)} rows at a time; lower micro_batch_size")
        else:
            found_to_fit[what] = fewer(what, len(part))
