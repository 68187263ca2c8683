"""Methods of the registry that the other tests do not run; and that a new one is one entry."""

import json

import pytest
import yaml

from test_provenance import edited

ENTRY = """
METHODS["rllr_twice"] = Method(
    "ppo", "sft_wrat", "unsupervised", "RLLR over the prompts twice", label_reward="rm_rllr", settings={"epochs": 2}
)
"""


def test_a_new_method_is_one_entry(again):
    def add(text: str) -> str:
        before, after = text.split("\nREWARD_MODELS = ")
        return f"{before}{ENTRY}\nREWARD_MODELS = {after}"

    with edited(again.project, "workflow/scripts/rllr/methods.py", add):
        again("results/tiny/rllr_twice/metrics.json")
        assert again.planned("results/tiny/rllr_twice/metrics.json") == set()
    folder = again.folder / "results/tiny/rllr_twice"
    assert json.loads((folder / "metrics.json").read_text())["method"] == "rllr_twice"
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 2


@pytest.mark.parametrize("method", ["rllr_mix_rloo", "dpo", "sft_wrat_all"])
def test_other_methods_run(again, method):
    again(f"results/tiny/{method}/metrics.json")
    assert json.loads((again.folder / f"results/tiny/{method}/metrics.json").read_text())["n"] == 40


def test_a_reward_model_of_claims(again):
    ratio = again.config(rm_rllr={"score": "claim"})
    again("results/tiny/rllr_rloo/metrics.json", "results/tiny/rm_rllr/quality.json", *ratio)
    folder = again.folder / "results/tiny/rm_rllr"
    assert json.loads((folder / "adapter/score.json").read_text()) == {"score": "claim"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["pair_accuracy"] <= 1 and "chosen_median_validation" in metrics
