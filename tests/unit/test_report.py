"""What people read after a run: summary, page, figures, reward quality; and what they use: predict, score, export."""

import io
import json
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import score
from rllr.cli import UserError
from rllr.evaluate import html
from rllr.evaluate import page as report
from rllr.evaluate import quality as reward_quality
from rllr.evaluate import tables as summary
from rllr.evaluate.label_metrics import method_metrics
from rllr.evaluate.tables import config_differences, markdown, spread, table, tables, tsv, verdicts
from rllr.files import write_json, write_jsonl
from rllr.lm import rewards, sampling
from rllr.tasks import ANSWER, Task, dump_tasks

PROGRAMS = Path(report.__file__).parents[2]
TASKS = {
    "reviews": Task("reviews", "label", ("positive", "negative")),
    "similarity": Task("similarity", "score", (), 0.0, 5.0, "pearson"),
}
EVIL = "<script>alert('x')</script> & \"more\""


def predictions(right: float, seed: int, n: int = 200) -> list[dict]:
    """Lines of predictions.jsonl with this share of right labels."""
    generator, lines = np.random.default_rng(seed), []
    for i in range(n):
        gold = ("positive", "negative")[i % 2]
        said = gold if generator.random() < right else ("negative", "positive")[i % 2]
        said = None if i == 7 else said
        lines.append(
            {"id": f"r{i}", "task": "reviews", "label": gold, "prediction": said, "answer": f"{EVIL}\nLabel: {said}"}
        )
    return lines


def write_run(folder: Path, shares: dict[str, float], seed: int = 0) -> Path:
    """A results folder of the model m: what metrics.py and predict.py write for each method."""
    for number, (method, right) in enumerate(shares.items()):
        lines, tasks = predictions(right, 10 * seed + number), {"reviews": TASKS["reviews"]}
        write_jsonl(folder / "m" / method / "predictions.jsonl", lines)
        names = {"model": "m", "method": method, "data": "small"}
        write_json(folder / "m" / method / "metrics.json", {**names, **method_metrics(lines, tasks)})
        used = {"config": None, "base": None, "adapter": None, "reward": None}
        write_json(
            folder / "m" / method / "model.json",
            {**used, "tasks": dump_tasks(tasks), "instructions": {}, "temperatures": {"reviews": 1.5}},
        )
        (folder / "m" / method / "config.yaml").write_text(f"seed: {seed}\nlearning_rate: 1.0e-4\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("results"), {"sft_wrat": 0.6, "rlhf": 0.62, "rllr": 0.9})


def test_the_table_says_how_much_better_and_calls_noise_noise(run):
    rows = table(run, ["m"], ["sft_wrat", "rlhf", "rllr"])
    text = markdown(tables(rows))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert lines["method"] == "| method | unparsed | reviews | mean | vs sft_wrat | vs rlhf |"
    mine, theirs = rows[2]["versus"]["sft_wrat"]["discordant"]
    assert f"({mine} : {theirs})" in lines["rllr"]
    assert "noise" in lines["rlhf"] and "noise" not in lines["rllr"] and lines["sft_wrat"].count("–") == 1
    assert f"{100 * rows[2]['score']:.1f}" in lines["rllr"] and "p " in lines["rllr"]
    assert "200 test rows of small" in text and "points or more from noise" in text
    best, other = verdicts(rows)
    assert best.startswith(
        f"rllr is {100 * (rows[2]['score'] - rows[0]['score']):.1f} points above sft_wrat (95% inter"
    )
    assert best.endswith(": not by chance.") and other.startswith("rlhf is") and other.endswith(": this may be chance.")
    head, *body = [line.split("\t") for line in tsv({"": rows}).splitlines()]
    assert head[:6] == ["model", "method", "n", "unparsed", "reviews", "mean"] and len(body) == 3
    assert all(len(line) == len(head) for line in body) and body[2][:4] == ["m", "rllr", "200", "1"]


def test_nothing_is_concluded_from_a_method_that_is_mostly_unparsed(tmp_path):
    run = write_run(tmp_path / "run", {"sft_wrat": 0.6, "rlhf": 0.7, "rllr": 0.9})
    lines = [{**line, "prediction": None} if i % 3 else line for i, line in enumerate(predictions(0.6, 0))]
    write_jsonl(run / "m/sft_wrat/predictions.jsonl", lines)
    names = {"model": "m", "method": "sft_wrat", "data": "small"}
    tasks = {"reviews": TASKS["reviews"]}
    write_json(run / "m/sft_wrat/metrics.json", {**names, **method_metrics(lines, tasks)})
    rows = {row["method"]: row for row in table(run, ["m"], ["sft_wrat", "rlhf", "rllr"])}
    assert rows["sft_wrat"]["score"] is None and rows["sft_wrat"]["versus"] == {}
    assert list(rows["rllr"]["versus"]) == ["rlhf"]  # of the baselines, the one that answers
    text = markdown(tables(list(rows.values())))
    assert "vs rlhf" in text and "vs sft_wrat" not in text
    unread = sum(line["prediction"] is None for line in lines)
    assert f"sft_wrat: {unread} of 200 answers have no readable label, most of those to reviews" in text
    assert "An unparsed answer counts as wrong" in text
    several = markdown(spread([list(rows.values())] * 2))
    assert f"sft_wrat: {2 * unread} of 400 answers" in several and "| sft_wrat | 2 |" in several
    line = next(line for line in several.splitlines() if line.startswith("| sft_wrat"))
    assert [cell.strip() for cell in line.split("|")[5:7]] == ["–", "–"]  # mean, vs rlhf
    assert "| always the most frequent label |  | – | 50.0 | 50.0 |" in several


def test_several_runs_give_means_spread_and_what_differs(tmp_path, capsys):
    runs = [write_run(tmp_path / f"run{s}", {"sft_wrat": 0.6, "rllr": 0.9}, s) for s in (1, 2, 3)]
    (tmp_path / "run3/m/rllr/metrics.json").unlink()  # not finished yet
    files = summary.summary_of_runs(runs, ["m"], ["sft_wrat", "rllr"]).files
    assert capsys.readouterr().err == f"{runs[2]}: no metrics.json yet of m/rllr\n"
    scores = [json.loads((r / "m/sft_wrat/metrics.json").read_text())["score"] for r in runs]
    line = next(line for line in files["summary.md"].splitlines() if line.startswith("| sft_wrat"))
    assert line.startswith(f"| sft_wrat | 3 | 3 | {100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f} |")
    line = next(line for line in files["summary.md"].splitlines() if line.startswith("| rllr"))
    assert line.startswith("| rllr | 2 | 2 |") and "rows [" in line and "runs [" in line
    assert "200 test rows of small. vs:" in files["summary.md"] and "can tell differences" in files["summary.md"]
    assert len(files["summary.tsv"].splitlines()) == 6
    (runs[2] / "m/rllr/config.yaml").unlink()  # a stage that was not run says nothing about differences
    assert config_differences(runs, ["m"]) == [
        ["m", "rllr", "seed", "1", "2", "–"],
        ["m", "sft_wrat", "seed", "1", "2", "3"],
    ]


def test_what_figures_show_is_what_the_table_says(tmp_path):
    from rllr.evaluate import plots

    runs = [write_run(tmp_path / f"run{s}", {"sft_wrat": 0.6, "rllr": 0.9}, s) for s in (1, 2)]
    rows = [table(run, ["m"], ["sft_wrat", "rllr"]) for run in runs]
    one = rows[0][1]["versus"]["sft_wrat"]
    assert list(one["tasks"]) == ["reviews"]  # alone, it is the mean
    shown = summary.against(rows[:1], "sft_wrat")["m"]["rllr"]
    assert shown["reviews"]["difference"] == one["difference"]
    assert shown["reviews"]["intervals"] == {"rows": one["ci95"]}
    both = summary.against(rows, "sft_wrat")["m"]["rllr"]["reviews"]
    values = [own[1]["versus"]["sft_wrat"]["difference"] for own in rows]
    assert both["difference"] == pytest.approx(np.mean(values)) and set(both["intervals"]) == {"rows", "runs"}
    half = 12.7062 * abs(values[0] - values[1]) / 2  # Student's t, one degree of freedom
    assert both["intervals"]["runs"] == pytest.approx([np.mean(values) - half, np.mean(values) + half], abs=1e-4)
    assert summary.against(rows, "rlhf") == {}
    plots.differences({}, "rlhf", tmp_path / "none.svg")  # nothing to compare with
    assert (tmp_path / "none.svg").stat().st_size


@pytest.mark.parametrize(("runs", "whole"), [(2, False), (3, True)])
def test_an_interval_over_two_runs_does_not_stretch_the_axis(monkeypatch, tmp_path, runs, whole):
    from rllr.evaluate import plots

    saved = []
    monkeypatch.setattr(plots, "save", lambda figure, path: saved.append(figure))
    values = {"difference": 0.1, "intervals": {"rows": [0.05, 0.15], "runs": [-2.0, 2.0]}, "runs": runs}
    plots.differences({"m": {"rllr": {"mean": values}}}, "sft_wrat", tmp_path / "x.svg")
    low, high = saved[0].axes[0].get_xlim()
    assert low < 0 and high > 15 and (low < -200 and high > 200) == whole and (high < 20) != whole


def test_runs_that_cannot_be_compared_are_told(tmp_path):
    small, other = write_run(tmp_path / "a", {"sft_wrat": 0.6, "rllr": 0.9}), tmp_path / "b"
    write_run(other, {"sft_wrat": 0.6, "rllr": 0.9})
    for method in ("sft_wrat", "rllr"):
        rows = predictions(0.5, 1, 100)
        write_jsonl(other / "m" / method / "predictions.jsonl", rows)
        metrics = method_metrics(rows, {"reviews": TASKS["reviews"]})
        write_json(other / "m" / method / "metrics.json", {"model": "m", "method": method, "data": "other", **metrics})
    text = summary.summary_of_runs([small, other], ["m"], ["sft_wrat", "rllr"]).files["summary.md"]
    assert "100 test rows of other, 200 test rows of small. The runs were not tested on the same rows" in text
    assert "| m | all | data | small | other |" in text
    with pytest.raises(UserError, match="no such folder"):
        summary.summary_of_runs([small, tmp_path / "none"], ["m"], ["rllr"])
    with pytest.raises(UserError, match="the same results folder twice"):
        summary.summary_of_runs([small, tmp_path / "b/../a"], ["m"], ["rllr"])
    write_jsonl(small / "m/rllr/predictions.jsonl", predictions(0.5, 1, 100))
    with pytest.raises(UserError, match="sft_wrat and rllr were tested on different rows"):
        table(small, ["m"], ["sft_wrat", "rllr"])


def test_one_run_among_several_has_no_spread(run):
    (found,) = spread([table(run, ["m"], ["sft_wrat", "rllr"])])
    assert found.lines[1][2][1] == "" and "runs [" not in found.lines[1][-1][1]


def test_few_rows_are_noise_in_a_run_among_several_as_in_one(run):
    rows = table(run, ["m"], ["sft_wrat", "rllr"])
    few = {**rows[1]["versus"]["sft_wrat"], "noise": True}  # McNemar's p, though the interval does not hold 0
    (found,) = spread([[rows[0], {**rows[1], "versus": {"sft_wrat": few}}]])
    assert found.lines[2][-1][0].endswith(" noise")


def test_text_in_html_is_escaped_everywhere():
    assert "<script>" not in html.table([EVIL], [[EVIL], [(EVIL, EVIL)]], EVIL)
    assert "<script>" not in html.page(EVIL, "")


class Checker(HTMLParser):
    """Collects tags and fails on what is never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(run, tmp_path):
    from rllr.evaluate import plots

    reward, data = run / "m" / "rm_rllr", tmp_path / "small"
    rows = [
        {"id": f"r{i}", "task": "reviews", "instruction": "?", "input": EVIL, "label": "positive"} for i in range(200)
    ]
    write_jsonl(data / "test.jsonl", rows)
    write_json(data / "tasks.json", dump_tasks({"reviews": TASKS["reviews"]}))
    write_json(tmp_path / "base/origin.json", {"id": EVIL, "parameters": 10**8, "licence": "MIT"})
    pairs = {"pair_accuracy": 0.8, "mean_margin": -0.001, "n": 10}
    write_json(reward / "metrics.json", {**pairs, "tasks": {"reviews": pairs}})
    quality = {"sft_wrat": reward_quality.statistics(samples(40))}
    write_json(reward / "quality.json", {"policies": quality})
    compared = summary.against([table(run, ["m"], ["sft_wrat", "rlhf", "rllr"])], "sft_wrat")
    plots.differences(compared, "sft_wrat", run / "differences.svg")
    plots.reliability(quality, "x", reward / "reliability.svg")
    scores = [{"set": s, "task": "reviews", "chosen": 0.5, "rejected": 0.1} for s in ("label_sensitive", "validation")]
    plots.pairs(scores, "x", reward / "pairs.svg")
    log = [{"iteration": i, "loss": 1 / i, "learning_rate": 0.1, "validation_accuracy": 0.5} for i in (1, 2, 3)]
    log = [{**line, "explained_variance": None} for line in log]  # as where returns do not vary
    plots.curves(log, "x", run / "m/rllr/curves.svg")
    for method in ("sft_wrat", "rllr"):
        lines = predictions(0.5, 0, 20)
        for draw, name in ((plots.confusion, "confusion"), (plots.coverage, "coverage")):
            draw(lines, {"reviews": TASKS["reviews"]}, "x", run / "m" / method / f"{name}.svg")
    out = tmp_path / "report.html"
    subprocess.run(
        [sys.executable, str(PROGRAMS / "report.py"), "--results", run, "--models", "m",
         "--methods", "sft_wrat", "rllr", "--reward-models", "rm_rllr", "--stages", "rllr", "--data", data,
         "--bases", tmp_path / "base", "--out", out],
        check=True,
    )  # fmt: skip
    page = out.read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open and "<script" not in page
    links = [value for tag, attributes in checker.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links) and len(links) >= 6
    for heading in (
        "Summary",
        "points above sft_wrat (95% interval",
        "Won:",
        "Lost:",
        "Unparsed:",
        "Reward models",
        "Training",
        "Configuration",
        "reviews 1.50",
    ):
        assert heading in page, heading


def test_numbers_are_counted_in_a_confusion_matrix_by_rounding(tmp_path):
    from rllr.evaluate import plots

    tasks = {"mood": Task("mood", "score", low=-1, high=1, metric="pearson")}
    plots.confusion([{"task": "mood", "label": "-0.3", "prediction": "-0.6"}], tasks, "x", tmp_path / "x.svg")
    lines = [{"task": "similarity", "label": "4.6", "prediction": p} for p in ("0.2", None, "4.8")]
    plots.confusion(lines, TASKS, "x", tmp_path / "x.svg")
    first = (tmp_path / "x.svg").read_bytes()
    plots.confusion(lines, TASKS, "x", tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_bytes() == first  # the same data give the same file
    tasks = {"points": Task("points", "score", low=5, high=1005, metric="pearson")}
    plots.confusion([{"task": "points", "label": "812", "prediction": "7.5"}], tasks, "x", tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size < 100_000  # tenths of the range


def samples(n: int, seed: int = 0) -> list[dict]:
    """Samples whose reward tends to be higher where they are right; four a prompt."""
    generator, rows = np.random.default_rng(seed), []
    for i in range(n):
        right = bool(generator.random() < 0.6)
        reward = round(float(right + generator.normal()), 1)  # rounded: there are ties
        rows.append({"id": f"p{i // 4}", "task": f"t{i // 4 % 2}", "correct": right, "reward": reward})
    return rows


def test_reward_quality_is_scikit_learns_auc_and_scipys_rank_correlation():
    from scipy.stats import spearmanr

    rows = samples(200)
    found = reward_quality.statistics(rows)
    correct, rewards = [r["correct"] for r in rows], [r["reward"] for r in rows]
    assert found["auc"] == pytest.approx(roc_auc_score(correct, rewards))
    assert found["spearman"] == pytest.approx(spearmanr(rewards, correct).statistic)
    wins = [
        (a["reward"] > b["reward"]) + 0.5 * (a["reward"] == b["reward"])
        for a in rows for b in rows if a["id"] == b["id"] and a["correct"] and not b["correct"]
    ]  # fmt: skip
    assert found["auc_same_prompt"] == pytest.approx(np.mean(wins))
    by_prompt = defaultdict(list)
    for row in rows:
        by_prompt[row["id"]].append(row)

    def wins(own: list[dict]) -> list[float]:
        pairs = [(a["reward"], b["reward"]) for a in own for b in own if a["correct"] > b["correct"]]
        return [(a > b) + 0.5 * (a == b) for a, b in pairs]

    spreads = [np.std([row["reward"] for row in own]) for own in by_prompt.values()]
    assert found["spread_same_prompt"] == pytest.approx(np.mean(spreads))
    assert found["mixed_prompts"] == sum(bool(wins(own)) for own in by_prompt.values())
    generator, aucs, same = np.random.default_rng(5), [], []
    for _ in range(300):  # a bootstrap over prompts, written out
        drawn = [by_prompt[name] for name in generator.choice(list(by_prompt), len(by_prompt))]
        flat = [row for own in drawn for row in own]
        aucs.append(roc_auc_score([r["correct"] for r in flat], [r["reward"] for r in flat]))
        same.append(np.mean([win for own in drawn for win in wins(own)]))
    assert found["auc_ci95"] == pytest.approx(np.quantile(aucs, [0.025, 0.975]), abs=0.03)
    assert found["auc_same_prompt_ci95"] == pytest.approx(np.quantile(same, [0.025, 0.975]), abs=0.04)
    assert [f["n"] for f in found["quintiles"]] == [40] * 5
    assert np.mean([f["accuracy"] for f in found["quintiles"]]) == pytest.approx(found["accuracy"])
    assert found["quintiles"][4]["accuracy"] > found["quintiles"][0]["accuracy"]


def test_reward_quality_without_a_right_answer_says_nothing():
    found = reward_quality.statistics([{**row, "correct": False} for row in samples(8)])
    assert found["auc"] is found["auc_same_prompt"] is found["spearman"] is None
    assert found["auc_ci95"] is found["auc_same_prompt_ci95"] is None and found["mixed_prompts"] == 0


def test_samples_depend_on_row_and_place_alone():
    from rllr.lm.sampling import uniforms

    both, one = uniforms([[1, 2, 0], [1, 2, 1], [1, 3, 0], [1, 3, 1]], 5), uniforms([[1, 3, 0], [1, 3, 1]], 5)
    assert (both[2:] == one).all() and len({tuple(row.tolist()) for row in both}) == 4
    assert (uniforms([[1, 2, 0]], 5) == both[:1]).all()


def test_batches_change_no_answer(merged, tokenizer):
    from rllr.lm import models

    model = models.load_causal(merged, torch.float32)
    prompts = [tokenizer("ab " * n)["input_ids"] for n in (1, 9, 4, 2, 7)]
    numbers = sampling.uniforms([[1, i] for i in range(5)], 8)

    def answers(size: int, drawn=None) -> dict[int, list[int]]:
        found = {}
        for indices, result in sampling.respond(model, tokenizer, prompts, size, 8, torch.float32, drawn):
            found.update(zip(indices, result.responses, strict=True))
        return found

    assert answers(1) == answers(2) == answers(5)
    assert answers(1, numbers) == answers(5, numbers) != answers(1)


def test_best_of_n_keeps_the_sample_with_the_highest_reward(merged, reward_folders, tokenizer):
    from rllr.predict.model_file import PredictConfig
    from rllr.predict.predictor import Predictor

    config = PredictConfig("m", "predict", 1, "fp32", "auto", 4, 6, 200, 3, 2)
    rows = [{"id": f"q{i}", "task": "t", "instruction": "What?", "input": "x" * i} for i in range(3)]
    predictor = Predictor(config, merged, None, reward_folders["rm_rllr"], {"t": TASKS["reviews"]})
    found = {}
    for indices, answers in predictor.answers(rows, [predictor.prompt(row) for row in rows]):
        found.update(zip(indices, [answer["answer"] for answer in answers], strict=True))
    for i, row in enumerate(rows):  # one row at a time, all samples scored
        prompt = [predictor.encoder.prompt(row, room=6)]
        (drawn,) = sampling.sample(predictor.model, predictor.tokenizer, prompt, [row["id"]], 3, config, torch.float32)
        assert len({tuple(d) for d in drawn}) > 1
        values = rewards.scores(predictor.reward, predictor.tokenizer, prompt * 3, drawn, 1, torch.float32)
        assert found[i] == predictor.tokenizer.decode(drawn[int(np.argmax(values))], skip_special_tokens=True)


def test_the_reward_model_scores_as_the_ppo_engine_does(merged, reward_folders):
    """Loaded through PEFT here, on a shared backbone there."""
    import torch

    from rllr.lm import models
    from rllr.lm.packing import Packed
    from rllr.ppo.backbone import Backbone

    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
    backbone = Backbone(merged, lora, reward_folders, "rm_rllr", torch.float32, False)
    tokenizer = models.load_tokenizer(merged)
    prompt, response = tokenizer("a prompt")["input_ids"], tokenizer(" and an answer")["input_ids"]
    reward = rewards.load_reward(merged, reward_folders["rm_rllr"], torch.float32)
    (ours,) = rewards.scores(reward, tokenizer, [prompt], [response], 1, torch.float32)
    batch = Packed.build([prompt], [response], tokenizer.pad_token_id, models.device())
    assert ours == pytest.approx(backbone.scores("rm_rllr", batch).item(), abs=1e-5)


def test_responses_are_joined_to_their_prompts_by_id():
    data = {"a": {"id": "a", "instruction": "i", "input": "x"}}
    own = {"instruction": "j", "input": "", "answer": "n"}
    found = score.joined([(1, {"id": "a", "answer": "m", "label": "l"}), (2, own)], data, "file")
    assert [(row["instruction"], row["answer"]) for row in found] == [("i", "m"), ("j", "n")]
    with pytest.raises(score.UserError, match=r"file line 3: no instruction and no input"):
        score.joined([(3, {"id": "b", "answer": "m"})], data, "file")
    with pytest.raises(score.UserError, match=r"file line 4: field answer: expected text, found None"):
        score.joined([(4, {"id": "a"})], data, "file")
    with pytest.raises(UserError, match="file line 5: found half of a surrogate pair"):
        score.joined([(5, {"id": "a", "answer": "\ud83d"})], data, "file")


@pytest.mark.parametrize("cut", range(1, 8))
def test_prediction_resumes_after_a_cut_anywhere_and_keeps_every_separator(tmp_path, cut):
    from rllr.predict.test_file import resume

    partial = tmp_path / "predictions.partial.jsonl"
    answers = {"a": {"answer": "one\u2028two\x85three", "logprobs": {"x": -0.5}}, "b": {"answer": "\u4e2d\u6587"}}
    lines = [{"fingerprint": "x"}, *({"id": i, **a} for i, a in answers.items())]
    write_jsonl(partial, lines)
    partial.write_bytes(partial.read_bytes()[:-cut])  # within the last line's closing, or within a character
    expected = answers if cut == 1 else {"a": answers["a"]}  # 1: all but the newline
    assert resume(partial, "x") == expected == resume(partial, "x")


def test_texts_of_ones_own_come_back_in_their_order(merged, tmp_path, monkeypatch, capsys):
    import predict
    from rllr.predict.model_file import describe

    values = {"model": "m", "stage": "predict", "seed": 1, "precision": "fp32", "attention": "auto",
              "batch_size": 2, "max_new_tokens": "auto",
              "cutoff": 200, "best_of": 2, "votes": 2}  # fmt: skip
    write_json(tmp_path / "config.yaml", values)  # JSON is YAML
    paths = {"config": tmp_path / "config.yaml", "base": merged, "adapter": None, "reward": None}
    prompts = [{"task": "reviews", "instruction": "Good?", "input": "x"}]
    found = {"max_new_tokens": 4, "votes": 0, "temperatures": {}}
    describe(tmp_path / "rllr/model.json", paths, {"reviews": TASKS["reviews"]}, prompts, **found)
    monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(tmp_path / "rllr"), "--task", "reviews", "--jsonl"])
    given = io.BytesIO(b"short\n\na much longer text\nmiddling\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
    predict.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in found] == ["short", "a much longer text", "middling"]
    assert all(row["task"] == "reviews" and isinstance(row["answer"], str) for row in found)
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in found)
    command = ["predict.py", "--model", str(tmp_path / "rllr"), "--task", "reviews", "--jsonl", "--votes"]
    monkeypatch.setattr(sys, "argv", [*command, "--text", "short"])
    predict.main()
    assert "votes" in json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [*command, "0", "--text", "short"])
    predict.main()
    assert "votes" not in json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [*command, "-1", "--text", "short"])
    with pytest.raises(SystemExit):
        predict.main()
    assert "--votes: expected 0 or more" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(tmp_path / "rllr"), "--task", "weather"])
    with pytest.raises(predict.UserError, match="unknown task 'weather'; known: reviews"):
        predict.main()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(tmp_path / "rllr"), "--task", "reviews"])
    with pytest.raises(predict.UserError, match="standard input: not UTF-8"):
        predict.main()
    monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(tmp_path), "--task", "reviews"])
    with pytest.raises(predict.UserError, match=r"expected a method's folder, one of .*/\{rllr\}"):
        predict.main()
    monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(tmp_path / "rlhf"), "--task", "reviews"])
    with pytest.raises(predict.UserError, match=r"no model\.json; first run"):
        predict.main()


WRONG_PREDICTIONS = [
    ("", "the file is empty; expected a line for each test row"),
    ('{"id": "1", "label": "positive", "prediction": null}', "line 1: field task is missing"),
    ('{"id": "1", "task": "x", "label": "positive", "prediction": null}', "line 1: unknown task 'x'"),
]


@pytest.mark.parametrize(("content", "expected"), WRONG_PREDICTIONS)
def test_predictions_that_cannot_be_measured_are_told(tmp_path, content, expected):
    (tmp_path / "p.jsonl").write_text(content)
    write_json(tmp_path / "tasks.json", dump_tasks({"reviews": TASKS["reviews"]}))
    done = measure(tmp_path / "p.jsonl", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error:") and expected in done.stderr


def measure(predictions, folder):
    options = {"predictions": predictions, "tasks": folder / "tasks.json", "out": folder / "metrics.json"}
    options |= {name: "x" for name in ("model", "method", "data")}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return subprocess.run([sys.executable, PROGRAMS / "metrics.py", *arguments], capture_output=True, text=True)


def test_a_folder_for_a_file_is_told(tmp_path):
    write_json(tmp_path / "tasks.json", {})
    done = measure(tmp_path, tmp_path)
    assert done.returncode == 1 and done.stderr == f"error: {tmp_path}: a folder; expected a file\n"


def test_a_reader_that_has_had_enough_is_no_fault(run):
    command = f"{sys.executable} {PROGRAMS / 'show.py'} {run / 'm'} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


def test_a_policy_is_not_a_reward_model(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"task_type": "CAUSAL_LM"})
    with pytest.raises(UserError, match=r"expected the adapter of a reward model .*, found CAUSAL_LM"):
        rewards.load_reward(tmp_path, tmp_path, torch.float32)


def test_the_model_card_says_what_the_run_was():
    from rllr.predict.standalone import card

    task = {"kind": "label", "labels": ["yes", "no"], "input": "{text}", "answer": ANSWER}
    score = {"kind": "score", "low": 0, "high": 5, "input": "{text}", "answer": "([0-9])"}
    used = {"max_new_tokens": 77, "instructions": {"a": "Is it?"}, "tasks": {"a": task, "b": score}}
    value = {"metric": "accuracy", "value": 0.5, "ci95": [0.4, 0.6], "n": 9, "unparsed": 0}
    metrics = {"model": "m", "method": "rllr", "data": "d", "n": 9, "score": 0.5, "tasks": {"a": value}}
    origin = {"id": "base/model", "licence": "MIT", "revision": "main", "parameters": 7e9}
    text = card({"seed": 1}, metrics, used, origin, "llama")
    assert "- **a**: 'Is it?', one of yes, no\n" in text
    assert "- **b**: an instruction for each text, a number in 0 to 5; the label is what the group of '([0-9])'" in text
    assert "max_new_tokens=77" in text and "rllr.base" not in text
    assert "from rllr.base import register" in card({}, metrics, used, origin, "baichuan2-13b")


def test_the_summary_page_begins_with_words_and_the_figure(tmp_path, monkeypatch):
    import summary as program

    runs = [write_run(tmp_path / f"run{s}", {"sft_wrat": 0.6, "rllr": 0.9}, s) for s in (1, 2)]
    pages = []
    for some in (runs[:1], runs):
        argv = ["summary.py", "--results", *map(str, some), "--models", "m", "--methods", "sft_wrat", "rllr"]
        monkeypatch.setattr("sys.argv", [*argv, "--out", str(tmp_path / "out")])
        program.main()
        pages.append((tmp_path / "out/summary.html").read_text(encoding="utf-8"))
    for page in pages:
        assert 0 < page.index("data:image/svg+xml") < page.index("<table")
    assert pages[0].index("rllr is ") < pages[0].index("data:image/svg+xml") and "thin ones" not in pages[0]
    assert "thin ones: over the runs" in pages[1] and "Differences in configuration" in pages[1]
