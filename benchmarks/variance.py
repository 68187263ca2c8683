"""How large the noise of the policy gradient is beside its mean, by baseline, samples and batch, on fixed weights.

    python benchmarks/variance.py --results runs/study/seed1/results

Reads a run that has `rllr_mix` (`make study`), and takes gradients at its start, the merged sft_wrat model with a fresh
adapter, of one batch of other prompts after the other; nothing is trained. For gradients g of batches, G their mean:
signal |G|^2 and noise E|g - G|^2, both without bias; "batch for 1:1" is the number of prompts at which they would be
the same (the simple noise scale, McCandlish et al. 2018, arXiv 1812.06162): fewer are too few, many more are wasted.
"inf": no signal was found. "cosine": of a batch's gradient to the mean of all_labels, which does not sample the label;
it needs far fewer batches. The first batch, from which the scale of rewards is learned, does not count.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "workflow" / "scripts"))

# baseline, samples a prompt, prompts a batch, lambda
SETTINGS = [
    ("all_labels", 1, 8, 1.0), ("value", 1, 32, 0.95), ("value", 1, 32, 1.0), ("leave_one_out", 4, 8, 1.0),
    ("leave_one_out", 2, 16, 1.0), ("leave_one_out", 8, 4, 1.0),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--stage", default="rllr", help="whose rewards (default: the label reward alone)")
    parser.add_argument("--batches", type=int, default=30, help="at most, as far as there are prompts")
    args = parser.parse_args()

    import torch

    from rllr.config import load_stage
    from rllr.ppo.iteration import PPOConfig
    from rllr.ppo.run import Run
    from rllr.rows import read_prompts
    from rllr.tasks import load_tasks

    stages = args.results / args.model
    (data,) = (path.parent for path in args.results.glob("data/*/tasks.json"))
    tasks, file = load_tasks(data / "tasks.json"), stages / args.stage / "config.yaml"
    rows = read_prompts(data / "unsupervised.jsonl", tasks, need_labels=False)
    published = load_stage(PPOConfig, file)
    head = "baseline | lambda | samples a prompt | prompts | cosine | noise / signal | batch for 1:1 | s / batch"
    print(f"| {head} | s for 1:1 |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    exact = None
    for baseline, samples, prompts, weight in SETTINGS:
        own = {"baseline": baseline, "samples_per_prompt": samples, "batch_size": prompts, "gae_lambda": weight}
        config = replace(published, **own, updates=1, validate_iterations=0)
        with tempfile.TemporaryDirectory() as out:
            run = Run(config, file, stages / "sft_wrat/merged", data, stages, Path(out), tasks, rows, [])
            run.set_up()
        trainer = run.trainer
        policy = [p for name, p in trainer.backbone.trained().items() if ".policy." in name]
        found: list[torch.Tensor] = []

        def seen(*_, policy=policy, found=found) -> torch.Tensor:
            found.append(torch.cat([p.grad.flatten() for p in policy if p.grad is not None]).double())
            return torch.tensor(1.0)

        start = time.perf_counter()
        count = min(args.batches, len(rows) // prompts)
        for batch in range(count):
            mine = list(range(batch * prompts, (batch + 1) * prompts))
            with (
                patch.object(torch.nn.utils, "clip_grad_norm_", seen),
                patch.object(trainer.optimizer, "step", lambda *_, **__: None),
            ):
                trainer.step([rows[i] for i in mine], [run.prompts[i] for i in mine], 0, mine)
        seconds = (time.perf_counter() - start) / count
        gradients = torch.stack(found[1:])
        exact = gradients.mean(0) if exact is None else exact
        cosine = torch.nn.functional.cosine_similarity(gradients, exact[None]).mean().item()
        squares = gradients.square().sum(1).mean().item()
        signal = (gradients.sum(0).square().sum().item() / (count - 1) - squares) / (count - 2)
        ratio = (squares - signal) / signal if signal > 0 else float("inf")
        print(
            f"| {baseline} | {weight if baseline == 'value' else ''} | {samples} | {prompts} | {cosine:.2f} "
            f"| {ratio:.2g} | {ratio * prompts:.3g} | {seconds:.1f} | {ratio * seconds:.3g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
