"""Rows a second and peak memory of data preparation with the cue annotator, on generated rows.

    python benchmarks/data.py --rows 1000000 --workers 2

Generates a csv of review-like rows with a long-tailed vocabulary, prepares every file from it, and checks that another
number of workers gives the same bytes (--check).
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

PREPARE = Path(__file__).resolve().parents[1] / "workflow" / "scripts" / "prepare.py"


def generate(path: Path, rows: int) -> None:
    """Rows of 8 to 32 words from a Zipf vocabulary; a tenth of the words lean towards the label."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(letters[[i // 26**k % 26 for k in range(5)]]) for i in range(500_000)])
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, rows, 50_000):
            n = min(50_000, rows - start)
            labels = draw.integers(0, 2, n)
            lengths = draw.integers(8, 33, n)
            words = draw.zipf(1.3, lengths.sum()) % len(vocabulary)
            leaning = draw.random(len(words)) < 0.1
            words[leaning] = (1000 + 2 * (words[leaning] % 5000) + np.repeat(labels, lengths)[leaning]) % len(
                vocabulary
            )
            texts = np.split(vocabulary[words], np.cumsum(lengths)[:-1])
            file.writelines(f"{' '.join(text)},{label}\n" for text, label in zip(texts, labels))


def prepare(folder: Path, config: dict, out: str, workers: int) -> tuple[float, float]:
    """Seconds and peak memory (GiB, the sum of an upper bound for each process) of one preparation."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(PREPARE), "--config", str(folder / "config.yaml"), "--packages", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(folder / out), "--workers", str(workers)])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak


def tree_memory(pid: int) -> float:
    """GiB of a process and its children, pages that they share counted once (PSS; Linux)."""
    total, queue = 0, [pid]
    while queue:
        current = queue.pop()
        try:
            rollup = Path(f"/proc/{current}/smaps_rollup").read_text()
            total += int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
            for task in Path(f"/proc/{current}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
        except (OSError, StopIteration):
            continue
    return total / 2**20


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.json*")):
        total.update(path.read_bytes())
    return total.hexdigest()


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--rows", type=int, default=1_000_000)
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--check", action="store_true", help="prepare again with one worker and compare")
    args = command.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(folder / "rows.csv", args.rows)
        config = {
            "seed": 1,
            "tasks": {
                "reviews": {
                    "kind": "label",
                    "labels": ["negative", "positive"],
                    "instruction": "Positive or negative?",
                    "claims": {"negative": "a bad opinion", "positive": "a good opinion"},
                    "train": {
                        "files": [str(folder / "rows.csv")],
                        "text": "text",
                        "label": "label",
                        "values": ["negative", "positive"],
                    },
                }
            },
            "rows": {
                "test": args.rows // 100,
                "validation": args.rows // 100,
                **dict.fromkeys(("sft", "label_pairs", "rationale_pairs", "unsupervised"), "all"),
                **dict.fromkeys(("test_label_pairs", "test_rationale_pairs", "validation_label_pairs"), "all"),
            },
        }
        seconds, memory = prepare(folder, config, "out", args.workers)
        written = json.loads((folder / "out" / "report.json").read_text())["files"]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            json.dumps(
                {
                    "rows": args.rows,
                    "workers": args.workers,
                    "seconds": round(seconds, 1),
                    "rows_per_second": round(args.rows / seconds),
                    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
                    "peak_gib": round(memory, 2),
                    "lines_written": sum(file["rows"] for file in written.values()),
                }
            )
        )
        if args.check:
            prepare(folder, config, "one", 1)
            same = digest(folder / "out") == digest(folder / "one")
            print(json.dumps({"same_files_with_one_worker": same}))
            sys.exit(not same)


if __name__ == "__main__":
    main()
