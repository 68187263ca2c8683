"""How sure a label is: against the model's own token by token, scikit-learn's figures, and counting by hand."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from rllr.evaluate.label_metrics import brier, calibration_error, coverage_curve, task_metrics
from rllr.lm import models
from rllr.lm.choices import continuation_logprobs
from rllr.lm.generation import generate
from rllr.lm.tokens import Encoder
from rllr.predict import confidence
from rllr.predict.texts import Texts, answer_lines, parse
from rllr.tasks import Task, read_label

REVIEWS = Task("reviews", "label", ("positive", "negative"))
TOPICS = Task("topics", "label", ("a", "b", "c", "d"))
SIMILARITY = Task("similarity", "score", (), 0.0, 5.0, "pearson")
PAIRS = Task("pairs", "label", ("yes", "no"), input="One: {text}\nTwo: {text2}")


@torch.no_grad()
def by_hand(model, prefix: list[int], continuation: list[int]) -> float:
    """The whole sequence at once, nothing cached, nothing padded."""
    ids = torch.tensor([prefix + continuation])
    logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(prefix) + i - 1, token]) for i, token in enumerate(continuation))


@pytest.fixture(scope="module", params=["llama", "bloom", "baichuan2-13b"])
def model(request, merged):
    if request.param == "llama":
        return models.load_causal(merged, torch.float32)
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)  # positions by ALiBi, from the attention mask
    if request.param == "baichuan2-13b":
        from rllr.base.baichuan13b import Baichuan13BConfig, Baichuan13BForCausalLM

        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        return Baichuan13BForCausalLM(Baichuan13BConfig(vocab_size=259, initializer_range=0.2, **sizes)).eval()
    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    return BloomForCausalLM(config).eval()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_continuations_are_as_likely_as_read_one_by_one(model, data):
    tokens = st.lists(st.integers(3, 258), min_size=1, max_size=9)
    prefixes = data.draw(st.lists(tokens, min_size=1, max_size=4))
    continuations = [data.draw(st.lists(tokens, min_size=1, max_size=4)) for _ in prefixes]
    found = continuation_logprobs(model, prefixes, continuations, pad=0)
    for prefix, own, values in zip(prefixes, continuations, found, strict=True):
        assert values == pytest.approx([by_hand(model, prefix, c) for c in own], abs=2e-3)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_what_was_kept_of_the_prompts_gives_the_same_continuations(model, data):
    """After greedy decoding, with what else stands before the continuation; also some of the prompts alone."""
    tokens = st.lists(st.integers(3, 258), min_size=1, max_size=9)
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=4))
    rests = [data.draw(st.just([]) | tokens) for _ in prompts]
    continuations = [data.draw(st.lists(tokens, min_size=1, max_size=3)) for _ in prompts]
    reading = generate(model, prompts, [2], 0, 5, keep_reading=True).reading
    picked = data.draw(st.permutations(range(len(prompts))))[: data.draw(st.integers(1, len(prompts)))]
    own = [[part[i] for i in picked] for part in (prompts, continuations)]
    found = continuation_logprobs(model, *own, 0, reading.select(picked), [rests[i] for i in picked])
    for i, values in zip(picked, found, strict=True):
        expected = [by_hand(model, prompts[i] + rests[i], c) for c in continuations[i]]
        assert values == pytest.approx(expected, abs=2e-3)


def test_label_probabilities_are_those_of_the_whole_answers(merged, tokenizer):
    """Each row's labels against each other, given the answer up to the label; whatever rows stand beside it."""
    model, encoder = models.load_causal(merged, torch.float32), Encoder(tokenizer, 500)
    answers = ["It is warm.\nLabel: positive", "No label here", "Label: 3.4", "x\nLabel: d", "Hm.\nlabel:"]
    tasks = [REVIEWS, TOPICS, SIMILARITY, TOPICS, REVIEWS]
    before = ["It is warm.\nLabel: ", "No label here\nLabel: ", "Label: ", "x\nLabel: ", "Hm.\nlabel: "]
    prompts = [encoder.ids(f"prompt {'x' * i}") for i in range(len(answers))]
    for size in (1, 7, 200):
        found = confidence.label_logprobs(model, encoder, prompts, answers, tasks, size, torch.float32)
        for i, task in enumerate(tasks):
            assert list(found[i]) == confidence.choices(task)
            for label in confidence.choices(task)[:4]:
                expected = by_hand(model, prompts[i], encoder.response(before[i] + label))
                shared = by_hand(model, prompts[i], encoder.ids(before[i]))
                assert found[i][label] == pytest.approx(expected - shared, abs=2e-3)


@pytest.mark.parametrize("size", [1, 60, 200])
def test_no_more_continuations_are_read_side_by_side_than_asked(merged, tokenizer, monkeypatch, size):
    model, encoder = models.load_causal(merged, torch.float32), Encoder(tokenizer, 500)
    tasks, seen = [REVIEWS, SIMILARITY, TOPICS, SIMILARITY, SIMILARITY, REVIEWS], []

    def counted(model, prompts, continuations, *rest):
        seen.append(list(map(len, continuations)))
        return [[0.0] * len(own) for own in continuations]

    monkeypatch.setattr(confidence, "continuation_logprobs", counted)
    prompts, answers = [[5] * (90 - 10 * i) for i in range(6)], ["Label: 3"] * 6
    confidence.label_logprobs(model, encoder, prompts, answers, tasks, size, torch.float32)
    assert all(sum(rows) <= size or len(rows) == 1 for rows in seen) and sum(map(len, seen)) == 6
    assert len(seen) == {1: 6, 60: 3, 200: 1}[size]


def test_a_known_model_gives_its_own_probabilities(tokenizer):
    """A table for a model: after ":" and " " the first letter decides, and the probabilities are the table's."""
    shares = {"a": 0.5, "b": 0.2, "c": 0.2, "d": 0.1}

    class Table(torch.nn.Module):
        config = type("C", (), {})

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, past_key_values=None, **kwargs):
            for layer in range(1):
                past_key_values.update(torch.zeros(*input_ids.shape, 1, 1).transpose(1, 2), torch.zeros(
                    *input_ids.shape, 1, 1).transpose(1, 2), layer)  # fmt: skip
            logits = torch.full((*input_ids.shape, len(tokenizer)), -20.0)
            for label, share in shares.items():
                logits[..., tokenizer.convert_tokens_to_ids(label)] = np.log(share)
            logits[..., tokenizer.eos_token_id] = 0.0
            return type("Output", (), {"logits": logits})

    encoder = Encoder(tokenizer, 99)
    (found,) = confidence.label_logprobs(Table(), encoder, [[5]], ["w\nLabel: b"], [TOPICS], 8, torch.float32)
    assert confidence.probabilities(found) == pytest.approx(shares, abs=1e-6)
    assert confidence.certainty({"logprobs": found}, TOPICS)["probabilities"] == pytest.approx(shares, abs=1e-5)


def test_scores_of_a_wide_range_are_weighed_in_a_hundred_steps():
    found = confidence.choices(Task("points", "score", low=5, high=1005, metric="pearson"))
    assert found[:2] == ["5", "15"] and found[-1] == "1005" and len(found) == 101


def test_scores_are_weighed_as_they_are_written():
    assert confidence.choices(SIMILARITY)[:12] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9",
                                                   "1", "1.1"]  # fmt: skip
    assert confidence.choices(SIMILARITY)[-1] == "5" and len(confidence.choices(SIMILARITY)) == 51
    assert confidence.choices(Task("x", "score", low=-1, high=1))[:2] == ["-1", "-0.9"]
    assert len(confidence.choices(Task("x", "score", low=0, high=1))) == 101
    assert confidence.choices(Task("x", "score", low=0, high=5e6))[-2:] == ["4900000", "5000000"]
    assert confidence.choices(Task("x", "score", low=0, high=100))[-2:] == ["99", "100"]
    task = Task("x", "score", low=0.5, high=3.75)
    assert all(read_label(f"Label: {label}", task) == label for label in confidence.choices(task))
    sure = confidence.certainty({"logprobs": {"1": np.log(0.25), "3": np.log(0.75)}}, SIMILARITY)
    assert sure == {"expectation": 2.5}


def test_an_answer_line_of_another_form_is_completed_where_it_stands():
    task = Task("x", "label", ("yes", "no"), answer=r"so the answer is (.*)\.$")
    assert confidence.completed("Hm, so the answer is yes.", task) == (
        ["Hm, so the answer is yes", "Hm, so the answer is no"],
        True,
    )
    assert confidence.completed("Hm.", task) is None  # how it would go on is not known
    task = Task("x", "label", ("yes", "no"), answer=r"(?m)^(?:the answer is (\w+)|unsure)$")
    assert confidence.completed("unsure", task) is None


def test_an_answer_that_begins_with_its_label_decides_there(merged, tokenizer):
    """Its answer line only repeats it, and would be sure of anything."""
    answer = 'Not equivalent, as both say "x".\nLabel: not equivalent'
    task = Task("x", "label", ("equivalent", "not equivalent"))
    assert confidence.completed(answer, task) == (["Equivalent,", "Not equivalent,"], False)
    itself = 'It is not equivalent, as both say "x".\nLabel: not equivalent'
    assert confidence.completed(itself, task) == (["It is equivalent,", "It is not equivalent,"], False)
    shouted = Task("y", "label", ("Good", "Bad"))
    assert confidence.completed("It is good, they say.\nLabel: Good", shouted)[0] == ["It is good,", "It is bad,"]
    assert confidence.completed("It is Good, they say.\nLabel: Good", shouted)[0] == ["It is Good,", "It is Bad,"]
    assert confidence.completed(itself.replace("Label: not", "Label:"), task)[1]  # which claims another label
    assert confidence.completed("It is not equivalent, they say.", task)[0][1] == "It is not equivalent,"
    assert confidence.completed("World leaders met.\nLabel: world", Task("x", "label", ("world", "us")))[1]
    claims = {"equivalent": "Both say the same,", "not equivalent": "They differ,"}
    worded = answer.replace("Not equivalent,", "They differ,")
    assert confidence.completed(worded, task)[1] and confidence.completed(worded, task, {"not equivalent": "They"})[1]
    assert confidence.completed(worded, task, claims) == ([*claims.values()], False)
    assert confidence.completed(worded.replace("Label: not", "Label:"), task, claims)[1]
    model, encoder = models.load_causal(merged, torch.float32), Encoder(tokenizer, 500)
    own = {"x": claims}
    (found,) = confidence.label_logprobs(model, encoder, [[7, 8]], [worded], [task], 8, torch.float32, claims=own)
    expected = [by_hand(model, [7, 8], encoder.ids(text)) for text in claims.values()]
    assert list(found.values()) == pytest.approx(expected, abs=2e-3)
    (found,) = confidence.label_logprobs(model, encoder, [[7, 8]], [answer], [task], 8, torch.float32)
    expected = [by_hand(model, [7, 8], encoder.ids(text)) for text in ("Equivalent,", "Not equivalent,")]
    assert list(found.values()) == pytest.approx(expected, abs=2e-3)


def test_the_temperature_is_logistic_regressions():
    generator = np.random.default_rng(0)
    margin = generator.normal(0, 3, 500)  # twice as sure as it should be
    positive = generator.random(500) < 1 / (1 + np.exp(-margin / 2))
    logprobs = [{"positive": m, "negative": 0.0} for m in margin]
    gold = ["positive" if p else "negative" for p in positive]
    slope = LogisticRegression(C=np.inf, fit_intercept=False).fit(margin[:, None], positive).coef_[0, 0]
    found = confidence.fit_temperature(logprobs, gold)
    assert found == pytest.approx(1 / slope, rel=1e-3) and 1.5 < found < 2.7
    assert confidence.fit_temperature(logprobs[:19], gold[:19]) == 1.0


def test_votes():
    assert confidence.vote(["a", None, "b", "b"], TOPICS) == ("b", {"b": 0.5, "a": 0.25})
    assert confidence.vote(["b", "a", "a", "b"], TOPICS)[0] == "b"  # the first of equals
    assert confidence.vote([None, None], TOPICS) == (None, {})
    assert confidence.vote(["4", "1", "3.5"], SIMILARITY)[0] == "3.5"


def lines(task: Task, found: np.ndarray, gold: list[str]) -> list[dict]:
    """Lines of predictions.jsonl whose labels are the likeliest ones."""
    shares = [dict(zip(task.labels, row.tolist(), strict=True)) for row in found]
    return [
        {"id": str(i), "task": task.name, "label": g, "prediction": max(p, key=p.get), "probabilities": p, "answer": ""}
        for i, (p, g) in enumerate(zip(shares, gold, strict=True))
    ]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 80), st.sampled_from([REVIEWS, TOPICS]), st.booleans())
def test_calibration_brier_and_coverage_are_scikit_learns(seed, n, task, ties):
    generator = np.random.default_rng(seed)
    found = generator.dirichlet(np.ones(len(task.labels)), n)
    if ties:  # as votes of eight have them
        found = generator.multinomial(8, np.ones(len(task.labels)) / len(task.labels), n) / 8
    gold = generator.choice(task.labels, n).tolist()
    rows = lines(task, found, gold)
    sure = found.max(1)
    right = np.array([row["prediction"] == row["label"] for row in rows])

    share, mean = calibration_curve(right, sure, n_bins=10)  # of the bins that hold something
    filled = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], sure), minlength=10)
    expected = (np.abs(share - mean) * filled[filled > 0]).sum() / n
    if not ties or not np.isin(sure, np.linspace(0, 1, 11)).any():  # on an edge sklearn takes the other bin
        assert calibration_error(sure, right) == pytest.approx(expected)

    order = sorted(task.labels)
    proba = found[:, [task.labels.index(label) for label in order]]
    expected = sk.brier_score_loss(gold, proba[:, 1] if len(order) == 2 else proba, labels=order,
                                   pos_label=order[1] if len(order) == 2 else None)  # fmt: skip
    assert brier(rows, task) == pytest.approx(expected)

    covered, accuracy = coverage_curve(sure, right)
    assert covered.tolist() == pytest.approx((np.arange(1, n + 1) / n).tolist())
    assert accuracy[-1] == pytest.approx(right.mean())
    precision, _, thresholds = sk.precision_recall_curve(right, sure)
    for threshold, expected in zip(thresholds, precision, strict=False):
        assert accuracy[(sure >= threshold).sum() - 1] == pytest.approx(expected)
    measured = task_metrics(rows, task)
    assert measured["coverage_area"] == pytest.approx(accuracy.mean()) and measured["value"] == right.mean()


def test_an_unparsed_answer_is_not_sure_at_all():
    rows = lines(REVIEWS, np.array([[0.9, 0.1], [0.8, 0.2]]), ["positive", "positive"])
    rows[1]["prediction"] = None
    assert task_metrics(rows, REVIEWS)["ece"] == pytest.approx(0.05)
    assert "ece" not in task_metrics([{k: v for k, v in r.items() if k != "probabilities"} for r in rows], REVIEWS)


def test_expected_scores_are_measured():
    golds, said = np.array([1.0, 2.0, 4.0, 4.5]), np.array([1.2, 2.6, 3.0, 4.4])
    rows = [{"id": str(i), "task": "similarity", "label": f"{g:g}", "prediction": f"{s:.0f}", "expectation": s}
            for i, (g, s) in enumerate(zip(golds, said, strict=True))]  # fmt: skip
    assert task_metrics(rows, SIMILARITY)["expectation_pearson"] == pytest.approx(np.corrcoef(golds, said)[0, 1])


# Texts as they come


class Echo:
    """Answers each text with the label it names; the second text of a batch first."""

    class config:
        batch_size = 2
        max_new_tokens = 8

    def prompt(self, row):
        if "endless" in row["input"]:
            from rllr.cli import UserError

            raise UserError("too long")
        return [0] * len(row["input"])

    def answers(self, rows, prompts):
        assert list(map(len, prompts)) == [len(row["input"]) for row in rows]
        for i in reversed(range(len(rows))):
            said = "positive" if "fine" in rows[i]["input"] else "negative"
            sure = {"positive": 0.0, "negative": -1.0} if said == "positive" else {"positive": 0.0, "negative": 0.1}
            yield [i], [{"answer": f"{rows[i]['input']}\nLabel: {said}", "logprobs": sure}]


def test_lines_come_back_in_order_with_errors_in_their_place(monkeypatch, capsys):
    given = [b"fine\n", b"\n", b'{"text": "dull", "id": 7}\n', b"caf\xe9\n", b'{"text": 3}\n', b"{oops\n", b"endless\n",
             b'{"text": "fine", "text2": "x"}\n', "caf\u00e9 \u2028 fine\r\n".encode(), b"last"]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(given))))
    assert answer_lines(Texts(Echo(), REVIEWS, "?"), as_json=True) == 5
    found = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert len(found) == 9
    labels = [line.get("label", line.get("error", "")[:12]) for line in found]
    assert labels == ["positive", "negative", "not UTF-8 ('", "field text: ", "not JSON (Ex", "too long",
                      "task reviews", "positive", "negative"]  # fmt: skip
    assert found[1]["id"] == 7 and found[7]["text"] == "caf\u00e9 \u2028 fine"
    assert found[0]["probabilities"]["positive"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


def test_a_line_that_stands_alone_is_answered_before_the_next_one_comes():
    texts, answered = Texts(Echo(), REVIEWS, "?"), []

    def lines():
        for number in range(3):
            assert len(answered) >= number - 1  # the reader is one line ahead at most
            yield b"fine %d\n" % number
            while len(answered) <= number:  # the user waits for the answer
                pass

    for line in texts.stream(lines(), 2):
        answered.append(line["text"])
    assert answered == ["fine 0", "fine 1", "fine 2"]


def test_what_is_too_unsure_has_no_label():
    texts = Texts(Echo(), REVIEWS, "?", abstain_below=0.6)
    sure, unsure = texts.answer([{"text": "fine"}, {"text": "dull"}])
    assert sure["label"] == "positive" and "abstained" not in sure
    assert unsure["label"] is None and unsure["abstained"] == "negative"
    (hotter,) = Texts(Echo(), REVIEWS, "?", temperature=9.0, abstain_below=0.6).answer([{"text": "fine"}])
    assert hotter["label"] is None


def test_two_texts_stand_on_a_line_or_in_an_object():
    assert parse(b"a\tb\n", PAIRS) == {"text": "a", "text2": "b"} == parse(b'{"text": "a", "text2": "b"}', PAIRS)
    assert all("takes two texts" in parse(line, PAIRS)["error"] for line in (b"a b\n", b"a\t\n", b"\tb\n"))
    assert "surrogate" in parse(rb'{"text": "\ud83d", "text2": "b"}', PAIRS)["error"]
    assert "field text2: expected a text, found None" in parse(b'{"text": "a"}\n', PAIRS)["error"]
