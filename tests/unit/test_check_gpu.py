"""The check of a GPU, rehearsed in small: every part gives its rows, and one that fails takes no other with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "benchmarks/check_gpu.py"


def rehearse(out: Path, *parts: str) -> tuple[subprocess.CompletedProcess, dict]:
    """The finished program, and its JSON file."""
    command = [sys.executable, CHECK, "--rehearse", "--out", out, "--work", out, "--parts", *parts]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    (file,) = out.glob("*.json")
    return done, json.loads(file.read_text())


def test_every_part_but_the_stages_gives_finite_rows(tmp_path):
    done, found = rehearse(tmp_path, "attention", "ppo, checkpointing", "ppo", "micro-batches", "decoding")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {part: [row for row in found["rows"] if row["part"] == part] for part in {r["part"] for r in found["rows"]}}
    assert rows.keys() == {
        "device", "attention", "model", "ppo, checkpointing", "ppo", "micro-batches", "decoding",
    }  # fmt: skip
    assert found["versions"]["torch"] == torch.__version__ and found["rehearsal"] and found["date"]
    assert {row["note"].split(":")[0] for row in rows["attention"]} <= {"finite", "not available"}
    assert [row["note"] for row in rows["micro-batches"]] == ["finite"] * 4
    for row in (*rows["ppo"], *rows["micro-batches"], *rows["decoding"][:3]):
        assert min(row[key] for key in ("seconds", "tokens_per_second", "peak_gib", "estimate_gib")) > 0
    assert len(done.stdout.splitlines()) == 2 + len(found["rows"])  # the table


def test_a_part_that_fails_hangs_or_misses_a_package_is_a_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import check_gpu

    programs = {
        "crash": "import json, os; print('row', json.dumps({'case': 'first'}), flush=True); os.abort()",
        "hang": "import time; time.sleep(60)",
        "package": "import no_such_package",
    }
    found = {}
    for name, program in programs.items():
        (tmp_path / "part.py").write_text(program)
        monkeypatch.setattr(check_gpu, "__file__", str(tmp_path / "part.py"))
        found[name] = check_gpu.results(name, tmp_path, True, limit=2 if name == "hang" else 60)
    assert [row.get("case") for row in found["crash"]] == ["first", ""]
    assert found["crash"][1]["note"].startswith("FAILED (-6)")
    assert found["hang"] == [{"part": "hang", "case": "", "note": "FAILED: not done after 2 s "}]
    assert found["package"] == [{"part": "package", "case": "", "note": "skipped: no no_such_package"}]


@pytest.mark.parametrize("part", [pytest.param("stages, bf16", marks=pytest.mark.slow), "stages, fp16"])
def test_every_stage_runs(tmp_path, part):
    done, found = rehearse(tmp_path, part)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in found["rows"] if row["part"] == part]
    assert len(rows) == 14 and all(row["note"].startswith("done") for row in rows)
