"""The peer's side of benchmarks/ppo.py: trl 0.7.2's PPOTrainer as the paper's engine (LLaMA-Factory) drives it.

Runs in an environment of its own (see benchmarks/README.md) and prints one JSON line. The same adapters as ours on one
shared backbone: policy, value (the published recipe has a separate value model), two reward models; the reference with
all of them off; a full optimiser batch per iteration.

    python benchmarks/ppo_peer.py --model <folder> --prompts 16 --prompt-tokens 64 --new-tokens 32 --micro-batch 4
"""

import argparse
import json
import resource
import time
import warnings

import torch

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1)  # it knows no groups
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2)
    args = parser.parse_args()

    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    backbone = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.float32), lora)
    for role in ("value", "label", "rationale"):
        backbone.add_adapter(role, lora)
    backbone.set_adapter("default")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(backbone)
    hidden = backbone.config.hidden_size
    heads = {role: torch.nn.Linear(hidden, 1, bias=False) for role in ("label", "rationale")}
    # The trainer only pads with it; transformers 4 cannot read tokenizers that transformers 5 has saved.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
    probe = next(m for m in backbone.modules() if hasattr(m, "lora_A") and len(m.lora_A))

    def forward(input_ids=None, attention_mask=None, **kwargs):
        """Logits under the policy's adapter, values under the value adapter: the published separate value model."""
        values = None
        if not probe.disable_adapters:  # the reference pass needs no values
            backbone.set_adapter("value")
            out = backbone(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            values = model.v_head(out.hidden_states[-1]).squeeze(-1)
            backbone.set_adapter("default")
        logits = backbone(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits, None, logits[..., 0] if values is None else values

    model.forward = forward
    config = PPOConfig(
        batch_size=args.prompts, mini_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.prompts // args.micro_batch, ppo_epochs=1, learning_rate=5e-6,
        use_score_scaling=True, use_score_norm=True,
    )  # fmt: skip
    trainer = PPOTrainer(config=config, model=model, ref_model=None, tokenizer=tokenizer)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(".value." in name for name in trained) and any(".default." in name for name in trained)
    generator = torch.Generator().manual_seed(1)
    vocabulary = backbone.config.vocab_size

    def rewards(sequences: list[torch.Tensor]) -> list[torch.Tensor]:
        """min(label, tau) + rationale, each adapter in turn on the shared backbone."""
        total = 0
        ids = torch.stack(sequences)
        for role in ("label", "rationale"):
            trainer.model.pretrained_model.set_adapter(role)
            with torch.no_grad():
                out = trainer.model.pretrained_model(input_ids=ids, output_hidden_states=True, return_dict=True)
            scores = heads[role](out.hidden_states[-1][:, -1])[:, 0]
            total = total + (scores.clamp(max=1.0) if role == "label" else scores)
        trainer.model.pretrained_model.set_adapter("default")
        return list(total)

    records = []
    for _ in range(args.iterations + 1):
        prompts = [
            torch.randint(10, vocabulary, (args.prompt_tokens,), generator=generator) for _ in range(args.prompts)
        ]
        start = time.perf_counter()
        trainer.model.eval()
        with torch.no_grad():
            full = trainer.model.generate(
                input_ids=torch.stack(prompts), attention_mask=torch.ones(args.prompts, args.prompt_tokens).long(),
                do_sample=True, top_k=0, top_p=1.0, min_new_tokens=args.new_tokens, max_new_tokens=args.new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        rolled = time.perf_counter()
        scores = rewards(list(full))
        scored = time.perf_counter()
        trainer.model.train()
        trainer.step(prompts, [row[args.prompt_tokens :] for row in full], scores)
        done = time.perf_counter()
        records.append({"rollout": rolled - start, "scoring": scored - rolled, "optimisation": done - scored})
    best = min(records[1:], key=lambda r: sum(r.values()))  # the first iteration warms up
    seconds = sum(best.values())
    print(json.dumps({
        "engine": "trl 0.7.2 fp32", "seconds": seconds, "phases": best, "samples_per_second": args.prompts / seconds,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
