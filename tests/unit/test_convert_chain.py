"""Every stage from base to export on small checkpoints in the published layouts, each a process as in the workflow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import published_layouts
from conftest import write_rows
from test_base_models import native

ROOT = Path(__file__).parents[2]
FILMS = ["A joy from start to end.", "Two hours that I want back.", "Fine acting, thin plot.", "Dull, dull, dull."] * 2
SMALL = {
    "sft": {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "cutoff": 512, "save_steps": 100},
    "reward": {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "cutoff": 512, "save_steps": 100},
    "ppo": {"batch_size": 4, "micro_batch_size": 2, "cutoff": 512, "save_iterations": 100},
    "predict": {"precision": "bf16", "batch_size": 8, "cutoff": 512},
}


def prepared(folder: Path) -> Path:
    """The seven data files with eight rows each."""
    folder.mkdir()
    task = {"kind": "label", "labels": ["positive", "negative"], "metric": "accuracy"}
    (folder / "tasks.json").write_text(json.dumps({"movies": task}))
    rows = []
    for number, text in enumerate(FILMS):
        row = {"id": str(number), "task": "movies", "instruction": "Positive or negative?", "input": text}
        rows.append(row | {"label": "negative" if number % 2 else "positive"})

    def output(row, *responses):
        return row | {"output": responses[0] if len(responses) == 1 else list(responses)}

    def right(row):
        return f"It says so.\nLabel: {row['label']}"

    def wrong(row):
        return f"It does not say so.\nLabel: {'positive' if row['label'] == 'negative' else 'negative'}"

    label_sensitive = [output(row, right(row), wrong(row)) for row in rows]
    rationale_sensitive = [output(row, right(row), f"Hm.\nLabel: {row['label']}") for row in rows]
    files = {
        "sft_with_rat_train": [output(row, right(row)) for row in rows],
        "rllr_reward_train": label_sensitive,
        "rlhf_reward_train": rationale_sensitive,
        "label_sensitive_pairs_for_test": label_sensitive,
        "label_sensitive_pairs_for_validation": label_sensitive,
        "rationale_sensitive_pairs_for_test": rationale_sensitive,
        "unsupervised": rows,
        "validation": rows,
        "test": rows,
    }
    for name, content in files.items():
        write_rows(folder / f"{name}.jsonl", content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["baichuan2", "baichuan2-13b", "chatglm3", "llama2", "mistral", "bloom"])
def test_every_stage(tmp_path, family):
    """A stage knows nothing but its files: Baichuan2-13B's class, for one, must be made known in each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rllr.base import register
    from rllr.config import load_yaml, stage_config

    source, out = tmp_path / "published", tmp_path / "results"
    base = {"source": "local", "path": str(source)}
    if family in ("llama2", "mistral", "bloom"):
        native(family, source)
    else:
        base["convert"] = family
        if family == "chatglm3":
            published_layouts.chatglm3(source)
        else:
            published_layouts.baichuan2(source, alibi=family == "baichuan2-13b")
    model = load_yaml(ROOT / "config" / "models" / f"{family.replace('bloom', 'bloom3b')}.yaml")
    model = {**{key: model[key] for key in ("template", "lora")}, "precision": "fp32", **SMALL}
    defaults, data = load_yaml(ROOT / "config" / "stages.yaml"), prepared(tmp_path / "data")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"base": base}))

    def stage(program: str, name: str | None = None, **options):
        if name is not None:
            options["config"] = tmp_path / f"{name}.yaml"
            resolved = {"model": family, **stage_config(defaults, model, name, 1, family)}
            options["config"].write_text(yaml.safe_dump(resolved))
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        command = [sys.executable, ROOT / "workflow" / "scripts" / f"{program}.py", *arguments]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 0, f"{program}: {found.stderr}"

    template, tasks = ROOT / "config" / "templates" / f"{model['template']}.jinja", data / "tasks.json"
    stage("base", config=tmp_path / "base.yaml", template=template, out=out / "base")
    rows = data / "sft_with_rat_train.jsonl"
    stage("sft", "sft_wrat", base=out / "base", data=rows, tasks=tasks, out=out / "sft_wrat")
    merged = out / "sft_wrat" / "merged"
    stage("merge", base=out / "base", adapter=out / "sft_wrat" / "adapter", out=merged)
    for name in ("rm_rlhf", "rm_rllr"):
        stage("reward", name, base=merged, data=data, out=out / name)
    stage("ppo", "rllr_mix", base=merged, data=data, rewards=out, out=out / "rllr_mix")
    method = out / "rllr_mix"
    predictions, final = method / "predictions.jsonl", {"base": merged, "adapter": method / "adapter"}
    stage("predict", "predict", **final, data=data / "test.jsonl", tasks=tasks, responses=rows, out=predictions)
    assert len(predictions.read_text().splitlines()) == len(FILMS)
    logged = [json.loads(line) for line in (method / "train_log.jsonl").read_text().splitlines()]
    steps = [row for row in logged if "loss" in row]
    assert len(steps) == len(FILMS) // SMALL["ppo"]["batch_size"]

    scored = {"predictions": predictions, "tasks": tasks, "out": method / "metrics.json"}
    stage("metrics", model=family, method="rllr_mix", data="films", **scored)
    used = {"metrics": scored["out"], "used": method / "model.json", "origin": out / "base" / "origin.json"}
    stage("export", "rllr_mix", **final, **used, out=method / "model")
    register()
    model, tokenizer = (kind.from_pretrained(method / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    stops = json.loads((out / "base" / "generation_config.json").read_text())["eos_token_id"]
    assert model.generation_config.eos_token_id == (stops if isinstance(stops, list) else [stops])
    ids = tokenizer.apply_chat_template(  # as the card says
        [{"role": "user", "content": f"{FILMS[0]}</s>"}],
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert tokenizer.eos_token_id not in ids["input_ids"] and "sanitize" in (method / "model" / "README.md").read_text()
    assert model.generate(**ids, max_new_tokens=2).shape[1] > ids["input_ids"].shape[1]
