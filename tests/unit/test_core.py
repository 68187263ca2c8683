"""Files, checkpoints, config, token ids and reward-model loss: each against its promise."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr import checkpoints
from rllr.cli import UserError, machine_fault
from rllr.config import load_stage, load_yaml, merge, schema, shares, stage_config, typed
from rllr.files import atomic_dir, atomic_file, read_jsonl, stage_lock, write_json
from rllr.lm.tokens import Encoder
from rllr.rows import read_pairs, read_prompts, read_responses
from rllr.train.pairwise import pair_metrics, pairwise_loss
from rllr.train.trainer import SupervisedConfig

ROOT = Path(__file__).resolve().parents[2]


# Files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write("new")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "folder") as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_stage_folder_has_one_program_at_a_time(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rllr.files import stage_lock\n"
        "stage_lock(sys.argv[2]).__enter__()"
    )
    with stage_lock(tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "workflow/scripts"), str(tmp_path)], capture_output=True, text=True
        )
    assert "another program is working in this folder" in other.stderr
    with stage_lock(tmp_path):
        pass


def test_a_full_disk_is_told_in_one_line():
    error = OSError(28, "No space left on device")
    error.filename = "x/adapter"
    wrapped = RuntimeError("could not write")
    wrapped.__cause__ = error
    assert machine_fault(wrapped).startswith("x/adapter: no space left")
    assert machine_fault(ValueError("else")) is None


# Checkpoints


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(range(100)) * step)
    checkpoints.seal(checkpoint)
    return checkpoint


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "unsealed", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, fault):
    good, bad = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    weights = bad / "weights"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif fault == "flipped":
        data = bytearray(weights.read_bytes())
        data[50] ^= 1
        weights.write_bytes(data)
    elif fault == "missing":
        weights.unlink()
    elif fault == "unsealed":
        (bad / checkpoints.MANIFEST).unlink()
    else:
        (bad / checkpoints.MANIFEST).write_text("{")
    assert checkpoints.latest(tmp_path) == good
    assert "checkpoint-10: not used" in capsys.readouterr().err


def test_another_fingerprint_starts_afresh(tmp_path):
    checkpoints.prepare(tmp_path / "c", [], value=1)
    make_checkpoint(tmp_path / "c", 5)
    checkpoints.prepare(tmp_path / "c", [], value=1)
    assert checkpoints.latest(tmp_path / "c") is not None
    checkpoints.prepare(tmp_path / "c", [], value=2)
    assert checkpoints.latest(tmp_path / "c") is None


def test_the_fingerprint_sees_config_inputs_and_settings_but_no_times(tmp_path):
    (tmp_path / "in").write_text("a")
    first = checkpoints.fingerprint([tmp_path / "in"], tau=1.0)
    shutil.copy(tmp_path / "in", tmp_path / "in2")
    (tmp_path / "in").touch()
    assert checkpoints.fingerprint([tmp_path / "in"], tau=1.0) == first
    assert checkpoints.fingerprint([tmp_path / "in"], tau=2.0) != first
    (tmp_path / "in").write_text("b")
    assert checkpoints.fingerprint([tmp_path / "in"], tau=1.0) != first


def test_only_the_newest_two_checkpoints_stay(tmp_path):
    for step in (5, 10, 15, 100):
        make_checkpoint(tmp_path, step)
    checkpoints.rotate(tmp_path)
    assert [p.name for p in checkpoints.by_age(tmp_path)] == ["checkpoint-100", "checkpoint-15"]


# Config


def test_merge_and_typed():
    assert merge({"a": {"b": 1, "c": 2}, "l": [1]}, {"a": {"b": 3}}, {"l": [2]}) == {"a": {"b": 3, "c": 2}, "l": [2]}
    assert typed({"a": {"b": "1e-5", "c": "yes it is", "d": ["2"]}}) == {"a": {"b": 1e-5, "c": "yes it is", "d": [2]}}
    assert typed({"licence": "A: B: C"}) == {"licence": "A: B: C"}


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match="given twice"):
        load_yaml(tmp_path / "x.yaml")


def test_every_model_resolves_every_stage():
    from rllr.methods import SECTIONS
    from rllr.ppo.iteration import PPOConfig
    from rllr.predict.model_file import PredictConfig
    from rllr.train.trainer import PreferenceConfig, RewardConfig

    classes = {
        "sft": SupervisedConfig, "reward": RewardConfig, "dpo": PreferenceConfig, "ppo": PPOConfig,
        "predict": PredictConfig,
    }  # fmt: skip

    defaults = load_yaml(ROOT / "config/stages.yaml")
    for path in sorted((ROOT / "config/models").glob("*.yaml")):
        for stage in SECTIONS:
            resolved = {"model": path.stem, **stage_config(defaults, load_yaml(path), stage, 1, str(path))}
            assert set(resolved) == set(classes[SECTIONS[stage]].__dataclass_fields__)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"extra": 1}, "unknown key extra"), ({"seed": None}, "seed: expected int"), ({"seed": ...}, "missing key seed")],
)
def test_a_stage_config_is_checked(tmp_path, change, expected):
    defaults = load_yaml(ROOT / "config/stages.yaml")
    values = {
        "model": "tiny",
        **stage_config(defaults, load_yaml(ROOT / "config/models/tiny.yaml"), "sft", 1, "x"),
        **change,
    }
    values = {k: v for k, v in values.items() if v is not ...}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=expected):
        load_stage(SupervisedConfig, tmp_path / "config.yaml")


def test_uneven_batches_are_refused():
    assert shares(32, "micro_batch_size", 4, 2) == 4
    with pytest.raises(UserError, match="not a multiple"):
        shares(32, "micro_batch_size", 5, 1)


def test_keeping_the_best_adapter_needs_validation():
    defaults, model = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
    model["rllr"] = {"keep": "best", "validate_iterations": 0}
    with pytest.raises(UserError, match="x: rllr: keep: best needs validate_iterations above 0, found 0"):
        stage_config(defaults, model, "rllr", 1, "x")


def test_a_method_stays_what_it_is_whatever_a_models_section_says():
    defaults, model = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
    model["ppo"] |= {"baseline": "all_labels", "label_reward_threshold": 9.0}
    rloo, gold = (stage_config(defaults, model, name, 1, "x") for name in ("rllr_rloo", "rlvr_mix"))
    assert (rloo["baseline"], rloo["samples_per_prompt"]) == ("leave_one_out", 4)
    assert (gold["baseline"], gold["label_reward_threshold"]) == ("all_labels", 1.0)
    assert stage_config(defaults, model | {"rllr_rloo": {"samples_per_prompt": 2}}, "rllr_rloo", 1, "x") == {
        **rloo, "samples_per_prompt": 2,
    }  # fmt: skip


def test_the_schemas_say_nothing_by_accident():
    """A comma in an unquoted description starts a key of its own."""
    from jsonschema import Draft202012Validator

    known = {*Draft202012Validator.VALIDATORS, "then", "else", "$defs", "description", "$schema", "title"}

    def strange(node, names: bool = False) -> list[str]:
        if isinstance(node, list):
            return [key for part in node for key in strange(part)]
        if not isinstance(node, dict):
            return []
        own = [] if names else [key for key in node if key not in known]
        return own + [
            k for key, part in node.items() for k in strange(part, not names and key in ("properties", "$defs"))
        ]

    for name in ("config", "data", "model"):
        assert strange(schema(name)) == []


def test_the_configuration_page_is_made_from_the_schemas():
    made = subprocess.run([sys.executable, ROOT / "workflow/schemas/document.py"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout == (ROOT / "config/README.md").read_text()


def test_conda_and_pip_have_the_same_pins():
    def pins(lines):
        return {line.split("#")[0].strip() for line in lines if "==" in line.split("#")[0]}

    conda = load_yaml(ROOT / "environment.yml")["dependencies"]
    pip = next(d["pip"] for d in conda if isinstance(d, dict))
    assert pins(pip) == pins((ROOT / "requirements.txt").read_text().splitlines())


def test_every_program_has_help_without_heavy_imports():
    for path in sorted((ROOT / "workflow/scripts").glob("*.py")):
        code = (
            f"import sys, runpy; sys.argv = [{str(path)!r}, '--help']; sys.path.insert(0, {str(path.parent)!r})\n"
            f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'sklearn', 'datasets'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
        assert f"python workflow/scripts/{path.name}" in done.stdout, f"{path.name}: no runnable example in its help"


# Rows

ROW = {"id": "a-1", "task": "movie_reviews", "instruction": "Which?", "input": "Fine."}
BAD_ROWS = [
    (read_prompts, {}, "field label is missing"),
    (read_prompts, {"label": "great"}, "'great' is not a label of task movie_reviews; expected negative, positive"),
    (read_prompts, {"label": "positive", "task": "stars"}, "unknown task 'stars'"),
    (
        read_prompts,
        {"label": "Positive"},
        "'Positive' is not a label of task movie_reviews; expected negative, positive",
    ),
    (read_prompts, {"label": "positive", "instruction": 3}, "field instruction: expected text, found 3"),
    (read_prompts, {"label": "positive", "id": "a-1"}, "field id: 'a-1' is the id of an earlier line, too"),
    (read_prompts, {"label": "positive", "history": None}, r"expected a list of \[user, assistant\] texts, found None"),
    (read_prompts, {"label": "positive", "history": [["a"]]}, r"expected a list of \[user, assistant\] texts"),
    (read_responses, {}, "field output: expected a response text"),
    (read_responses, {"output": "It is good."}, "no label of task movie_reviews can be read"),
    (read_pairs, {"output": "Label: positive"}, r"expected \[chosen, rejected\]"),
    (read_pairs, {"output": ["Label: positive", "a\nLabel: positive"]}, "needs two different labels, found 'positive'"),
    (read_pairs, {"output": ["Label: positive", "no"]}, "can be read from the rejected side"),
]


@pytest.mark.parametrize(("reader", "change", "expected"), BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, demo_tasks, reader, change, expected):
    good = {**ROW, "label": "positive", "output": "Label: positive"}
    if reader is read_pairs:
        good["output"] = ["Label: positive", "Label: negative"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**ROW, "id": "a-2", **change}) + "\n")
    extra = {read_pairs: (True,), read_prompts: (True,)}.get(reader, ())
    with pytest.raises(UserError, match=expected) as error:
        reader(path, demo_tasks, *extra)
    assert str(error.value).startswith(f"{path} line 2: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("", "empty"), ("{", "line 1: not JSON"), ("[1]", "line 1: expected a JSON object")]
)
def test_a_bad_file_is_named(tmp_path, demo_tasks, text, expected):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=expected):
        read_prompts(tmp_path / "rows.jsonl", demo_tasks)
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


# Tokens


def test_a_long_row_loses_input_text_only(tokenizer):
    row = {"id": "r", "instruction": "Say which.", "input": "word " * 100}
    encoder = Encoder(tokenizer, cutoff=120)
    response = encoder.response("Label: positive")
    prompt = encoder.prompt(row, room=len(response))
    text = tokenizer.decode(prompt)
    assert len(prompt) + len(response) <= 120 and encoder.rows_cut == 1
    assert text.startswith("<|im_start|>user\nSay which.\nword ") and text.endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response[-1] == tokenizer.eos_token_id
    short = encoder.prompt({**row, "input": "word"}, room=len(response))
    assert tokenizer.decode(short).count("word") == 1 and encoder.rows_cut == 1


def test_template_and_response_beyond_the_cutoff_are_an_error(tokenizer):
    with pytest.raises(
        UserError, match=r"row r: template, instruction and response alone need \d+ tokens, the cutoff is 40"
    ):
        Encoder(tokenizer, cutoff=40).prompt({"id": "r", "instruction": "Say which.", "input": "x"}, room=20)


def test_sft_trains_every_answer_of_a_dialogue(merged, tokenizer, tmp_path):
    """What trl's trainer makes of the rows: the mean cross-entropy over all answers and the EOS after each."""
    from datasets import Dataset
    from trl import SFTConfig

    from rllr.lm import models
    from rllr.train import supervised as sft

    row = {"id": "r", "instruction": "Good?", "input": "A film.", "output": "Yes."}
    rows = [row, row | {"history": [["Hm?", "Not </s> now<|im_end|>."], ["And?", "No."]], "output": "It is."}]
    encoded = sft.encode(rows, Encoder(tokenizer, 400))
    answers = [["Yes."], ["Not </s> now<|im_end|>.", "No.", "It is."]]
    for found, expected in zip(encoded, answers, strict=True):
        trained = [label for label in found["labels"] if label != -100]
        assert tokenizer.decode(trained) == "".join(text + "<|im_end|>" for text in expected)
        assert trained.count(2) == len(expected)
    arguments = SFTConfig(
        str(tmp_path), per_device_train_batch_size=2, max_length=None, report_to="none", use_cpu=True, bf16=False,
        dataloader_pin_memory=False, remove_unused_columns=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = sft.make_trainer(
        model=models.load_causal(merged, torch.float32), args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list([*encoded, sft.blank(2)]),
        peft_config=models.lora_config({"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}, "CAUSAL_LM"),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=trainer.items(batch)).item()
    plain, losses = models.load_causal(merged, torch.float32), []
    for found in encoded:
        logits = plain(input_ids=torch.tensor([found["input_ids"]])).logits[0].detach().log_softmax(-1)
        losses += [-logits[i - 1, label].item() for i, label in enumerate(found["labels"]) if label != -100]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_tokens_weigh_what_they_decide(tokenizer):
    """A byte a token here: the label's words weigh 10, what is quoted 0.3, all else and the EOS 1."""
    from rllr.train.supervised import encode

    text = 'It is Not bad, as "not dull" says.\nLabel: not bad'
    row = {"id": "r", "instruction": "Good?", "input": "x", "output": text, "label": "not bad"}
    (found,) = encode([row], Encoder(tokenizer, 400), label_weight=10, quote_weight=0.3)
    weights = found["weights"][-len(text) - 1 :]
    expected = [1.0] * (len(text) + 1)
    for part, weight in (("Not bad", 10), ("not dull", 0.3)):
        start = text.index(part)
        expected[start : start + len(part)] = [weight] * len(part)
    expected[text.rindex("not bad") : len(text)] = [10] * len("not bad")
    assert weights == expected
    (plain,) = encode([row], Encoder(tokenizer, 400))
    assert plain["weights"] == [1.0] * len(plain["input_ids"]) and plain["labels"] == found["labels"]


# Reward models


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pairwise_loss_equals_a_plain_loop(data):
    pairs = []
    for _ in range(data.draw(st.integers(1, 3))):
        prefix = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        sides = [[*prefix, first, *data.draw(st.lists(st.integers(1, 5), max_size=4))] for first in (6, 7)]
        pairs.append(sides)
    flat = [side for sides in pairs for side in sides]  # chosen, rejected, chosen, ...
    width = max(map(len, flat))
    tokens = torch.tensor([side + [0] * (width - len(side)) for side in flat])
    kept = torch.tensor([[j < len(side) for j in range(width)] for side in flat])
    scores = torch.randn(len(flat), width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = pairwise_loss(scores, tokens, kept)
    for i, (chosen, rejected) in enumerate(pairs):
        start = next(t for t in range(width) if chosen[t] != rejected[t])
        end = max(len(chosen), len(rejected))
        losses = []
        for t in range(start, end):
            c = scores[2 * i, min(t, len(chosen) - 1)].item()
            r = scores[2 * i + 1, min(t, len(rejected) - 1)].item()
            losses.append(math.log1p(math.exp(-(c - r))))
        assert found[i].item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    same = [part[::2].repeat_interleave(2, 0) for part in (tokens, kept)]
    assert not pairwise_loss(scores, *same).any()  # equal sides, which fill up batches


def test_pair_metrics():
    rows = [{"task": "a"}, {"task": "a"}, {"task": "b"}]
    found = pair_metrics(rows, torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert found["pair_accuracy"] == pytest.approx(0.5) and found["n"] == 3
    assert found["tasks"]["a"] == {"pair_accuracy": 0.5, "mean_margin": 0.0, "n": 2}
    assert found["tasks"]["b"]["pair_accuracy"] == 0.5


# The method


def test_tau_comes_from_the_config_or_from_the_validation_slice(tmp_path):
    from rllr.ppo.scoring import Threshold, threshold

    (tmp_path / "rm_rllr").mkdir()
    assert threshold("rllr", "auto", tmp_path) == Threshold(None, "not used")
    assert threshold("rllr_mix", 3.5, tmp_path) == Threshold(3.5, "config")
    write_json(tmp_path / "rm_rllr/metrics.json", {"chosen_median_validation": 1.25})
    assert threshold("rllr_mix", "auto", tmp_path).value == 1.25
    write_json(tmp_path / "rm_rllr/metrics.json", {})
    with pytest.raises(UserError, match="give a number"):
        threshold("rllr_mix", "auto", tmp_path)
    with pytest.raises(UserError, match="give a number"):
        threshold("rlvr_mix", "auto", tmp_path)


def test_no_file_of_the_project_names_a_registry_or_a_machine():
    pattern = re.compile(r"https?://(?:pypi|files\.pythonhosted|deb\.debian)")
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / path).suffix in (".py", ".smk", ".yaml", ".md", ".txt") and (ROOT / path).is_file():
            assert not pattern.search((ROOT / path).read_text(encoding="utf-8")), path


@pytest.mark.parametrize("fault", ["no folder", "no weights"])
def test_a_base_folder_without_a_model_is_named(tmp_path, merged, fault):
    from rllr.lm import models

    if fault == "no weights":
        shutil.copy(merged / "config.json", tmp_path)
    with pytest.raises(UserError, match="no weights" if fault == "no weights" else "not a model folder"):
        models.load_tokenizer(tmp_path)


def test_a_program_meets_bad_data_with_one_line_and_leaves_its_folder_alone(tmp_path, merged):
    defaults, tiny = load_yaml(ROOT / "config/stages.yaml"), load_yaml(ROOT / "config/models/tiny.yaml")
    config = {"model": "tiny", **stage_config(defaults, tiny, "sft_wrat", 1, "x")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(tmp_path / "tasks.json", {"movie_reviews": {"kind": "label", "labels": ["negative", "positive"]}})
    (tmp_path / "data.jsonl").write_text(json.dumps({**ROW, "output": "Good.\nLabel: great"}) + "\n")
    (tmp_path / "out/adapter").mkdir(parents=True)
    arguments = [
        "--config",
        "config.yaml",
        "--base",
        merged,
        "--data",
        "data.jsonl",
        "--tasks",
        "tasks.json",
        "--out",
        "out",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "workflow/scripts/sft.py", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: data.jsonl line 1: field output: no label of task movie_reviews")
    assert len(done.stderr.splitlines()) == 1 and (tmp_path / "out/adapter").is_dir()


def test_the_attention_implementation_is_chosen_by_its_key(merged):
    import torch

    from rllr.lm import models

    ids = torch.arange(3, 12)[None]
    found = {}
    for attention in ("auto", "sdpa", "eager"):
        model = models.load_causal(merged, torch.float32, attention)
        found[attention] = model(input_ids=ids).logits, model.config._attn_implementation
    assert [found[a][1] for a in found] == ["sdpa", "sdpa", "eager"]
    assert torch.allclose(found["sdpa"][0], found["eager"][0], atol=1e-5)
    with pytest.raises(UserError, match=r"attention: flash_attention_2 cannot be had for .*; use auto"):
        models.load_causal(merged, torch.float32, "flash_attention_2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a choice for CPUs")
def test_bf16_training_on_a_cpu_attends_otherwise_without_gradients(merged):
    from rllr.lm import models

    ids, found = torch.arange(3, 12)[None], {}
    for precision, attention in (("bf16", "auto"), ("bf16", "sdpa"), ("fp32", "auto")):
        model = models.load_causal(merged, models.DTYPES[precision], attention, training=True)
        logits = []
        for gradients in (True, False, True):
            with torch.set_grad_enabled(gradients):
                logits.append(model(input_ids=ids).logits)
            found[precision, attention, gradients] = model.config._attn_implementation
        assert torch.equal(logits[0], logits[2])
        distance = (logits[0] - logits[1]).float().norm() / logits[0].float().norm()
        assert distance < (0.02 if precision == "bf16" else 1e-6)
    assert [key for key, implementation in found.items() if implementation != "sdpa"] == [("bf16", "auto", True)]
    assert found["bf16", "auto", True] == "eager"


# Decoding


@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_layer_gets_no_strided_slice(merged, rows):
    # For one, PyTorch's product on a CPU copies the layer's weights once for every row.
    from rllr.lm import models
    from rllr.lm.generation import generate

    model, dense = models.load_causal(merged, torch.float32), []
    model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: dense.append(inputs[0]))
    generate(model, [list(range(3, 12 + row)) for row in range(rows)], [], 0, 4)
    assert [hidden.shape for hidden in dense] == [(rows, 1, 32)] * 4
    assert all(hidden.is_contiguous() for hidden in dense)


def test_any_stop_token_ends_a_response_and_leaves_its_text(merged, tokenizer):
    from rllr.lm import models
    from rllr.lm.generation import decoded, generate, stop_ids

    model, prompts = models.load_causal(merged, torch.float32), [[10, 11], [20, 21, 22]]
    whole = generate(model, prompts, [], 0, 6).responses
    stop = whole[0][2]  # an ordinary token
    for listed, expected in ((None, [2]), (stop, [2, stop]), ([stop, 2], [2, stop])):
        model.generation_config.eos_token_id = listed
        stops = stop_ids(model, tokenizer)
        assert stops == expected
    assert not any(2 in response for response in whole)  # EOS, which decoding would leave out, too
    ended = generate(model, prompts, stops, 0, 6).responses
    for response, full in zip(ended, whole, strict=True):
        assert response == (full[: full.index(stop) + 1] if stop in full else full)
    assert decoded(tokenizer, ended, stops) == [tokenizer.decode([i for i in ids if i != stop]) for ids in ended]


def test_attention_in_fp32_is_exact_but_for_the_last_rounding():
    from rllr.lm.models import sdpa_in_fp32

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 16).bfloat16()
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = sdpa_in_fp32(torch.nn.Module(), query, key, value, visible)
    scores = query.double() @ key.double().transpose(2, 3) / 4
    exact = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value.double()
    assert found.dtype == torch.bfloat16
    assert (found.transpose(1, 2) == exact.bfloat16()).float().mean() > 0.999


def test_bf16_decoding_on_a_cpu_keeps_its_stream_and_attention_in_fp32(merged):
    from rllr.lm import models

    ids, found = torch.arange(3, 12)[None], {}
    for dtype, attention in ((torch.bfloat16, "auto"), (torch.bfloat16, "sdpa"), (torch.float32, "auto")):
        model = models.load_adapter(merged, None, dtype, attention)
        assert next(model.parameters()).dtype == dtype
        with torch.no_grad(), models.autocast(dtype):
            streams = model(input_ids=ids, output_hidden_states=True).hidden_states
        found[dtype, attention] = model.config._attn_implementation, {stream.dtype for stream in streams}
    assert found == {
        (torch.bfloat16, "auto"): ("sdpa_in_fp32", {torch.float32}),
        (torch.bfloat16, "sdpa"): ("sdpa", {torch.bfloat16}),  # a choice of one's own
        (torch.float32, "auto"): ("sdpa", {torch.float32}),
    }
