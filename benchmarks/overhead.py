"""What the workflow itself costs: building the DAG, and starting a job.

    python benchmarks/overhead.py

Dry runs of everything for a growing number of the paper's models and methods, in an empty run folder: the time of the
whole command, and the jobs in it (SFT and reward models are trained once, whatever number of methods use them). Then
a run of the jobs that do next to nothing (they write down what a program's results rest on): Snakemake's own time.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["llama2", "llama2-13b", "baichuan2", "baichuan2-13b", "chatglm3", "mistral", "bloom3b", "bloom7b"]
METHODS = ["sft", "sft_wrat", "rlhf", "rllr", "rllr_mix", "rlvr", "rlvr_mix"]
TRAINING = {"sft", "reward_model", "ppo"}


def snakemake(folder: str, *arguments: str) -> tuple[float, str]:
    """Seconds and output of one command."""
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", folder,
        "--profile", str(ROOT / "profiles/default"), "--cores", "1", *arguments,
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start, done.stdout + done.stderr


def chosen(models: list[str], methods: list[str]) -> list[str]:
    return ["--config", f"models=[{','.join(models)}]", f"methods=[{','.join(methods)}]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest counts")
    args = parser.parse_args()
    print("| models | methods | jobs | training jobs | dry run, s |")
    print("|---:|---:|---:|---:|---:|")
    for models, methods in [(1, 1), (1, 4), (1, 7), (2, 7), (4, 7), (8, 4), (8, 7)]:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--dry-run", "--quiet", "host", *chosen(MODELS[:models], METHODS[-methods:])]
            seconds, output = min(snakemake(folder, *options) for _ in range(args.repeats))
        jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
        training = sum(jobs[rule] for rule in TRAINING & jobs.keys())
        print(f"| {models} | {methods} | {jobs['total']} | {training} | {seconds:.1f} |", flush=True)
    targets = [f"results/.code/{path.stem}.yaml" for path in (ROOT / "workflow/scripts").glob("*.py")]
    with tempfile.TemporaryDirectory() as folder:
        nothing = min(snakemake(folder, "--dry-run", "--", *targets)[0] for _ in range(args.repeats))
        seconds, _ = snakemake(folder, "--", *targets)
    print(f"\n{len(targets)} jobs that do next to nothing: {(seconds - nothing) / len(targets):.2f} s each")


if __name__ == "__main__":
    main()
