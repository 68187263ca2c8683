"""`--sdm conda`: jobs run in the environment built from environment.yml, by a stand-in that logs who calls it."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from conftest import OWN, Run, own_rows

ROOT = Path(__file__).resolve().parents[2]

# What Snakemake asks of conda, and an environment whose python says that it was used and goes on as this one.
CONDA = """#!/usr/bin/env bash
case "$*" in
  "info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64", "root_prefix": "{base}"}}' ;;
  "--version") echo "conda 25.1.0" ;;
  "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create"*)
    while [ $# -gt 0 ]; do case "$1" in --file) file=$2 ;; --prefix) prefix=$2 ;; esac; shift; done
    cp "$file" {base}/built_from.yml
    mkdir -p "$prefix/bin"
    printf '#!/usr/bin/env bash\\necho "$*" >> {base}/used\\nexec {python} "$@"\\n' > "$prefix/bin/python"
    chmod +x "$prefix/bin/python" ;;
  clean*) ;;
  *) echo "conda $*: not expected" >&2; exit 1 ;;
esac
"""


def test_jobs_run_in_the_environment_that_environment_yml_says(project, tmp_path):
    run = Run(project, tmp_path / "run")
    own_rows(run.folder / "rows/train.jsonl", 60)
    own_rows(run.folder / "rows/test.jsonl", 12, first=100)
    (run.folder / "config/data").mkdir(parents=True)
    (run.folder / "config/data/own.yaml").write_text(yaml.safe_dump(OWN, sort_keys=False))
    base = tmp_path / "conda"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "conda").write_text(CONDA.format(base=base, python=sys.executable))
    (base / "bin" / "conda").chmod(0o755)
    (base / "bin" / "activate").write_text('export PATH="$1/bin:$PATH" CONDA_PREFIX="$1"\n')
    path = f"{base / 'bin'}:{os.environ['PATH']}"
    targets = ["--config", "data=own", "--", "results/data/own/sft_train.jsonl", "results/tiny/base"]

    def built_and_run() -> str:
        done = subprocess.run(
            run.command("--sdm", "conda", *targets),
            capture_output=True, text=True, timeout=600, env=os.environ | {"PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    built_and_run()
    assert (base / "built_from.yml").read_text() == (ROOT / "environment.yml").read_text()
    used = (base / "used").read_text()
    assert "prepare.py" in used and "base.py" in used
    assert "Nothing to be done" in built_and_run()
