"""Samples per second and memory of our PPO engine beside trl 0.7.2's, in one run, on one shape.

    make bench-ppo                                          # creates the peer's environment first
    .venv/bin/python benchmarks/ppo.py --peer .venv-peer/bin/python
    .venv/bin/python benchmarks/ppo.py --samples 4 --prompts 8                             # groups, beside TRL's RLOO
    .venv/bin/python benchmarks/ppo.py --shape mistral --prompts 32 --prompt-tokens 256 --new-tokens 128   # a GPU

A random model of the given shape, random prompts, forced full-length responses (EOS never ends one), rllr_mix with
random reward adapters. Each engine runs in a process of its own; the best of a few iterations counts, after a first
one that warms up.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
SHAPES = {
    "smollm2": dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "mistral": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ),
    "tiny": dict(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def make_model(shape: str, folder: Path) -> None:
    """A random model with a byte-level tokenizer, and two random reward adapters beside it."""
    import torch
    from peft import get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from rllr.lm import models as ours
    from rllr.train.trainer import save_adapter

    torch.manual_seed(0)
    dtype = torch.float32 if shape != "mistral" else torch.bfloat16
    config = LlamaConfig(**SHAPES[shape], pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=2048)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {t: i for i, t in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=specials[0], eos_token=specials[2])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    scorer = get_peft_model(ours.load_scorer(folder, dtype), ours.lora_config(LORA, "SEQ_CLS"))
    for role in ("rm_rllr", "rm_rlhf"):
        torch.nn.init.normal_(scorer.get_base_model().score.modules_to_save["default"].weight, std=0.02)
        save_adapter(scorer, folder / role)


def ours(args: argparse.Namespace) -> None:
    """Our side, in this process; prints one JSON line."""
    import torch

    from rllr.config import load_yaml, merge
    from rllr.lm import models
    from rllr.lm.budget import peak_memory
    from rllr.ppo.backbone import Backbone
    from rllr.ppo.iteration import PPOConfig, Trainer
    from rllr.ppo.scoring import Rewards
    from rllr.tasks import Task

    dtype = models.dtype_of(args.precision)
    folder = Path(args.model)
    defaults = load_yaml(PROGRAMS.parents[1] / "config" / "stages.yaml")["ppo"]
    config = PPOConfig(**merge(defaults, dict(
        model="benchmark", stage="rllr_mix", samples_per_prompt=args.samples,
        baseline="leave_one_out" if args.samples > 1 else "value", seed=1, precision=args.precision, attention="auto",
        lora=LORA, batch_size=args.prompts,
        micro_batch_size=args.micro_batch, rollout_batch_size=args.prompts * args.samples,
        max_new_tokens=args.new_tokens, gradient_checkpointing=args.gradient_checkpointing,
    )))  # fmt: skip
    tokenizer = models.load_tokenizer(folder)
    roles = {"rm_rllr": folder / "rm_rllr", "rm_rlhf": folder / "rm_rlhf"}
    backbone = Backbone(folder, LORA, roles, "rm_rllr", dtype, args.gradient_checkpointing, critic=args.samples == 1)
    tasks = {"task": Task("task", "label", ("a", "b"))}
    trainer = Trainer(config, backbone, Rewards("rm_rllr", "rm_rlhf", 1.0), tasks, tokenizer, iterations=100)
    rare = math.log(args.new_tokens) if args.ragged else math.inf
    backbone.unembed.register_forward_hook(lambda m, i, out: rarely(out, tokenizer.eos_token_id, rare))
    generator = torch.Generator().manual_seed(1)
    rows = [{"id": str(i), "task": "task"} for i in range(args.prompts)]
    records = []
    for iteration in range(args.iterations + 1):
        prompts = torch.randint(
            10, backbone.plain.config.vocab_size, (args.prompts, args.prompt_tokens), generator=generator
        ).tolist()
        if args.ragged:  # from a quarter of the tokens to all of them
            prompts = [
                prompt[: max(len(prompt) // 4, len(prompt) * (i + 1) // len(prompts))]
                for i, prompt in enumerate(prompts)
            ]
        metrics, _ = trainer.step(rows, prompts, iteration, list(range(args.prompts)))
        assert args.ragged or metrics["length"] == args.new_tokens
        phases = {key.removeprefix("seconds_"): v for key, v in metrics.items() if key.startswith("seconds_")}
        records.append((phases, sum(map(len, prompts)) + round(metrics["length"] * args.prompts)))
    best, tokens = min(records[1:], key=lambda record: sum(record[0].values()))
    seconds = sum(best.values())
    print(json.dumps({
        "engine": f"ours{', groups' if args.samples > 1 else ''} {str(dtype).removeprefix('torch.')}",
        "seconds": seconds, "phases": best, "tokens": tokens,
        "samples_per_second": args.prompts * args.samples / seconds, "peak_memory_gib": peak_memory() / 2**30,
    }))  # fmt: skip


def rarely(logits, token: int, rare: float):
    """Logits that give `token` one time in exp(rare); infinite: never, so that every response has full length."""
    logits = logits.clone()
    logits[..., token] = float("-inf")
    if math.isfinite(rare):
        logits[..., token] = logits.detach().float().logsumexp(-1).to(logits) - rare
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt; above 1 beside TRL's RLOO")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--ragged", action="store_true", help="prompts of many lengths; responses end by themselves")
    parser.add_argument("--peer", help="python of the environment with trl 0.7.2; none: ours alone")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        return ours(args)

    with tempfile.TemporaryDirectory() as folder:
        make_model(args.shape, Path(folder))
        shared = []
        for name in ("prompts", "samples", "prompt_tokens", "new_tokens", "micro_batch", "iterations"):
            shared += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        commands = []
        if args.peer and args.samples == 1:
            commands.append([args.peer, str(Path(__file__).with_name("ppo_peer.py")), "--model", folder, *shared])
        for precision in args.precisions:
            if args.samples > 1:
                peer = str(Path(__file__).with_name("groups_peer.py"))
                commands.append([sys.executable, peer, "--model", folder, "--precision", precision, *shared])
            command = [sys.executable, __file__, "--model", folder, "--precision", precision, *shared]
            command += ["--ragged"] * args.ragged
            commands.append(command + ["--gradient-checkpointing"] * args.gradient_checkpointing)
        results = []
        for command in commands:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), file=sys.stderr)
    print("| engine | s / iteration | samples / s | ratio | phases | peak GiB |")
    print("|---|---:|---:|---:|---|---:|")
    for r in results:
        phases = ", ".join(f"{name} {value:.1f}" for name, value in r["phases"].items())
        ratio = r["samples_per_second"] / results[0]["samples_per_second"]
        print(
            f"| {r['engine']} | {r['seconds']:.1f} | {r['samples_per_second']:.2f} | {ratio:.2f} | {phases} "
            f"| {r['peak_memory_gib']:.2f} |"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(PROGRAMS))
    main()
