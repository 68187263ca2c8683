"""Reading labels from answers: a table of cases."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllr.tasks import Task, agrees, read_label, respond, written

SENTIMENT = Task("sentiment", "label", ("positive", "negative"))
PARAPHRASE = Task("paraphrase", "label", ("equivalent", "not equivalent"), f1="equivalent")
DUPLICATE = Task("duplicate", "label", ("duplicate", "not duplicate"))
INFERENCE = Task("inference", "label", ("entailment", "neutral", "contradiction"))
TOPIC = Task("topic", "label", ("world", "sports", "business", "technology"))
STARS = Task("stars", "stars", ("1", "2", "3", "4", "5"))
SCORE = Task("score", "score", low=0.0, high=5.0, metric="pearson")
YES_NO = Task("yes_no", "label", ("yes", "no"))
BINARY = Task("binary", "label", ("0", "1"))

CASES = [
    (SENTIMENT, "Label: positive", "positive"),
    (SENTIMENT, "A fine film.\nLabel: positive", "positive"),
    (SENTIMENT, "label: POSITIVE", "positive"),
    (SENTIMENT, "LABEL:positive", "positive"),
    (SENTIMENT, "Label :  positive ", "positive"),
    (SENTIMENT, "Label: positive.", "positive"),
    (SENTIMENT, 'Label: "positive"', "positive"),
    (SENTIMENT, "Label: 'negative'!", "negative"),
    (SENTIMENT, "Label: \u201cnegative\u201d", "negative"),
    (SENTIMENT, "**Label:** negative", "negative"),
    (SENTIMENT, "**Label: negative**", "negative"),
    (SENTIMENT, "- Label: negative", "negative"),
    (SENTIMENT, "> Label: negative", "negative"),
    (SENTIMENT, "Label: `negative`", "negative"),
    (SENTIMENT, "Label: (negative)", "negative"),
    (SENTIMENT, "Label: the review is positive", "positive"),
    (SENTIMENT, "Label: positive\n", "positive"),
    (SENTIMENT, "Label: positive\r\n", "positive"),
    (SENTIMENT, "Label: negative\nLabel: positive", "positive"),
    (SENTIMENT, "Label: positive\nBecause it is good.", "positive"),
    (SENTIMENT, "Label: positive or negative", None),
    (SENTIMENT, "Label: positive/negative", None),
    (SENTIMENT, "Label: not positive", None),
    (SENTIMENT, "Label: neither", None),
    (SENTIMENT, "Label: positively", None),
    (SENTIMENT, "Label: nonpositive", None),
    (SENTIMENT, "Label:", None),
    (SENTIMENT, "Label: ...", None),
    (SENTIMENT, "positive", None),
    (SENTIMENT, "", None),
    (SENTIMENT, "The label is positive", None),
    (SENTIMENT, "It deserves Label: positive", None),
    (SENTIMENT, "Label: positive\nLabel: maybe", None),
    (PARAPHRASE, "Label: equivalent", "equivalent"),
    (PARAPHRASE, "Label: not equivalent", "not equivalent"),
    (PARAPHRASE, "Label: Not Equivalent.", "not equivalent"),
    (PARAPHRASE, "Label: not_equivalent", "not equivalent"),
    (PARAPHRASE, "Label: not-equivalent", "not equivalent"),
    (PARAPHRASE, "Label: not  equivalent", "not equivalent"),
    (PARAPHRASE, "Label: they are not equivalent", "not equivalent"),
    (PARAPHRASE, "Label: they are equivalent", "equivalent"),
    (PARAPHRASE, "Label: equivalent, not equivalent", None),
    (PARAPHRASE, "Label: not quite equivalent", None),
    (PARAPHRASE, "Label: inequivalent", None),
    (DUPLICATE, "Label: duplicate", "duplicate"),
    (DUPLICATE, "Label: not duplicate", "not duplicate"),
    (DUPLICATE, "Label: no duplicate", None),
    (INFERENCE, "Label: entailment", "entailment"),
    (INFERENCE, "Label: Neutral", "neutral"),
    (INFERENCE, "Label: contradiction (clearly)", "contradiction"),
    (INFERENCE, "Label: entail", None),
    (TOPIC, "Label: world", "world"),
    (TOPIC, "Label: Technology", "technology"),
    (TOPIC, "Label: worldwide sports", "sports"),
    (TOPIC, "Label: sports and business", None),
    (YES_NO, "Label: no", "no"),
    (YES_NO, "Label: yes", "yes"),
    (YES_NO, "Label: yes, no", None),
    (STARS, "Label: 4", "4"),
    (STARS, "Label: 4 stars", "4"),
    (STARS, "Label: four stars", "4"),
    (STARS, "Label: one-star", "1"),
    (STARS, "Label: it deserves two stars", "2"),
    (STARS, "Label: which suggests one", None),
    (STARS, "Label: suggests one of the better apps", None),
    (STARS, "Label: one suggests 4", None),
    (SCORE, "Label: three", "3"),
    (STARS, "Label: 4/5", "4"),
    (STARS, "Label: 4 out of 5", "4"),
    (STARS, "Label: four out of five", "4"),
    (STARS, "Label: 4.0", "4"),
    (STARS, "Label: 4.5", None),
    (STARS, "Label: 6", None),
    (STARS, "Label: 0", None),
    (STARS, "Label: 3 or 4", None),
    (STARS, "Label: 45", None),
    (SCORE, "Label: 3.8", "3.8"),
    (SCORE, "Label: 3,8", "3.8"),
    (SCORE, "Label: 3", "3"),
    (SCORE, "Label: three", "3"),
    (SCORE, "Label: 3.80", "3.8"),
    (SCORE, "Label: 2.5/5", "2.5"),
    (SCORE, "Label: 5.1", None),
    (SCORE, "Label: -1", None),
    (SCORE, "Label: 1 2", None),
    (SCORE, "Label: high", None),
    (SENTIMENT, "Label: it wasn't positive", None),
    (SENTIMENT, "Label: can\u2019t be positive", None),
    (SENTIMENT, "Label: hardly positive", None),
    (PARAPHRASE, "Label: they aren't equivalent", None),
    (PARAPHRASE, "Label: cannot be called equivalent", None),
    (PARAPHRASE, "Label: un-equivalent", None),
    (DUPLICATE, "Label: these isn\u2019t duplicate", None),
    (STARS, "Label: not 5 stars", None),
    (STARS, "Label: four and a half stars", None),
    (STARS, "Label: twenty-four", None),
    (STARS, "Label: minus three", None),
    (STARS, "Label: \u22123", None),
    (STARS, "Label: 4/10", None),
    (STARS, "Label: four out of ten", None),
    (STARS, "Label: 4 / 5 stars", "4"),
    (SCORE, "Label: three and a half", None),
    (SCORE, "Label: three point five", None),
    (SCORE, "Label: 1,000", None),
    (SCORE, "Label: one hundred", None),
    (SCORE, "Label: 1.2.3", None),
    (SCORE, "Label: \u22121", None),
    (SCORE, "Label: 4/10", None),
    (SCORE, "Label: 3.5 out of 5.0", "3.5"),
    (SCORE, "Label: 3 to 4", None),
    (SCORE, "Label: 3.5 points", "3.5"),
    (BINARY, "Label: 1", "1"),
    (BINARY, "Label: it is 1.", "1"),
    (BINARY, "Label: it is 1.5", None),
    (BINARY, "Label: 1.5", None),
    (BINARY, "Label: -1", None),
    (BINARY, "Label: 0 or 1", None),
    (SCORE, "Label: .5", "0.5"),
    (SCORE, "Label: -.5", None),
    (SCORE, "Label: -0", "0"),
    (STARS, "Label: .5", None),
    (PARAPHRASE, "Label: equivalent? false", None),
    (PARAPHRASE, "Label: wrong to call equivalent", None),
    (PARAPHRASE, "Label: equivalent isnt", None),
    (SENTIMENT, "Label: without doubt positive", None),
]


@pytest.mark.parametrize(("task", "answer", "expected"), CASES)
def test_label_is_read(task, answer, expected):
    assert read_label(answer, task) == expected


def test_what_is_written_is_read_back():
    for task in (SENTIMENT, PARAPHRASE, DUPLICATE, INFERENCE, TOPIC, STARS, YES_NO):
        for label in task.labels:
            assert read_label(respond("Because of Label words.", label), task) == label
            assert read_label(respond(None, label), task) == label


@settings(deadline=None)
@given(st.floats(-10_000_000, 10_000_000), st.integers(0, 6))
def test_a_written_score_is_read_back_whatever_its_size(score, decimals):
    task = Task("points", "score", low=-10_000_000, high=10_000_000, metric="pearson")
    label = written(round(score, decimals))
    assert read_label(respond(None, label), task) == label
    assert float(label) == pytest.approx(score, abs=0.51 * 10**-decimals) and "e" not in label


def test_an_answer_pattern_of_other_data():
    task = Task("sentiment", "label", ("positive", "negative"), answer=r"(?m)answer is (.*)$")
    assert read_label("So the answer is positive", task) == "positive"
    task = Task("sentiment", "label", ("positive", "negative"), answer=r"(?m)answer is( \w+)?")
    assert read_label("The answer is ...", task) is None


def test_a_tenth_of_the_range_is_right_whatever_binary_rounding_says():
    task = Task("similarity", "score", low=0, high=5, metric="pearson")
    assert agrees("1.2", "0.7", task) and agrees("1.1", "0.6", task) and not agrees("1.2", "0.6", task)
