"""A PPO run: epochs of iterations over the prompts, validation, checkpoints, log, outputs."""

import random
import shutil
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import set_seed

from rllr import checkpoints, ranks
from rllr.cli import UserError, log
from rllr.files import atomic_dir, read_json, stage_lock, write_json, write_jsonl
from rllr.lm import budget, duration, fitting, models, sampling
from rllr.lm.claims import claims_in
from rllr.lm.generation import decoded
from rllr.lm.lengths import answer_room
from rllr.lm.packing import describe_sharing
from rllr.lm.rewards import scores_claims
from rllr.lm.tokens import Encoder
from rllr.methods import GOLD, METHODS
from rllr.ppo.backbone import Backbone
from rllr.ppo.iteration import PPOConfig, Trainer
from rllr.ppo.scoring import Rewards, is_correct, threshold
from rllr.tasks import Task
from rllr.tracking import Board
from rllr.train.trainer import save_adapter

SAMPLES_SHOWN = 2  # rollouts per iteration written out as text, drawn at random


def order_of(epoch: int, prompts: int, seed: int) -> list[int]:
    """The order of the prompts in one epoch, a function of the seed alone."""
    order = list(range(prompts))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


@dataclass
class Records:
    """What a run has found so far: lines of train_log.jsonl and samples.jsonl, the best validation."""

    history: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=lambda: {"accuracy": -1.0, "iteration": 0})


@dataclass
class Run:
    """One stage.

    Attributes:
        config_file, base, data, rewards, out: the stage config, the merged sft_wrat model, the folders of the prepared
            data, of the reward models' stages, and of this stage.
        rows, validation: prompts to roll out, and those of the validation slice (with labels).
    """

    config: PPOConfig
    config_file: Path
    base: Path
    data: Path
    rewards: Path
    out: Path
    tasks: dict[str, Task]
    rows: list[dict]
    validation: list[dict]

    def train(self) -> None:
        """Train to the end, from the newest whole checkpoint if there is one; write the outputs."""
        ranks.start()
        with stage_lock(self.out):
            self.set_up()
            inputs = [self.config_file, self.base, *self.folders.values()]
            responses = METHODS[self.config.stage].answers_like  # they give the claims, and answers their room
            inputs += [self.data / f"{name}.jsonl" for name in ("unsupervised", "validation", responses)]
            inputs += [self.data / "tasks.json"]
            checkpoints.prepare(self.checkpoints, inputs, tau=self.threshold.value)
            self.resume()
            with closing(self.board) if self.board else nullcontext():
                self.iterate()
            if ranks.rank() == 0:
                self.write_outputs()
            checkpoints.finish(self.checkpoints, inputs)
            budget.report(self.estimate)

    def set_up(self) -> None:
        """Token ids, the arithmetic of the batches, the engine."""
        config, method = self.config, METHODS[self.config.stage]
        self.checkpoints = self.out / "checkpoints"
        self.folders = {role: self.rewards / role / "adapter" for role in method.reward_models}
        dtype, tokenizer = models.dtype_of(config.precision), models.load_tokenizer(self.base)
        encoder = Encoder(tokenizer, config.cutoff)
        room = answer_room(config.max_new_tokens, self.data / f"{method.answers_like}.jsonl", encoder)
        config = replace(config, max_new_tokens=room)
        exact = config.baseline == "all_labels"
        # A sampled answer is compared with the gold label as a whole.
        claims, why = self.claims() if exact or method.label_reward != GOLD else ({}, "")
        if exact and not claims:
            log(f"baseline all_labels: {why}; a value function instead")
            config = replace(config, baseline="value")
        self.threshold = threshold(config.stage, config.label_reward_threshold, self.rewards, bool(claims))
        config = self.config = fitting.settled(config, self.base, "ppo", rewards=len(self.folders))
        self.prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in self.rows]
        encoder.report("unsupervised.jsonl", list(map(len, self.prompts)))
        self.validation_prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in self.validation]

        self.per_epoch = -(-len(self.rows) // config.batch_size)
        self.iterations = self.per_epoch * config.epochs
        if 0 < len(self.rows) % config.batch_size < ranks.world():
            raise UserError(
                f"{len(self.rows)} prompts leave a last batch with fewer prompts than processes; change batch_size"
            )
        length = sum(map(len, self.prompts)) / len(self.prompts)
        work = duration.rl(
            asdict(config), len(self.rows), len(self.validation), length, len(self.folders), ranks.world()
        )
        self.estimate = budget.check(self.base, asdict(config), "ppo", work, self.out, len(self.folders))

        set_seed(config.seed)  # the policy's fresh adapter; samples have numbers of their own
        value_from = next(iter(self.folders), None)
        backbone = Backbone(
            self.base, config.lora, self.folders, value_from, dtype, config.gradient_checkpointing, config.attention,
            critic=config.baseline == "value",
        )  # fmt: skip
        models.describe(backbone.model, dtype)
        if config.samples_per_prompt > 1:
            describe_sharing(backbone.shared, "responses of a group")
        log(
            f"{config.stage}: {len(self.rows)} prompts x {config.epochs} epochs in batches of {config.batch_size}, "
            f"{config.samples_per_prompt} response(s) to each, baseline {config.baseline} = "
            f"{self.iterations} iterations of {config.updates * config.update_epochs} optimiser step(s), "
            f"micro-batch {config.micro_batch_size}, {ranks.world()} process(es)"
        )
        label, rationale = method.label_reward, method.rationale_reward
        tau = self.threshold
        log(f"label reward {label}, rationale reward {rationale}, tau {tau.value} ({tau.origin})")
        self.trainer = Trainer(
            config, backbone, Rewards(label, rationale, tau.value), self.tasks, tokenizer, self.iterations, claims
        )

    def claims(self) -> tuple[dict[str, dict[str, str]], str]:
        """task -> label -> its claim, where the label reward can be computed for every label; else nothing, and why."""
        method = METHODS[self.config.stage]
        if not method.label_reward:
            return {}, "there is no label reward"
        if method.label_reward != GOLD and not scores_claims(self.folders[method.label_reward]):
            why = f"{method.label_reward} scores whole responses (rm_rllr: {{score: claim}} where rationales allow it)"
            return {}, why
        found = claims_in(self.data / f"{method.answers_like}.jsonl", self.tasks)
        if without := sorted({row["task"] for row in self.rows} - set(found)):
            return {}, f"rationales of {without[0]} do not begin with one that tells the label"
        return found, ""

    def resume(self) -> None:
        """Go on from the newest whole checkpoint; at the start, see what accuracy RL starts from."""
        self.records = Records()
        if newest := ranks.on_first(lambda: checkpoints.latest(self.checkpoints)):
            self.load(newest)
        elif self.validation:
            self.records.history.append({"iteration": 0, "epoch": 0.0, **self.validate()})
        self.board = Board(self.out / "tensorboard", self.trainer.iteration) if ranks.rank() == 0 else None
        if self.board and self.records.history and not self.trainer.iteration:
            self.board.write(self.records.history[0], 0)

    def iterate(self) -> None:
        """The iterations that are left, with validation, checkpoints, log and progress."""
        config, trainer, records = self.config, self.trainer, self.records
        bar = tqdm(
            total=self.iterations, initial=trainer.iteration, desc=config.stage, disable=ranks.rank() > 0, mininterval=2
        )
        while trainer.iteration < self.iterations:
            epoch, place = divmod(trainer.iteration, self.per_epoch)
            order = order_of(epoch, len(self.rows), config.seed)
            mine = order[place * config.batch_size : (place + 1) * config.batch_size][ranks.rank() :: ranks.world()]
            metrics, samples = trainer.step([self.rows[i] for i in mine], [self.prompts[i] for i in mine], epoch, mine)
            metrics = {"iteration": trainer.iteration, "epoch": trainer.iteration / self.per_epoch, **metrics}
            last = trainer.iteration == self.iterations
            if self.validation and (trainer.iteration % config.validate_iterations == 0 or last):
                metrics |= self.validate()
            records.history.append(metrics)
            drawn = np.random.default_rng([config.seed, trainer.iteration]).permutation(len(samples))[:SAMPLES_SHOWN]
            shown = [samples[i] for i in sorted(drawn)]
            records.samples += shown
            if self.board:
                write_jsonl(self.out / "train_log.jsonl", records.history)
                texts = {f"sample {i}": f"{s['id']} ({s['score']:.2f}): {s['response']}" for i, s in enumerate(shown)}
                self.board.write(metrics, trainer.iteration, texts)
                if trainer.iteration % config.save_iterations == 0 and not last:
                    self.save()
            bar.set_postfix(reward=f"{metrics['reward']:.2f}", kl=f"{metrics['kl']:.2f}", refresh=False)
            bar.update()
        bar.close()
        if not any(line.get("skipped", 1) < 1 for line in records.history):
            raise UserError(
                f"all {self.iterations} iterations skipped their optimiser steps (skipped, ratio and gradient_norm in "
                "train_log.jsonl say why): nothing was trained; lower the learning rate, or use another precision"
            )

    def validate(self) -> dict[str, float]:
        """Accuracy of greedy answers, as a line of the log; the best adapter is kept under its iteration's number."""
        accuracy, trainer = self.accuracy(), self.trainer
        if accuracy > self.records.best["accuracy"]:
            self.records.best = {"accuracy": accuracy, "iteration": trainer.iteration}
            if ranks.rank() == 0 and self.config.keep == "best":
                save_adapter(trainer.backbone.model, self.checkpoints / f"best-{trainer.iteration}", "policy")
        return {"validation_accuracy": accuracy}

    def accuracy(self) -> float:
        """Label accuracy of greedy answers to the validation slice."""
        config, tokenizer, backbone = self.config, self.trainer.tokenizer, self.trainer.backbone
        backbone.use("policy")
        backbone.model.eval()

        def right(mine: list[tuple[dict, list[int]]]) -> list[bool]:
            found = [False] * len(mine)
            for indices, result in sampling.respond(
                backbone.model, tokenizer, [prompt for _, prompt in mine], config.rollout_batch_size,
                config.max_new_tokens, backbone.dtype,
            ):  # fmt: skip
                for i, text in zip(indices, decoded(tokenizer, result.responses, self.trainer.stops), strict=True):
                    row, _ = mine[i]
                    found[i] = bool(is_correct(text, row, self.tasks[row["task"]]))
            return found

        held = [*zip(self.validation, self.validation_prompts, strict=True)]
        return sum(ranks.share_out(held, right)) / len(held)

    def write_outputs(self) -> None:
        """adapter/, reward.json, samples.jsonl, train_log.jsonl."""
        method, best = METHODS[self.config.stage], self.records.best
        write_json(
            self.out / "reward.json",
            {
                "label": method.label_reward,
                "rationale": method.rationale_reward,
                "label_reward_threshold": self.threshold.value,
                "origin": self.threshold.origin,
            },
        )
        write_jsonl(self.out / "samples.jsonl", self.records.samples)
        write_jsonl(self.out / "train_log.jsonl", self.records.history)
        if self.config.keep == "best":
            log(f"keeping the adapter of iteration {best['iteration']}: validation accuracy {best['accuracy']:.3f}")
            with atomic_dir(self.out / "adapter") as temporary:
                shutil.copytree(self.checkpoints / f"best-{best['iteration']}", temporary, dirs_exist_ok=True)
        else:
            save_adapter(self.trainer.backbone.model, self.out / "adapter", "policy")

    def save(self) -> None:
        """A checkpoint: trained tensors, optimizer, the rest of the state; sealed last."""
        trainer = self.trainer
        with atomic_dir(self.checkpoints / f"checkpoint-{trainer.iteration}") as temporary:
            save_file(
                {n: p.detach().contiguous().cpu() for n, p in trainer.backbone.trained().items()},
                temporary / "trained.safetensors",
            )
            torch.save(
                {"optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict()},
                temporary / "optimizer.pt",
            )
            write_json(temporary / "state.json", {"trainer": trainer.state(), "records": asdict(self.records)})
            checkpoints.seal(temporary)
        checkpoints.rotate(self.checkpoints)

    def load(self, checkpoint: Path) -> None:
        """Restore `save`."""
        trainer = self.trainer
        tensors = load_file(checkpoint / "trained.safetensors")
        with torch.no_grad():
            for name, parameter in trainer.backbone.trained().items():
                parameter.copy_(tensors[name])
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
        trainer.optimizer.load_state_dict(optimizer["optimizer"])
        trainer.scaler.load_state_dict(optimizer["scaler"])
        state = read_json(checkpoint / "state.json")
        trainer.restore(state["trainer"])
        self.records = Records(**state["records"])
