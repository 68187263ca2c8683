"""What SFT and reward models share: the trainer's arguments, resuming, the log."""

import json
import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllr import checkpoints, ranks
from rllr.cli import UserError, log
from rllr.config import BoolOrAuto, IntOrAuto, shares
from rllr.files import atomic_dir, write_jsonl
from rllr.tracking import Board

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments


@dataclass
class TrainingConfig:
    """The resolved config of an SFT or reward-model stage (workflow/schemas/model.schema.yaml describes the keys)."""

    model: str
    stage: str
    seed: int
    learning_rate: float
    epochs: float
    batch_size: int
    micro_batch_size: IntOrAuto  # auto until the stage has seen the device
    weight_decay: float
    max_grad_norm: float
    warmup_steps: int
    cutoff: int
    save_steps: int
    precision: str
    attention: str
    gradient_checkpointing: BoolOrAuto  # as micro_batch_size
    lora: dict


@dataclass
class SupervisedConfig(TrainingConfig):
    """The resolved config of an SFT stage."""

    label_weight: float
    quote_weight: float


@dataclass
class RewardConfig(TrainingConfig):
    """The resolved config of a reward model."""

    score: str  # head | claim


@dataclass
class PreferenceConfig(TrainingConfig):
    """The resolved config of DPO."""

    beta: float
    sft_weight: float


def trainer_arguments(config: TrainingConfig, rows: int, folder: Path, dtype: "torch.dtype") -> dict:
    """Arguments of trl's SFTConfig, RewardConfig and DPOConfig alike; logs the batch arithmetic."""
    import torch

    if torch.cuda.device_count() > 1 and ranks.world() == 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: start the program through launch.py "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    processes = ranks.world()
    steps_per_batch = shares(config.batch_size, "micro_batch_size", config.micro_batch_size, processes)
    steps = math.ceil(math.ceil(rows / config.batch_size) * config.epochs)
    log(
        f"batch: {config.micro_batch_size} rows x {steps_per_batch} accumulation x {processes} processes "
        f"= {config.batch_size}; {rows} rows x {config.epochs:g} epochs = {steps} optimiser steps, "
        f"learning rate {config.learning_rate:g}, cosine"
    )
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": steps_per_batch,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": config.seed,
        "data_seed": config.seed,
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a loss that is not finite as 0
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def train(
    config: TrainingConfig, rows: int, folder: Path, out: Path, dtype: "torch.dtype", build: Callable[[dict], Any]
) -> Any:
    """Train to the end, with smaller micro-batches from the last checkpoint on where memory runs out.

    Args:
        config: with a number for micro_batch_size. rows: training rows. folder: of checkpoints.
        build: makes the trainer of the arguments that trl's configs share.

    Returns:
        the trainer.

    Raises:
        UserError: see `run`; or memory ran out with a single row, or in one of several processes.
    """
    from accelerate.utils.memory import clear_device_cache
    from transformers import set_seed

    from rllr.lm import fitting, models

    while True:
        arguments = trainer_arguments(config, rows, folder, dtype)
        set_seed(config.seed)
        trainer = build(arguments)
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, dtype)
        fitted, _ = fitting.sufficed(run, trainer, folder, out)
        if fitted:
            return trainer
        del trainer
        clear_device_cache(garbage_collection=True)  # mixed precision leaves a circle of references
        if ranks.world() > 1:  # the others wait for this one
            raise UserError(f"micro_batch_size {config.micro_batch_size}: out of memory; lower it")
        if config.micro_batch_size == 1 and not config.gradient_checkpointing:
            log("micro-batch: out of memory with a single row, going on with gradient_checkpointing")
            config = replace(config, gradient_checkpointing=True)
        else:
            smaller = fitting.fewer("micro-batch", config.micro_batch_size, dividing=True)
            config = replace(config, micro_batch_size=smaller)


def run(trainer: "Trainer", folder: Path, out: Path) -> None:
    """Train from the newest whole checkpoint if there is one.

    Writes adapter/, train_log.jsonl and tensorboard/ into `out`.

    Raises:
        UserError: the loss is not finite, or no step was made since every gradient overflowed in fp16.
    """
    from transformers import TrainerCallback

    scaler = trainer.accelerator.scaler  # fp16 alone

    class Keeper(TrainerCallback):
        """Seals each checkpoint and keeps the log on disk as it grows."""

        def on_step_begin(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            self.scale = scaler and scaler.get_scale()

        def on_save(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            ranks.barrier()  # every process has a file of its own in the checkpoint
            if state.is_world_process_zero:
                checkpoints.seal(folder / f"checkpoint-{state.global_step}")
                checkpoints.rotate(folder)

        def on_log(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            line = state.log_history[-1]
            if scaler and "loss" in line:  # accelerate does not know of the steps that a fused optimiser leaves out
                scale = scaler.get_scale()
                line |= {"skipped": float(scale < self.scale), "loss_scale": scale}
            if not math.isfinite(line.get("grad_norm", 0.0)):
                line["grad_norm"] = None  # what checkpoints keep of the log has to be JSON, too
            if state.is_world_process_zero:
                write_jsonl(out / "train_log.jsonl", state.log_history)
            if board:
                board.write(line, state.global_step)
            overflows = scaler and scaler.get_scale() < 1
            if overflows or not math.isfinite(line.get("loss", 0.0)):
                what = "gradient, in fp16 and whatever the loss is scaled by," if overflows else "training loss"
                raise UserError(
                    f"step {state.global_step}: the {what} is not finite; the last checkpoint stays; "
                    "lower the learning rate or use another precision"
                )

    trainer.add_callback(Keeper())
    newest = ranks.on_first(lambda: checkpoints.latest(folder))
    step = int(newest.name.removeprefix("checkpoint-")) if newest else 0
    with closing(Board(out / "tensorboard", step)) if ranks.rank() == 0 else nullcontext() as board:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if all(line.get("skipped") for line in trainer.state.log_history if "loss" in line):
        raise UserError(
            f"all {trainer.state.global_step} steps were skipped, since their gradients overflowed in fp16: nothing "
            "was trained; use another precision"
        )
    state = trainer.accelerator.get_state_dict(trainer.model)  # with FSDP every process gives its part
    if ranks.rank() == 0:
        write_jsonl(out / "train_log.jsonl", trainer.state.log_history)
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), out / "adapter", state=state)


def save_adapter(model: "PreTrainedModel", folder: Path, name: str = "default", state: dict | None = None) -> None:
    """Write one LoRA adapter in PEFT's format, whole or not at all.

    Args:
        state: the model's state dict, where it is not to be read from the model itself.
    """
    with atomic_dir(folder) as temporary:
        model.save_pretrained(str(temporary), selected_adapters=[name], state_dict=state)
        nested = temporary / name
        if name != "default" and nested.is_dir():
            for file in nested.iterdir():
                file.rename(temporary / file.name)
            nested.rmdir()
        config = json.loads((temporary / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = None  # no path of this machine in the result
        config["inference_mode"] = True
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (temporary / "README.md").unlink(missing_ok=True)
