"""What trl's trainers share: every row once an epoch, whatever the number of processes; logits where needed."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from rllr import ranks

if TYPE_CHECKING:
    from datasets import Dataset


class OptimiserBatches(BatchRebalanceSampler):
    """Micro-batches of rows of about one length, sorted within each optimiser batch, whose rows stay as drawn.

    The last batch is filled up with the blank row, which weighs nothing; transformers' own sampler doubles rows there.

    Args:
        lengths: tokens of each row of the dataset; the last row is the blank one.
    """

    def __init__(
        self, lengths: list[int], batch_size: int, accumulation: int, processes: int, rank: int, seed: int
    ) -> None:
        rows = len(lengths) - 1
        super().__init__(lengths[:-1], batch_size, processes, accumulation, seed=seed, rank=rank, drop_last=False)
        self.lengths = lengths
        self.rows = rows

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        groups = self.dp_size * self.grad_accum
        for start in range(0, self.rows, self.effective_batch_size):
            batch = order[start : start + self.effective_batch_size]
            yield from self._yield_global_batch(batch + [self.rows] * (groups - len(batch)))


class EveryRowOnce:
    """Mixin for a trl trainer: `OptimiserBatches`, and a loss normalised over the whole optimiser batch.

    The loss is a trainer's `loss_sum(model, inputs)` divided by `num_items_in_batch`, which counts over all processes,
    times the number of processes, because DDP averages gradients. `items(batch)` is what a micro-batch adds to that
    number.
    """

    loss_is_scaled_for_ga = True
    args: Any  # these, and `accelerator`, are the trainer's
    train_dataset: Any
    accelerator: Any
    items: Callable[[dict], Any]
    loss_sum: Callable[[torch.nn.Module, dict], torch.Tensor]
    pairs: torch.Tensor | None = None  # (2,) those ranked right, and all, since the last line of the log

    def _get_train_sampler(self, train_dataset: "Dataset | None" = None) -> OptimiserBatches:
        args, dataset = self.args, train_dataset if train_dataset is not None else self.train_dataset
        self.batches = OptimiserBatches(
            dataset["length"],
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            args.seed,
        )
        return self.batches

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        self.batches.set_epoch(epoch)  # resuming within an epoch, accelerate's wrappers do not pass it on
        return super()._run_epoch(*args, epoch=epoch, **kwargs)  # type: ignore[misc]  # the trainer's

    def count_pairs(self, better: torch.Tensor, real: torch.Tensor) -> None:
        """Note the pairs of a micro-batch whose chosen side is ahead, for the log; both (B,) bool.

        Args:
            real: the two sides differ.
        """
        found = torch.stack([(better & real).sum(), real.sum()]).float()
        self.pairs = found if self.pairs is None else self.pairs + found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the accuracy on the step's pairs, those of all processes."""
        if self.pairs is not None:
            right, pairs = ranks.total(self.pairs).tolist()
            logs = {**logs, "pair_accuracy": right / pairs} if pairs else logs
            self.pairs = None
        super().log(logs, *args, **kwargs)  # type: ignore[misc]  # the trainer's

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        return self.loss_sum(model, inputs) / num_items_in_batch * self.accelerator.num_processes

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        return self.accelerator.reduce(sum(self.items(batch) for batch in batch_samples).to(device))

    def logits_at(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """(N, V) logits of a causal model at N positions: unembedding the prompts, too, is half of a step's time.

        Other hidden states are dropped on the way to the output layer, so that the call still goes through whatever
        wraps the model (DDP).
        """
        unembed = self.accelerator.unwrap_model(model).get_base_model().get_output_embeddings()
        hook = unembed.register_forward_pre_hook(lambda _, hidden: (hidden[0][rows, places],))
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            hook.remove()
