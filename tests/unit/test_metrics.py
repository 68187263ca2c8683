"""Metrics and comparisons against scikit-learn, scipy and counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from rllr.evaluate.comparison import detectable_over_runs, difference, mcnemar
from rllr.evaluate.label_metrics import method_metrics, pearson, task_metrics, wilson
from rllr.tasks import Task, agrees

REVIEWS = Task("reviews", "label", ("positive", "negative"))
PAIRS = Task("pairs", "label", ("equivalent", "not equivalent"), f1="equivalent")
STARS = Task("stars", "stars", ("1", "2", "3", "4", "5"))
SIMILARITY = Task("similarity", "score", (), 0.0, 5.0, "pearson")


def rows(task: Task, gold: list, said: list) -> list[dict]:
    """Lines of predictions.jsonl."""
    return [
        {"id": f"{task.name}-{i}", "task": task.name, "label": g, "prediction": s, "answer": ""}
        for i, (g, s) in enumerate(zip(gold, said, strict=True))
    ]


def answers(task: Task, n: int, seed: int, unparsed: float = 0.1) -> tuple[list, list]:
    """Random gold labels and predictions, some of which could not be read."""
    generator = np.random.default_rng(seed)
    if task.kind == "score":
        gold = generator.uniform(0, 5, n).round(1)
        said = (gold + generator.normal(0, 1, n)).clip(0, 5).round(1)
        gold, said = [f"{v:g}" for v in gold], [f"{v:g}" for v in said]
    else:
        gold, said = (generator.choice(task.labels, n).tolist() for _ in range(2))
        said = [g if keep else s for g, s, keep in zip(gold, said, generator.random(n) < 0.5, strict=True)]
    return gold, [None if lost else s for s, lost in zip(said, generator.random(n) < unparsed, strict=True)]


def test_a_label_that_occurs_nowhere_is_no_part_of_f1():
    labels = STARS.labels[:2]
    assert task_metrics(rows(STARS, list(labels), list(labels)), STARS)["f1_macro"] == 1
    assert task_metrics(rows(STARS, list(labels), [labels[0], STARS.labels[2]]), STARS)["f1_macro"] == pytest.approx(
        1 / 3
    )


@pytest.mark.parametrize("task", [REVIEWS, PAIRS, STARS], ids=lambda t: t.name)
def test_accuracy_and_f1_are_scikit_learns(task):
    gold, said = answers(task, 200, seed=1)
    found = task_metrics(rows(task, gold, said), task)
    written = [s or "(unparsed)" for s in said]
    assert found["value"] == pytest.approx(sk.accuracy_score(gold, written))
    expected = sk.f1_score(gold, written, labels=list(task.labels), average="macro")
    assert found["f1_macro"] == pytest.approx(expected)
    assert found["unparsed"] == said.count(None) > 0
    if task.f1:
        # Only the binary F1 of the positive label: an unparsed answer is simply not that label.
        expected = sk.f1_score(gold, written, labels=[task.f1], average="micro")
        assert found["f1"] == pytest.approx(expected)


def test_similarity_is_scipys_correlation():
    gold, said = answers(SIMILARITY, 100, seed=2, unparsed=0)
    found = task_metrics(rows(SIMILARITY, gold, said), SIMILARITY)
    a, b = np.array(gold, float), np.array(said, float)
    assert found["value"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(a, b))
    low, high = found["ci95"]
    theirs = stats.pearsonr(a, b).confidence_interval()
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_stars_have_a_mean_absolute_error():
    gold, said = answers(STARS, 100, seed=3, unparsed=0)
    found = task_metrics(rows(STARS, gold, said), STARS)
    assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error([*map(int, gold)], [*map(int, said)]))


def test_an_unparsed_number_is_the_far_end_of_the_range():
    found = task_metrics(rows(SIMILARITY, ["1", "4", "3"], [None, None, "3"]), SIMILARITY)
    assert found["mean_absolute_error"] == pytest.approx((4 + 4 + 0) / 3)
    found = task_metrics(rows(STARS, ["2", "5"], [None, None]), STARS)
    assert found["mean_absolute_error"] == pytest.approx((3 + 4) / 2)
    assert found["value"] == 0


def test_a_constant_answer_correlates_with_nothing():
    assert pearson(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == 0
    found = task_metrics(rows(SIMILARITY, ["1", "2", "3"], ["2", "2", "2"]), SIMILARITY)
    assert found["value"] == found["spearman"] == 0 and found["ci95"] == [0, 0]


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    right = round(share * n)
    theirs = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx([theirs.low, theirs.high], abs=1e-9)


def test_the_score_is_the_unweighted_mean_over_tasks():
    some = rows(REVIEWS, ["positive"] * 10, ["positive"] * 10) + rows(STARS, ["1"] * 2, ["1", "2"])
    found = method_metrics(some, {t.name: t for t in (REVIEWS, STARS, PAIRS)})
    assert found["score"] == pytest.approx(0.75) and found["n"] == 12 and list(found["tasks"]) == ["reviews", "stars"]


def test_mcnemar_is_exact_for_few_rows_and_chi_squared_for_many():
    assert mcnemar(0, 0) == 1
    # By hand: 2 * (C(6,0) + C(6,1)) / 2^6.
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * 7 / 64)
    assert mcnemar(30, 10) == pytest.approx(stats.chi2.sf(19**2 / 40, 1))
    # Where the two forms meet they agree.
    assert mcnemar(17, 8) == pytest.approx(stats.binomtest(17, 25).pvalue, abs=0.01)


def methods(right_ours: list[bool], right_theirs: list[bool]) -> tuple[list[dict], list[dict]]:
    def lines(right: list[bool]) -> list[dict]:
        return rows(REVIEWS, ["positive"] * len(right), ["positive" if r else "negative" for r in right])

    return lines(right_ours), lines(right_theirs)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=60))
def test_the_bootstrap_surrounds_the_difference_and_is_antisymmetric(outcomes):
    ours, theirs = methods(*map(list, zip(*outcomes, strict=True)))
    tasks = {"reviews": REVIEWS}
    found, mirrored = difference(ours, theirs, tasks), difference(theirs, ours, tasks)
    share = sum(a - b for a, b in outcomes) / len(outcomes)
    low, high = found["ci95"]
    assert found["difference"] == pytest.approx(share) and low <= share <= high
    assert mirrored["difference"] == pytest.approx(-share)
    assert mirrored["ci95"] == pytest.approx([-high, -low])
    few = found["mcnemar_p"] > 0.05  # fewer than 25 discordant rows: the exact test has to agree
    assert found["noise"] == (low <= 0 <= high or (sum(found["discordant"]) < 25 and few))
    assert found["discordant"] == (sum(a and not b for a, b in outcomes), sum(b and not a for a, b in outcomes))
    # Rows in another order are the same rows.
    assert difference(ours[::-1], theirs, tasks)["ci95"] == found["ci95"]


def test_the_interval_is_that_of_the_normal_approximation():
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(1000) < 0.8, generator.random(1000) < 0.75
    found = difference(*methods(ours.tolist(), theirs.tolist()), {"reviews": REVIEWS})
    delta = ours.astype(float) - theirs
    half = 1.96 * delta.std() / 1000**0.5
    assert found["ci95"] == pytest.approx([delta.mean() - half, delta.mean() + half], abs=0.004)
    # 80% power at the 5% level: 2.8 standard errors under no difference.
    assert found["detectable"] == pytest.approx(2.8 * ((ours != theirs).mean() / 1000) ** 0.5, rel=0.05)


def test_four_rows_are_noise_though_the_bootstrap_never_meets_zero():
    found = difference(*methods([True] * 300, [True] * 296 + [False] * 4), {"reviews": REVIEWS})
    assert found["ci95"][0] > 0 and found["mcnemar_p"] == pytest.approx(2 / 2**4) and found["noise"]
    found = difference(*methods([True] * 300, [True] * 290 + [False] * 10), {"reviews": REVIEWS})
    assert found["mcnemar_p"] < 0.05 and not found["noise"]


def test_methods_that_agree_everywhere_still_have_a_smallest_detectable_difference():
    ours, theirs = methods([True] * 100, [True] * 100)
    found = difference(ours, theirs, {"reviews": REVIEWS})
    assert found["noise"] and found["mcnemar_p"] == 1 and found["detectable"] == pytest.approx(0.028)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_detectable_difference_over_runs_is_detected_four_times_in_five(n):
    from scipy.stats import ttest_1samp

    generator = np.random.default_rng(0)
    values = generator.normal(size=n)
    run = {"rows": ("a",), "resampled": np.zeros(10), "error": 1e-9}  # the rows leave no doubt
    found = detectable_over_runs([{**run, "difference": value} for value in values])
    # Had the spread of these runs been the true one:
    shifted = generator.normal(found / values.std(ddof=1), size=(20000, n))
    assert (ttest_1samp(shifted, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_over_runs([{**run, "difference": 0.1}] * n) == pytest.approx(2.8e-9 / n**0.5)
    assert detectable_over_runs([{**run, "difference": 0.1}]) is None
    doubtful = {**run, "difference": 0.1, "error": 0.01, "resampled": generator.normal(scale=0.01, size=2000)}
    assert detectable_over_runs([doubtful] * n) == pytest.approx(0.028, rel=0.1)


def test_resamples_in_blocks_take_little_memory():
    import tracemalloc

    ours, theirs = methods(*np.random.default_rng(0).random((2, 20000)).round().astype(bool).tolist())
    tracemalloc.start()
    difference(ours, theirs, {"reviews": REVIEWS})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20  # all 2000 resamples at once: 640 MB


def test_correlations_are_compared_by_bootstrap_alone():
    gold, close = answers(SIMILARITY, 100, seed=4, unparsed=0)
    _, far = answers(SIMILARITY, 100, seed=5, unparsed=0)
    found = difference(rows(SIMILARITY, gold, close), rows(SIMILARITY, gold, far), {"similarity": SIMILARITY})
    assert found["mcnemar_p"] is None and found["discordant"] is None and not found["noise"]
    assert found["detectable"] == pytest.approx(2.8 * found["resampled"].std())
    a, b, c = (np.array(v, float) for v in (gold, close, far))
    assert found["difference"] == pytest.approx(np.corrcoef(a, b)[0, 1] - np.corrcoef(a, c)[0, 1])


def test_methods_tested_on_other_rows_are_not_compared():
    ours, theirs = methods([True, False], [True, True])
    with pytest.raises(ValueError, match="same rows"):
        difference(ours[:1], theirs, {"reviews": REVIEWS})


def test_a_score_agrees_within_a_tenth_of_its_range():
    assert agrees("3.5", "3", SIMILARITY) and not agrees("3.6", "3", SIMILARITY)
    assert agrees("positive", "positive", REVIEWS) and not agrees(None, "positive", REVIEWS)
