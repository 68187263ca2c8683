"""What computing a prompt once is worth: forward and backward pass of pairs and of groups, prompts shared and not.

    python benchmarks/shared.py

Random weights of SmolLM2-135M's shape with LoRA, lengths of the demo's rows and of longer instructions; the ways in
turn, on the same tokens. "pairs": a reward model's loss of 4 pairs; "groups of 4": log-probabilities of 8 responses.
"sdpa": prompts not shared and transformers' choice of attention, as a plain trainer has it; ours is `attention: auto`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow" / "scripts")]

LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
LENGTHS = [(38, 23), (120, 40)]  # tokens of a prompt and of a response: the demo's, and a longer instruction's


def learner(folder: Path, dtype, groups: bool, attention: str) -> Callable:
    """A function of a Packed batch: forward and backward pass of a policy's log-probabilities or of a pair loss."""
    import torch
    from peft import get_peft_model
    from torch.nn import functional as F

    from rllr.lm import models

    load = models.load_causal if groups else models.load_scorer
    wrapped = get_peft_model(
        load(folder, dtype, attention, training=True), models.lora_config(LORA, "CAUSAL_LM" if groups else "SEQ_CLS")
    )
    models.cast_weights_not_activations(wrapped)
    wrapped.train()
    plain = wrapped.get_base_model()
    trunk = getattr(plain, plain.base_model_prefix)

    def learn(batch) -> None:
        with models.autocast(dtype):
            hidden = trunk(**batch.inputs(), use_cache=False).last_hidden_state
            if groups:
                logits = plain.get_output_embeddings()(hidden[batch.group, batch.predicts][batch.kept])
                loss = F.cross_entropy(logits.float(), batch.tokens[batch.kept])
            else:
                scores = plain.score(hidden[batch.group, batch.last()]).flatten()
                loss = -F.logsigmoid(scores[::2].float() - scores[1::2].float()).mean()
        loss.backward()
        if not torch.isfinite(loss):
            raise FloatingPointError(loss)

    return learn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--repeats", type=int, default=12)
    args = parser.parse_args()

    import torch

    import ppo
    from rllr.lm import models
    from rllr.lm.packing import Packed

    dtype = models.dtype_of(args.precision)
    print(
        "| what | prompt + response | tokens, shared | not | batches / s, shared | not | not, sdpa | ratio | to sdpa |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        ppo.make_model("smollm2", Path(folder))
        for name, prompts, samples in (("pairs", 4, 2), ("groups of 4", 2, 4)):
            auto, sdpa = (learner(Path(folder), dtype, samples > 2, attention) for attention in ("auto", "sdpa"))
            for prompt, response in LENGTHS:
                tokens = torch.randint(10, 40_000, (prompts, prompt + samples * response)).tolist()
                own = [row[:prompt] for row in tokens for _ in range(samples)]
                said = [row[prompt:][i * response : (i + 1) * response] for row in tokens for i in range(samples)]
                together, apart = (Packed.build(own, said, 0, models.device(), dtype, way) for way in (True, False))
                ways = [(auto, together), (auto, apart), (sdpa, apart)]
                seconds: list[list[float]] = [[] for _ in ways]
                for _ in range(args.repeats):
                    for (learn, batch), taken in zip(ways, seconds, strict=True):
                        start = time.perf_counter()
                        learn(batch)
                        taken.append(time.perf_counter() - start)
                ours, *others = map(min, seconds)  # what other work on the machine disturbs least
                cells = [name, f"{prompt} + {response}", together.ids.numel(), apart.ids.numel()]
                cells += [f"{1 / taken:.2f}" for taken in (ours, *others)] + [f"{taken / ours:.2f}" for taken in others]
                print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
