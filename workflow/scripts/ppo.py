"""PPO on a merged sft_wrat model (methods rlhf, rllr, rllr_mix, rlvr, rlvr_mix; the stage config names the method).

    python workflow/scripts/ppo.py --config results/tiny/rllr_mix/config.yaml --base results/tiny/sft_wrat/merged \\
        --data results/data/demo --rewards results/tiny --out results/tiny/rllr_mix

Writes <out>/adapter (the policy's LoRA), reward.json (the threshold tau and where it comes from), train_log.jsonl
(one line an iteration) and samples.jsonl; TensorBoard events go to <out>/tensorboard. A killed run resumes from its
newest checkpoint and ends with the same adapter (on a CPU, bit by bit).
"""

import random
import shutil
from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.cli import UserError, log
from rllr.config import load_stage
from rllr.files import atomic_dir, has_rows, read_json, stage_lock, write_json, write_jsonl
from rllr.lm.tokens import Encoder
from rllr.rows import read_prompts
from rllr.tasks import load_tasks

# Method -> (label reward, rationale reward): a reward model's stage, or `gold` for the verified label.
REWARDS = {
    "rlhf": (None, "rm_rlhf"),
    "rllr": ("rm_rllr", None),
    "rllr_mix": ("rm_rllr", "rm_rlhf"),
    "rlvr": ("gold", None),
    "rlvr_mix": ("gold", "rm_rlhf"),
}
SAMPLES_SHOWN = 2  # rollouts per iteration written out as text


def threshold(method: str, setting: float | str, rewards: Path) -> tuple[float | None, str]:
    """tau and where it comes from; None where the method caps nothing."""
    label, rationale = REWARDS[method]
    if not (label and rationale):
        return None, "not used"
    if setting != "auto":
        return float(setting), "config"
    if label == "gold":
        raise UserError(f"{method}: label_reward_threshold: auto needs a label reward model; give a number")
    metrics = read_json(rewards / label / "metrics.json")
    if "chosen_median_validation" not in metrics:
        raise UserError(
            f"{method}: label_reward_threshold: auto needs label_sensitive_pairs_for_validation.jsonl in the data; "
            "give a number instead"
        )
    return metrics["chosen_median_validation"], f"median reward of chosen validation responses, {label}/metrics.json"


def order_of(epoch: int, prompts: int, seed: int) -> list[int]:
    """The order of the prompts in one epoch, a function of the seed alone."""
    order = list(range(prompts))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def save(folder: Path, trainer, log_rows: list[dict], samples: list[dict], best: dict) -> None:
    """A checkpoint: trained tensors, optimizer, the rest of the state; sealed last."""
    import torch
    from safetensors.torch import save_file

    from rllr import checkpoints

    checkpoint = folder / f"checkpoint-{trainer.iteration}"
    with atomic_dir(checkpoint) as temporary:
        save_file(
            {n: p.detach().contiguous().cpu() for n, p in trainer.backbone.trained().items()},
            temporary / "trained.safetensors",
        )
        torch.save(
            {"optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict()},
            temporary / "optimizer.pt",
        )
        write_json(
            temporary / "state.json", {"trainer": trainer.state(), "log": log_rows, "samples": samples, "best": best}
        )
        checkpoints.seal(temporary)
    checkpoints.rotate(folder)


def load(checkpoint: Path, trainer) -> tuple[list[dict], list[dict], dict]:
    """Restore `save`; returns the log, the samples and the best validation so far."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(checkpoint / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in trainer.backbone.trained().items():
            parameter.copy_(tensors[name])
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    trainer.optimizer.load_state_dict(optimizer["optimizer"])
    trainer.scaler.load_state_dict(optimizer["scaler"])
    state = read_json(checkpoint / "state.json")
    trainer.restore(state["trainer"])
    return state["log"], state["samples"], state["best"]


def validation_accuracy(trainer, rows: list[dict], prompts: list[list[int]]) -> float:
    """Label accuracy of greedy answers to the validation slice (each process answers all of it alike)."""
    from rllr.lm.generation import decoded
    from rllr.lm.sampling import respond
    from rllr.ppo.scoring import is_correct

    trainer.backbone.use("policy")
    trainer.backbone.model.eval()
    config, tokenizer, right = trainer.config, trainer.tokenizer, 0
    for indices, responses in respond(
        trainer.backbone.model,
        tokenizer,
        prompts,
        config.rollout_batch_size,
        config.max_new_tokens,
        trainer.backbone.kind,
    ):
        for i, text in zip(indices, decoded(tokenizer, responses, trainer.stops), strict=True):
            right += is_correct(text, rows[i], trainer.tasks[rows[i]["task"]])
    return right / len(rows)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--rewards", type=Path, required=True, help="folder that holds rm_rllr and rm_rlhf")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()

    tasks = load_tasks(args.data / "tasks.json")
    method = load_stage_name(args.config)
    rows = read_prompts(args.data / "unsupervised.jsonl", tasks, need_labels="gold" in REWARDS[method])

    from rllr import ranks
    from rllr.ppo.iteration import PPOConfig

    config = load_stage(PPOConfig, args.config)
    validation = []
    if config.validate_iterations and (config.keep == "best" or has_rows(args.data / "validation.jsonl")):
        validation = read_prompts(args.data / "validation.jsonl", tasks, need_labels=True)
    tau, origin = threshold(method, config.label_reward_threshold, args.rewards)

    ranks.start()
    with stage_lock(args.out):
        train(args, config, tasks, rows, validation, tau, origin)


def load_stage_name(path: Path) -> str:
    """The method that a stage config belongs to."""
    from rllr.config import load_yaml

    stage = load_yaml(path).get("stage")
    if stage not in REWARDS:
        raise UserError(f"{path}: stage: expected one of {', '.join(REWARDS)}, found {stage!r}")
    return stage


def train(args, config, tasks, rows, validation, tau, origin) -> None:
    """The run: every epoch's batches, with checkpoints, log and progress."""
    from tqdm import tqdm
    from transformers import set_seed

    from rllr import checkpoints, ranks
    from rllr.lm import budget, models
    from rllr.ppo.backbone import Backbone
    from rllr.ppo.iteration import Rewards, Trainer
    from rllr.train.trainer import save_adapter

    label, rationale = REWARDS[config.stage]
    roles = [role for role in (label, rationale) if role and role != "gold"]
    folders = {role: args.rewards / role / "adapter" for role in roles}
    kind = models.dtype(config.precision)
    tokenizer = models.load_tokenizer(args.base)
    encoder = Encoder(tokenizer, config.cutoff)
    prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in rows]
    encoder.report("unsupervised.jsonl", list(map(len, prompts)))
    validation_prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in validation]

    per_epoch = -(-len(rows) // config.batch_size)
    iterations = per_epoch * config.epochs
    if 0 < len(rows) % config.batch_size < ranks.world():
        raise UserError(f"{len(rows)} prompts leave a last batch with fewer prompts than processes; change batch_size")
    # Responses of half the room, through policy, value, reference and rewards once, policy and value again to train.
    passes = len(rows) * config.epochs * (4 + len(roles))
    tokens = passes * (sum(map(len, prompts)) // len(prompts) + config.max_new_tokens // 2) // 2
    budget.check(args.base, asdict(config), "ppo", tokens, args.out, rewards=len(roles))
    set_seed(config.seed)  # the policy's fresh adapter; samples have numbers of their own
    backbone = Backbone(
        args.base,
        config.lora,
        folders,
        roles[0] if roles else None,
        kind,
        config.gradient_checkpointing,
        config.attention,
    )
    models.describe(backbone.model, kind)
    log(
        f"{config.stage}: {len(rows)} prompts x {config.epochs} epochs in batches of {config.batch_size} = "
        f"{iterations} iterations of {config.updates * config.update_epochs} optimiser step(s), "
        f"micro-batch {config.micro_batch_size}, {ranks.world()} process(es)"
    )
    log(f"label reward {label}, rationale reward {rationale}, tau {tau} ({origin})")
    trainer = Trainer(config, backbone, Rewards(label, rationale, tau), tasks, tokenizer, iterations)

    main_process = ranks.rank() == 0
    folder = args.out / "checkpoints"
    inputs = [args.config, args.base, args.data / "unsupervised.jsonl", args.data / "validation.jsonl"]
    inputs += folders.values()
    checkpoints.prepare(folder, inputs, tau=tau)
    history, samples, best = [], [], {"accuracy": -1.0, "iteration": 0}

    def validate() -> dict[str, float]:
        """The accuracy as a line of the log; the best adapter so far is kept under its iteration's number."""
        nonlocal best
        accuracy = validation_accuracy(trainer, validation, validation_prompts)
        if accuracy > best["accuracy"]:
            best = {"accuracy": accuracy, "iteration": trainer.iteration}
            if main_process and config.keep == "best":
                save_adapter(backbone.model, folder / f"best-{trainer.iteration}", "policy")
        return {"validation_accuracy": accuracy}

    newest = ranks.on_first(lambda: checkpoints.latest(folder))
    if newest:
        history, samples, best = load(newest, trainer)
    elif validation:
        history.append({"iteration": 0, "epoch": 0.0, **validate()})  # where RL starts from

    board = Board(args.out / "tensorboard", trainer.iteration) if main_process else None
    if board and history and not trainer.iteration:
        board.write(history[0], [])
    bar = tqdm(total=iterations, initial=trainer.iteration, desc=config.stage, disable=not main_process, mininterval=2)
    while trainer.iteration < iterations:
        epoch, place = divmod(trainer.iteration, per_epoch)
        batch = order_of(epoch, len(rows), config.seed)[place * config.batch_size : (place + 1) * config.batch_size]
        mine = batch[ranks.rank() :: ranks.world()]
        metrics, shown = trainer.step([rows[i] for i in mine], [prompts[i] for i in mine], epoch, mine)
        metrics = {"iteration": trainer.iteration, "epoch": (trainer.iteration) / per_epoch, **metrics}
        last = trainer.iteration == iterations
        if validation and (trainer.iteration % config.validate_iterations == 0 or last):
            metrics |= validate()
        history.append(metrics)
        samples += shown[:SAMPLES_SHOWN]
        if main_process:
            write_jsonl(args.out / "train_log.jsonl", history)
            board.write(metrics, shown[:SAMPLES_SHOWN])
            if trainer.iteration % config.save_iterations == 0 and not last:
                save(folder, trainer, history, samples, best)
        bar.set_postfix(reward=f"{metrics['reward']:.2f}", kl=f"{metrics['kl']:.2f}", refresh=False)
        bar.update()
    bar.close()
    if main_process:
        write_json(
            args.out / "reward.json",
            {"label": label, "rationale": rationale, "label_reward_threshold": tau, "origin": origin},
        )
        write_jsonl(args.out / "samples.jsonl", samples)
        write_jsonl(args.out / "train_log.jsonl", history)
        if config.keep == "best":
            log(f"keeping the adapter of iteration {best['iteration']}: validation accuracy {best['accuracy']:.3f}")
            with atomic_dir(args.out / "adapter") as temporary:
                shutil.copytree(folder / f"best-{best['iteration']}", temporary, dirs_exist_ok=True)
        else:
            save_adapter(backbone.model, args.out / "adapter", "policy")
    checkpoints.finish(folder, inputs)


class Board:
    """TensorBoard events, beside the outputs."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # From here on, events of a run that was killed after its last checkpoint count no more.
        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)

    def write(self, metrics: dict, samples: list[dict]) -> None:
        step = metrics["iteration"]
        for key, value in metrics.items():
            if key != "iteration" and value is not None:
                self.writer.add_scalar(key, value, step)
        for sample in samples:
            self.writer.add_text("samples", f"{sample['id']} ({sample['score']:.2f}): {sample['response']}", step)
        self.writer.flush()


if __name__ == "__main__":
    cli.run(main)
