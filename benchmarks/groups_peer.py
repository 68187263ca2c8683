"""The peer's side of `benchmarks/ppo.py --samples 4`: TRL's RLOOTrainer with the same groups, adapters and rewards.

Runs in the project's own environment (trl is pinned there) and prints one JSON line. The policy is a LoRA adapter, the
reference the model without it; each reward model is a sequence classifier of its own, as TRL takes them.

    python benchmarks/groups_peer.py --model <folder> --prompts 8 --samples 4 --prompt-tokens 64 --new-tokens 32
"""

import argparse
import json
import random
import resource
import string
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2)
    args = parser.parse_args()

    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import RLOOConfig, RLOOTrainer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    rewards = []
    for role in ("rm_rllr", "rm_rlhf"):
        scorer = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=dtype)
        scorer = PeftModel.from_pretrained(scorer, Path(args.model) / role).merge_and_unload()
        rewards.append(scorer.eval())

    def forbid(module, inputs, logits):
        """Responses of full length, as on our side."""
        logits = logits.clone()
        logits[..., tokenizer.eos_token_id] = float("-inf")
        return logits

    model.get_output_embeddings().register_forward_hook(forbid)
    draw, count = random.Random(1), args.prompts * (args.iterations + 1)
    texts = ["".join(draw.choices(string.ascii_letters, k=args.prompt_tokens)) for _ in range(count)]

    seconds = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

    batch = args.prompts * args.samples
    with tempfile.TemporaryDirectory() as folder:
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=rewards,
            reward_processing_classes=[tokenizer, tokenizer],
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]),
            callbacks=[Stopwatch()],
            args=RLOOConfig(
                folder, per_device_train_batch_size=args.micro_batch,
                gradient_accumulation_steps=batch // args.micro_batch, num_generations=args.samples,
                max_completion_length=args.new_tokens, max_steps=args.iterations + 1, beta=0.2, learning_rate=5e-6,
                bf16=args.precision == "bf16", gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(),
                report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
            ),
        )  # fmt: skip
        trainer.train()
        lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "loss" in log]
    assert lengths and all(length == args.new_tokens for length in lengths), lengths
    best = min(seconds[1:])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "engine": f"trl RLOO {str(dtype).removeprefix('torch.')}", "seconds": best, "phases": {},
        "samples_per_second": batch / best, "peak_memory_gib": peak / 2**30,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
