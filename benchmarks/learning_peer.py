"""The peer of benchmarks/learning.py: TRL's RLOOTrainer from the same start, with the same reward models and prompts.

Groups of 4, the learning rate, KL weight, batch and LoRA of the config; the rewards are added up, since RLOOTrainer
knows no cap. Writes <out>/train_log.jsonl with the keys of ppo.py's; a killed run resumes from its last checkpoint.

    python benchmarks/learning_peer.py --config <folder>/config.yaml --base <merged sft_wrat> --data <prepared data> \\
        --rewards <stages> --out <folder>
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))
warnings.filterwarnings("ignore")
SAMPLES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "base", "data", "rewards", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
    from trl import RLOOConfig, RLOOTrainer

    from rllr.config import load_yaml
    from rllr.files import write_jsonl
    from rllr.lm import models, rewards, sampling
    from rllr.lm.generation import decoded, stop_ids
    from rllr.lm.lengths import answer_room
    from rllr.lm.tokens import Encoder
    from rllr.ppo.scoring import is_correct
    from rllr.rows import read_prompts
    from rllr.tasks import load_tasks

    config = load_yaml(args.config)
    dtype, tokenizer = models.dtype_of(config["precision"]), models.load_tokenizer(args.base)
    encoder = Encoder(tokenizer, config["cutoff"])
    room = answer_room(config["max_new_tokens"], args.data / "sft_with_rat_train.jsonl", encoder)
    tasks = load_tasks(args.data / "tasks.json")
    rows = read_prompts(args.data / "unsupervised.jsonl", tasks, need_labels=False)
    held = read_prompts(args.data / "validation.jsonl", tasks, need_labels=True)
    held_prompts = [encoder.prompt(row, room=room) for row in held]
    ids_of = {tokenizer.decode(ids): ids for ids in (encoder.prompt(row, room=room) for row in rows)}

    def scorer(role: str):
        model = rewards.load_reward(args.base, args.rewards / role / "adapter", dtype)

        def score(prompts: list[str], completion_ids: list[list[int]], **_) -> list[float]:
            own = [ids_of[prompt] for prompt in prompts]
            return rewards.scores(model, tokenizer, own, completion_ids, config["micro_batch_size"], dtype)

        score.__name__ = role
        return score

    batch, folder = config["batch_size"] * SAMPLES, args.out / "trl"

    class Watch(TrainerCallback):
        """Seconds of each step and validation as ppo.py does it, in the log that the checkpoints keep."""

        def validate(self, model) -> dict[str, float]:
            training, right = model.training, 0
            model.eval()
            for indices, result in sampling.respond(
                model, tokenizer, held_prompts, config["rollout_batch_size"], room, dtype
            ):
                texts = decoded(tokenizer, result.responses, stop_ids(model, tokenizer))
                right += sum(
                    bool(is_correct(text, held[i], tasks[held[i]["task"]]))
                    for i, text in zip(indices, texts, strict=True)
                )
            model.train(training)
            return {"validation_accuracy": right / len(held)}

        def on_train_begin(self, settings: TrainingArguments, state: TrainerState, control: TrainerControl, **found):
            if state.global_step == 0:
                state.log_history.append({"iteration": 0, **self.validate(found["model"])})

        def on_step_begin(self, settings: TrainingArguments, state: TrainerState, control: TrainerControl, **_):
            self.start = time.perf_counter()

        def on_step_end(self, settings: TrainingArguments, state: TrainerState, control: TrainerControl, **found):
            seconds, step = time.perf_counter() - self.start, state.global_step
            row = {"iteration": step, "samples": batch, "seconds_step": seconds}
            last = step == state.max_steps
            state.log_history.append(
                row | (self.validate(found["model"]) if last or step % config["validate_iterations"] == 0 else {})
            )

    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype),
        reward_funcs=[scorer("rm_rllr"), scorer("rm_rlhf")],
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [*ids_of]}),
        peft_config=models.lora_config({**config["lora"], "dropout": 0.0}, "CAUSAL_LM"),
        callbacks=[Watch()],
        args=RLOOConfig(
            str(folder), per_device_train_batch_size=config["micro_batch_size"],
            gradient_accumulation_steps=batch // config["micro_batch_size"], num_generations=SAMPLES,
            max_completion_length=room, num_train_epochs=config["epochs"], beta=config["kl_beta"],
            learning_rate=config["learning_rate"], lr_scheduler_type="cosine",
            warmup_steps=config["warmup_iterations"], seed=config["seed"], bf16=dtype == torch.bfloat16,
            gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), report_to=[],
            save_steps=config["validate_iterations"], save_total_limit=1,
        ),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    write_jsonl(args.out / "train_log.jsonl", [row for row in trainer.state.log_history if "iteration" in row])


if __name__ == "__main__":
    main()
