"""How long an answer may be: what the training responses need, and a number that cuts them refused."""

import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import write_rows
from rllr.cli import UserError
from rllr.lm.lengths import answer_room, with_margin
from rllr.lm.tokens import Encoder


def file_of(folder, lengths):
    """Responses of so many tokens (a byte each, and EOS)."""
    return write_rows(folder / "sft_with_rat_train.jsonl", [{"output": "x" * (length - 1)} for length in lengths])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 300), min_size=1, max_size=120), setting=st.integers(1, 320))
def test_what_cuts_more_than_a_hundredth_is_refused(tmp_path, tokenizer, lengths, setting):
    path, encoder, longest = file_of(tmp_path, lengths), Encoder(tokenizer, 64), max(lengths)
    found = answer_room("auto", path, encoder)
    assert 1.25 * longest <= found < 1.25 * longest + 8 and found % 8 == 0
    cut = sum(length > setting for length in lengths)
    if cut / len(lengths) <= 0.01:
        assert answer_room(setting, path, encoder) == setting
        return
    told = rf"max_new_tokens {setting} cuts {cut} of the {len(lengths)} responses .* longest has {longest} tokens"
    with pytest.raises(UserError, match=told + f".* give {with_margin(longest)}, or auto"):
        answer_room(setting, path, encoder)


def test_one_in_a_hundred_may_be_cut(tmp_path, tokenizer):
    encoder = Encoder(tokenizer, 64)
    assert answer_room(20, file_of(tmp_path, [30, *[10] * 99]), encoder) == 20
    with pytest.raises(UserError, match="cuts 1 of the 99"):
        answer_room(20, file_of(tmp_path, [30, *[10] * 98]), encoder)
    with pytest.raises(UserError, match=r"sft_with_rat_train\.jsonl: the file is empty"):
        answer_room("auto", file_of(tmp_path, []), encoder)
    (tmp_path / "test.jsonl").write_text('{"id": "1", "input": "x", "label": "sea"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl line 1: field output: expected a response text, found None"):
        answer_room("auto", tmp_path / "test.jsonl", encoder)


def test_prediction_and_ppo_refuse_before_a_model_is_loaded(merged, tmp_path, monkeypatch, capsys, demo_tasks):
    import predict
    from rllr.config import load_yaml, stage_config
    from rllr.files import write_json
    from rllr.ppo.iteration import PPOConfig
    from rllr.ppo.run import Run
    from rllr.tasks import dump_tasks
    from test_base_models import ROOT

    row = {"id": "1", "task": "movie_reviews", "instruction": "Good?", "input": "x", "label": "positive"}
    for name in ("test", "unsupervised"):
        write_rows(tmp_path / f"{name}.jsonl", [row])
    responses = file_of(tmp_path, [30] * 10)
    write_json(tmp_path / "tasks.json", dump_tasks(demo_tasks))
    model = {**load_yaml(ROOT / "config/models/tiny.yaml"), "predict": {"max_new_tokens": 16}}
    model["ppo"] = {**model["ppo"], "max_new_tokens": 16}
    defaults = load_yaml(ROOT / "config/stages.yaml")
    resolved = {stage: stage_config(defaults, model, stage, 1, "tiny") for stage in ("predict", "rlvr")}
    told = r"max_new_tokens 16 cuts 10 of the 10 responses in sft_with_rat_train\.jsonl"

    write_json(tmp_path / "config.yaml", {"model": "m", **resolved["predict"]})
    options = {"config": tmp_path / "config.yaml", "base": merged, "tasks": tmp_path / "tasks.json"}
    options |= {"data": tmp_path / "test.jsonl", "out": tmp_path / "m/predictions.jsonl"}
    command = ["predict.py", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    monkeypatch.setattr(sys, "argv", [*command, "--responses", str(responses)])
    monkeypatch.setattr("rllr.lm.models.load_causal", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=told):
        predict.main()

    write_json(tmp_path / "config.yaml", {"model": "m", **resolved["predict"], "max_new_tokens": "auto"})
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        predict.main()
    assert re.search("max_new_tokens is auto: give --responses", capsys.readouterr().err)

    config = PPOConfig(model="m", **resolved["rlvr"])
    run = Run(config, tmp_path, merged, tmp_path, tmp_path, tmp_path / "rlvr", demo_tasks, [row], [])
    with pytest.raises(UserError, match=told):
        run.train()
