"""What a first GPU has to show: does everything run and stay finite there, how fast, and is memory as estimated?

    make check-gpu                                        # some 20 minutes on a card of the 80 GB class, no network
    make check-gpu INSTALLED=python3                      # with the packages that this Python has
    .venv/bin/python benchmarks/check_gpu.py --parts attention "ppo, checkpointing"
    .venv/bin/python benchmarks/check_gpu.py --rehearse   # every part in small on whatever is here, a CPU too

Random weights throughout, of Mistral-7B's shape where it is about time and memory. Each part is a process of its own
with a time limit: one that crashes, hangs or misses a package does not take the others with it. Runs under other
versions of PyTorch, transformers and PEFT as well, and without Snakemake; parts that need trl are skipped where it is
missing. Prints one table and writes benchmarks/gpu/<device>.json, after every part anew.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE.parent / "workflow" / "scripts"
sys.path[:0] = [str(HERE), str(PROGRAMS)]

TOTAL = 25 * 60  # seconds for everything
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "snakemake", "safetensors", "tokenizers")
COLUMNS = {"seconds": "seconds", "tokens_per_second": "tokens / s", "peak_gib": "peak GiB", "estimate_gib": "estimate"}
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
TASK = {"kind": "label", "labels": ["negative", "positive"]}


@contextmanager
def timed() -> Iterator[dict]:
    """A row that gets `seconds`."""
    import torch

    row: dict = {}
    start = time.perf_counter()
    yield row
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    row["seconds"] = time.perf_counter() - start


def estimate(folder: Path, config: dict, section: str, rewards: int = 0) -> dict:
    """What the budget says beside what was taken, GiB; the peak since the last call."""
    import torch

    from rllr.lm import budget

    need = budget.memory(budget.Sizes.read(folder), {"attention": "auto", "lora": LORA, **config}, section, rewards)
    row = {"peak_gib": budget.peak_memory() / 2**30, "estimate_gib": need["peak"] / 2**30}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return row


# Parts: functions of (work folder, shape of the model, whether it is a rehearsal) that yield rows.


def device(work: Path, shape: str, small: bool) -> Iterator[dict]:
    """What is measured on."""
    import torch

    from rllr import gpus
    from rllr.lm import models

    if not gpus.usable():
        yield {"case": "cpu", "note": f"{torch.get_num_threads()} threads, auto is {models.dtype_of('auto')}"}
        return
    found = torch.cuda.get_device_properties(0)
    yield {
        "case": found.name,
        "note": f"compute capability {found.major}.{found.minor}, {found.total_memory / 2**30:.1f} GiB, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, auto is {models.dtype_of('auto')}",
    }


def attention(work: Path, shape: str, small: bool) -> Iterator[dict]:
    """Forward and backward passes of each attention backend, by shape and mask, and whether gradients are finite.

    704 = 5 x 128 + 64 tokens under a mask, with scores near -120, are what cuDNN 9.20 gives NaN for (pytorch issue
    196678).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from rllr.lm import models

    torch.manual_seed(0)
    heads, width, repeats = (2, 16, 1) if small else (32, 128, 5)
    backends = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH", "CUDNN_ATTENTION"]
    torch.backends.cuda.enable_cudnn_sdp(True)
    for dtype in (torch.float16, torch.bfloat16):
        for length in (64,) if small else (704, 1536):
            shape_of = (2 if small else 4, heads, length, width)
            query, key, value = (torch.randn(shape_of, device=models.device(), dtype=dtype) * 0.1 for _ in range(3))
            query[..., 0], key[..., 0] = 1.0, -120 * width**0.5
            mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().repeat(shape_of[0], 1, 1, 1)
            mask[1:, ..., -length // 4 :] = False  # padding of all rows but the longest, on the right
            mask |= torch.eye(length, dtype=torch.bool, device=query.device)
            for name in backends:
                for masked in (False, True):
                    inputs = [part.clone().requires_grad_() for part in (query, key, value)]
                    options = {"attn_mask": mask} if masked else {"is_causal": True}
                    row = {}
                    note = "finite"
                    try:
                        for _ in range(repeats + 1):  # the first one plans
                            for part in inputs:
                                part.grad = None
                            with timed() as row, sdpa_kernel([getattr(SDPBackend, name)]):
                                scaled_dot_product_attention(*inputs, **options).float().square().sum().backward()
                        if not all(part.grad.isfinite().all() for part in inputs):
                            note = "gradient NOT finite"
                    except RuntimeError as error:
                        row, note = {}, f"not available: {str(error).splitlines()[0]:.60}"
                    what = f"{name.removesuffix('_ATTENTION').lower()} {'mask' if masked else 'causal'}"
                    yield {**row, "case": f"{what} {str(dtype).removeprefix('torch.')} {length}", "note": note}


def stages(work: Path, shape: str, small: bool, precision: str) -> Iterator[dict]:
    """Every stage, as the programs that the workflow starts, on a tiny random model and its random reward models."""
    import yaml

    import ppo
    from rllr.config import load_yaml, merge
    from rllr.files import write_json, write_jsonl

    folder = work / f"stages-{precision}"
    base, data, rewards = folder / "base", folder / "data", folder / "rewards"
    ppo.make_model("tiny", base)
    for role in ("rm_rllr", "rm_rlhf"):
        shutil.copytree(base / role, rewards / role / "adapter")
    said = [f"It is {label}, as one sees.\nLabel: {label}" for label in TASK["labels"]]
    rows = [
        {"id": str(i), "task": "films", "instruction": "Good?", "input": f"film {i} " * (i % 7 + 1), "label": label}
        for i in range(8)
        for label in [TASK["labels"][i % 2]]
    ]
    answered = [{**row, "output": said[i % 2]} for i, row in enumerate(rows)]
    pairs = [{**row, "output": said[:: 1 if i % 2 == 0 else -1]} for i, row in enumerate(rows)]
    # Two rationales, one label.
    same = [{**row, "output": [row["output"], f"Well. {row['output']}"]} for row in answered]
    write_jsonl(folder / "answers.jsonl", [{"id": row["id"], "answer": row["output"]} for row in answered])
    write_json(data / "tasks.json", {"films": TASK})
    for name, content in (
        ("sft_with_rat_train", answered), ("rllr_reward_train", pairs), ("rlhf_reward_train", same),
        ("label_sensitive_pairs_for_test", pairs), ("unsupervised", rows), ("validation", rows), ("test", rows),
    ):  # fmt: skip
        write_jsonl(data / f"{name}.jsonl", content)
    defaults = load_yaml(HERE.parent / "config" / "stages.yaml")
    training = {"batch_size": 4, "micro_batch_size": 2, "cutoff": 192, "learning_rate": 1e-3, "lora": LORA}
    settings = {
        **dict.fromkeys(("sft", "reward", "dpo"), training),
        "ppo": {**training, "max_new_tokens": 96, "label_reward_threshold": 1.0, "rollout_batch_size": "auto"},
        "predict": {"batch_size": "auto", "cutoff": 192, "max_new_tokens": 96, "best_of": 2},
    }
    tasks, responses = ["--tasks", data / "tasks.json"], ["--responses", data / "sft_with_rat_train.jsonl"]
    test = ["--data", data / "test.jsonl", "--validation", data / "validation.jsonl", *tasks, *responses]
    held = ["--data", data / "validation.jsonl", *tasks, *responses]
    judge, samples = ["--reward", rewards / "rm_rllr/adapter"], folder / "samples/samples.jsonl"
    tuned, scorer = folder / "sft_wrat/adapter", folder / "rm_rllr"
    groups, claim = {"baseline": "leave_one_out", "samples_per_prompt": 2}, {"score": "claim"}
    # case, program, section of config/stages.yaml, its changes, arguments, output
    for case, program, section, changes, arguments, target in (
        ("sft_wrat", "sft", "sft", {}, ["--data", data / "sft_with_rat_train.jsonl", *tasks], ""),
        ("merge", "merge", None, {}, ["--adapter", tuned], ""),
        ("rm_rllr", "reward", "reward", {}, ["--data", data], ""),
        ("rm_rllr, claim", "reward", "reward", claim, ["--data", data], ""),
        ("rm_rlhf", "reward", "reward", {}, ["--data", data], ""),
        ("dpo", "dpo", "dpo", {}, ["--data", data], ""),
        ("rllr_mix", "ppo", "ppo", {}, ["--data", data, "--rewards", rewards], ""),
        ("rllr_mix_rloo", "ppo", "ppo", groups, ["--data", data, "--rewards", rewards], ""),
        ("predict", "predict", "predict", {}, [*test, "--adapter", tuned], "predictions.jsonl"),
        ("predict, best of 2", "predict", "predict", {}, [*test, *judge], "predictions.jsonl"),
        ("predict, 2 votes", "predict", "predict", {}, [*test, "--votes", 2], "predictions.jsonl"),
        ("samples", "sample_policy", "predict", {}, held, samples.name),
        ("quality", "reward_quality", "predict", {}, [*held, *judge, "--samples", samples], "quality.json"),
        ("score", "score", None, {}, ["--reward-model", scorer, "--responses", folder / "answers.jsonl",
                                      "--data", data / "test.jsonl"], "scores.jsonl"),
    ):  # fmt: skip
        out = folder / case.replace(", ", "_").replace(" ", "_")
        out.mkdir(exist_ok=True)
        if section:
            stage = case.split(",")[0].replace("samples", "quality")
            common = {"precision": precision, "attention": "auto", "seed": 1, "model": "check", "stage": stage}
            config = merge(defaults[section], settings[section], changes, common)
            (out / "config.yaml").write_text(yaml.safe_dump(config))
            arguments = ["--config", out / "config.yaml", *arguments]
        if missing("trl") and (section in ("sft", "reward", "dpo") or {tuned, scorer} & {*arguments}):
            yield {"case": f"{case} {precision}", "note": "skipped: no trl"}
            continue
        target = out / "merged" if case == "merge" else out / target
        command = [
            sys.executable, PROGRAMS / "launch.py", PROGRAMS / f"{program}.py", "--base", base, *arguments,
            "--out", target,
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        note = "done" if done.returncode == 0 else f"FAILED ({done.returncode}): {last_line(done.stderr):.200}"
        log = out / "train_log.jsonl"
        if done.returncode == 0 and log.is_file():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            skipped = sum(line.get("skipped") or 0 for line in lines)
            note += f", {skipped:g} of {sum('loss' in line for line in lines)} steps skipped"
        yield {"case": f"{case} {precision}", "seconds": time.perf_counter() - start, "note": note}


def model(work: Path, shape: str, small: bool) -> Iterator[dict]:
    """The random model of the parts that follow."""
    import ppo

    with timed() as row:
        ppo.make_model(shape, work / "model")
    yield {**row, "case": shape, "note": "made"}


def iteration(work: Path, shape: str, small: bool, checkpointing: bool) -> Iterator[dict]:
    """PPO iterations (rllr_mix, benchmarks/ppo.py) with prompts of many lengths and answers that end by themselves."""
    from rllr.cli import UserError

    prompts, prompt, new, micro = (4, 24, 16, 2) if small else (32, 256, 128, 4)
    command = [
        sys.executable, HERE / "ppo.py", "--model", work / "model", "--precision", "bf16", "--ragged",
        "--prompts", prompts, "--prompt-tokens", prompt, "--new-tokens", new, "--micro-batch", micro,
        "--iterations", 1 if small else 2, *(["--gradient-checkpointing"] if checkpointing else []),
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"benchmarks/ppo.py: {last_line(done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])
    config = {
        "precision": "bf16", "cutoff": prompt + new, "micro_batch_size": micro, "rollout_batch_size": prompts,
        "max_new_tokens": new, "samples_per_prompt": 1, "baseline": "value", "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    estimated = estimate(work / "model", config, "ppo", rewards=2)["estimate_gib"]
    yield {
        "case": f"{prompts} prompts of up to {prompt}, {new} new",
        "seconds": found["seconds"],
        "tokens_per_second": found["tokens"] / found["seconds"],
        "peak_gib": found["peak_memory_gib"],
        "estimate_gib": estimated,
        "note": ", ".join(f"{phase} {value:.1f}" for phase, value in found["phases"].items()),
    }


def micro_batches(work: Path, shape: str, small: bool) -> Iterator[dict]:
    """One forward and backward pass of the longest rows: SFT's, and a reward model's pairs, with their memory."""
    import torch
    from peft import get_peft_model
    from torch.nn import functional as F

    from rllr.lm import models
    from rllr.lm.packing import Packed

    length, room = (96, 32) if small else (1536, 256)
    dtype = torch.float32 if small else torch.bfloat16
    folder = work / "model"
    for section in ("sft", "reward"):
        for checkpointing in (True, False):
            rows = 1 if section == "sft" else 2
            load = models.load_causal if section == "sft" else models.load_scorer
            wrapped = load(folder, dtype, training=True).to(models.device())
            wrapped = get_peft_model(wrapped, models.lora_config(LORA, "CAUSAL_LM" if section == "sft" else "SEQ_CLS"))
            models.cast_weights_not_activations(wrapped)
            if checkpointing:
                wrapped.gradient_checkpointing_enable({"use_reentrant": False})
                wrapped.enable_input_require_grads()
            wrapped.train()
            plain = wrapped.get_base_model()
            trunk = getattr(plain, plain.base_model_prefix)
            for seed in (1, 2):  # the first one warms up
                tokens = torch.randint(10, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
                sides = [tokens[-room:], tokens[-room:][::-1]][:rows]
                batch = Packed.build([tokens[:-room]] * rows, sides, 0, models.device(), dtype)
                with timed() as row:
                    with models.autocast(dtype):
                        hidden = trunk(**batch.inputs(), use_cache=False).last_hidden_state
                        if section == "sft":
                            logits = plain.get_output_embeddings()(hidden[0, batch.predicts[0]]).float()
                            loss = F.cross_entropy(logits, batch.tokens[0])
                        else:
                            scores = plain.score(hidden)[batch.group, batch.last()].flatten()
                            loss = -F.logsigmoid(scores[0] - scores[1])
                    loss.backward()
            gradients = [p.grad for p in wrapped.parameters() if p.grad is not None]
            note = "finite" if all(g.isfinite().all() for g in gradients) else "gradient NOT finite"
            config = {
                "precision": str(dtype)[6:].replace("float", "fp").replace("bfp", "bf"), "cutoff": length,
                "micro_batch_size": 1, "gradient_checkpointing": checkpointing, "max_new_tokens": room,
            }  # fmt: skip
            del wrapped, plain, trunk, hidden, batch, loss, gradients
            passed = length + room * (rows - 1)
            yield {
                **row, **estimate(folder, config, section), "tokens_per_second": passed / row["seconds"],
                "case": f"{section}, {passed} tokens{', checkpointing' if checkpointing else ''}", "note": note,
            }  # fmt: skip


def decoding(work: Path, shape: str, small: bool) -> Iterator[dict]:
    """Tokens decoded a second, by path and rows: ours as on a CPU, in fixed shapes, and with a policy's adapter;
    transformers' own caches.
    """
    import torch
    from peft import get_peft_model

    from rllr.lm import models
    from rllr.lm.generation import generate
    from rllr.lm.sampling import uniforms

    prompt, new = (16, 8) if small else (256, 64)
    dtype = torch.float32 if small else torch.bfloat16
    folder = work / "model"
    plain = models.load_causal(folder, dtype)
    for rows in (2,) if small else (1, 16, 64, 256):
        prompts = torch.randint(10, 200, (rows, prompt), generator=torch.Generator().manual_seed(0))
        numbers = uniforms([[i] for i in range(rows)], new)

        def ours(model, fixed, prompts=prompts, numbers=numbers):
            with models.autocast(dtype):
                generate(model, prompts.tolist(), [-1], 0, new, numbers, fixed=fixed)

        def theirs(cache, prompts=prompts):
            plain.generate(
                prompts.to(models.device()), max_new_tokens=new, min_new_tokens=new, do_sample=True, pad_token_id=0,
                cache_implementation=cache,
            )  # fmt: skip

        paths = {
            "ours, growing cache": lambda: ours(plain, False), "ours, fixed": lambda: ours(plain, True),
            "transformers, growing cache": lambda: theirs(None),
            "transformers, static cache": lambda: theirs("static"),
        }  # fmt: skip
        for name, path in paths.items():
            for _ in range(2):
                with timed() as row:
                    path()
            config = {"precision": "fp32" if small else "bf16", "cutoff": prompt + new, "batch_size": rows}
            case = f"{name}, {rows} rows of {prompt}, {new} new"
            yield {
                **row, **estimate(folder, config, "predict"), "case": case,
                "tokens_per_second": rows * new / row["seconds"],
            }  # fmt: skip
    adapted = get_peft_model(plain, models.lora_config(LORA, "CAUSAL_LM")).eval()
    models.cast_weights_not_activations(adapted)
    for _ in range(2):
        with timed() as row:
            ours(adapted, True)
    case = f"ours, fixed, with an adapter, {rows} rows of {prompt}, {new} new"
    yield {**row, "case": case, "tokens_per_second": rows * new / row["seconds"]}


# name -> function, its further arguments, seconds; in the order of what has to be known first.
PARTS = {
    "device": (device, {}, 120),
    "attention": (attention, {}, 180),
    "stages, bf16": (stages, {"precision": "bf16"}, 300),
    "stages, fp16": (stages, {"precision": "fp16"}, 300),
    "model": (model, {}, 300),
    "ppo, checkpointing": (iteration, {"checkpointing": True}, 300),
    "micro-batches": (micro_batches, {}, 240),
    "decoding": (decoding, {}, 240),
    "ppo": (iteration, {"checkpointing": False}, 240),
}


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def missing(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def run_part(name: str, work: Path, rehearse: bool) -> None:
    """In a process of its own: a JSON line for each row, as it comes."""
    function, arguments, _ = PARTS[name]
    from rllr import cli

    def main() -> None:
        for row in function(work, "tiny" if rehearse else "mistral", rehearse, **arguments):
            print("row " + json.dumps(row), flush=True)

    cli.run(main)


def results(name: str, work: Path, rehearse: bool, limit: float) -> list[dict]:
    """The rows of a part; one that failed ends with a row that says why."""
    command = [sys.executable, __file__, "--part", name, "--work", str(work), *(["--rehearse"] if rehearse else [])]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, told = started.communicate(timeout=limit)
        failure = f"FAILED ({started.returncode})" if started.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, 9)  # its own processes, too
        output, told = started.communicate()
        failure = f"FAILED: not done after {limit:.0f} s"
    rows = [json.loads(line[4:]) for line in output.splitlines() if line.startswith("row ")]
    # What programs go on without, or with less of: a step as a graph, rows side by side.
    less = dict.fromkeys(re.findall(r"decoding: no CUDA graph.*|.*: out of memory with .*", told))
    rows += [{"case": "", "note": line[:200]} for line in less]
    if failure:
        last = last_line(told)
        absent = re.search(r"No module named '([\w.]+)'", last)
        rows.append({"case": "", "note": f"skipped: no {absent[1]}" if absent else f"{failure} {last:.200}"})
    return [{"part": name, **row} for row in rows]


def table(rows: list[dict]) -> str:
    lines = [f"| part | case | {' | '.join(COLUMNS.values())} | |", "|---|---|" + "---:|" * len(COLUMNS) + "---|"]
    for row in rows:
        cells = [f"{row[key]:.4g}" if key in row else "" for key in COLUMNS]
        lines.append(f"| {row['part']} | {row.get('case', '')} | {' | '.join(cells)} | {row.get('note', '')} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--rehearse", action="store_true", help="small shapes, on a CPU as well")
    parser.add_argument("--out", type=Path, default=HERE / "gpu", help="folder of the JSON file")
    parser.add_argument("--work", type=Path, help="folder for the random models (default: a temporary one; 20 GB)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.work, args.rehearse)
        return 0
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if not missing(name)}
    found: dict = {"date": datetime.date.today().isoformat(), "versions": versions, "rehearsal": args.rehearse}
    rows: list[dict] = []
    names = list(dict.fromkeys(["device", *args.parts]))
    if {"micro-batches", "decoding", "ppo", "ppo, checkpointing"} & {*names}:
        names = [name for name in PARTS if name in {*names, "model"}]
    deadline = time.monotonic() + TOTAL
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for name in names:
            left = deadline - time.monotonic()
            limit = PARTS[name][2] * (3 if args.rehearse else 1)  # a CPU may be a slow or busy one
            print(f"{name} ...", file=sys.stderr, flush=True)
            own = results(name, Path(work), args.rehearse, min(limit, left)) if left > 0 else []
            rows += own or [{"part": name, "note": "left out: no time left"}]
            if name == "device":
                if "case" not in rows[0] or not (rows[0]["case"] or args.rehearse):
                    sys.exit(f"error: {rows[0]['note']}")
                if rows[0]["case"] == "cpu" and not args.rehearse:
                    sys.exit("error: no GPU here; --rehearse goes through every part in small")
                slug = re.sub(r"[^a-z0-9]+", "-", rows[0]["case"].lower()).strip("-")
            found |= {"device": rows[0]["case"], "rows": rows}
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{slug}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"{args.out / f'{slug}.json'}: written", file=sys.stderr)
    return int(any("FAILED" in row.get("note", "") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
