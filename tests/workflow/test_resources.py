"""What jobs ask of a cluster follows from what there is to do."""

import json
import subprocess
import sys

import pytest

ASK = """
include: "{project}/Snakefile"

class Asked(dict):
    __getattr__ = dict.__getitem__

def minutes(*arguments, attempt=1, **wildcards):
    return on_gpus(*arguments)["runtime"](Asked(wildcards), attempt)

import json
print("ASKED", json.dumps({{name: eval(text) for name, text in {asked!r}.items()}}))
"""


def asked(project, folder, texts: dict[str, str], *config: str) -> dict:
    """The values of expressions within the workflow."""
    path = folder / "Asking"
    path.write_text(ASK.format(project=project, asked=texts))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", path, "--directory", folder, "--dry-run", "--quiet", "all",
         "--configfile", project / "config/config.yaml", *(["--config", *config] if config else []), "--",
         "results/.code/metrics.yaml"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ASKED")] or [done.stdout + done.stderr]
    return json.loads(line.removeprefix("ASKED"))


def test_runtimes_follow_from_rows_model_and_launch(project, tmp_path):
    texts = {
        "sft": "minutes(model='mistral', sft_method='sft_wrat')",
        "again": "minutes(model='mistral', sft_method='sft_wrat', attempt=2)",
        "all rows": "minutes(model='mistral', sft_method='sft_wrat_all')",
        "larger": "minutes(model='llama2-13b', ppo_method='rllr')",
        "ppo": "minutes(model='mistral', ppo_method='rllr')",
        "two rewards": "minutes(model='mistral', ppo_method='rllr_mix')",
        "answers": "minutes('predict', 1, model='mistral', method='sft_wrat')",
        "best of n": "minutes('predict', 1, model='mistral', method='sft_wrat_bon')",
        "quality": "minutes('quality', 1, model='mistral', method='sft_wrat')",
        "tiny": "minutes(model='tiny', ppo_method='rllr_mix')",
    }
    alone = asked(project, tmp_path, texts)
    assert alone["tiny"] < 60 < alone["quality"] < alone["answers"] < alone["best of n"] / 6
    assert alone["ppo"] < alone["two rewards"] < alone["larger"]
    assert 2 * alone["sft"] <= alone["again"] <= 2 * alone["sft"] + 1 and alone["all rows"] > 2 * alone["sft"]
    side_by_side = asked(project, tmp_path, texts, "overrides={mistral: {launch: {processes: 4}}}")
    assert alone["sft"] / 4 < side_by_side["sft"] < alone["sft"] / 2
    assert side_by_side["answers"] == alone["answers"]  # by one process


def test_rows_are_counted_once_they_are_there(project, finished, tmp_path):
    counts = {
        file: f"rows_of('demo', '{file}')"
        for file in ("sft_with_rat_train", "sft_with_rat_all", "test", "rllr_reward_train", "unsupervised")
    }
    expected = {}
    for file in counts:
        lines = (finished.folder / f"results/data/demo/{file}.jsonl").read_text().splitlines()
        expected[file] = len(lines)
    assert asked(project, finished.folder, counts) == expected
    config = tmp_path / "config/data/demo.yaml"
    config.parent.mkdir(parents=True)
    config.write_text((finished.folder / "config/data/demo.yaml").read_text())
    wanted = asked(project, tmp_path, counts | {"prompt": "prompt_of('demo', 'test', 300)"})
    assert wanted.pop("prompt") == pytest.approx(100) and wanted == expected
    every = asked(project, tmp_path, {"test": "rows_of('nlu8', 'test')"})["test"]
    assert every == 7 * 20_000 + 2000
