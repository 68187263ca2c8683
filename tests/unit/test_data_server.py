"""The endpoint annotator against a real server: `transformers serve` on loopback.

Needs fastapi and uvicorn. Serves the folder that RLLR_SERVED_MODEL names (SmolLM2 of results/smollm2/base, say), else a
random tiny model, whose answers are empty of sense but real completions.
"""

import importlib.util
import os

import pytest

from rllr.data.annotators import Ask
from rllr.data.annotators.endpoint import EndpointAnnotator
from rllr.data.spec import TaskSpec
from rllr.tasks import Task
from serving import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="needs fastapi and uvicorn"),
]


@pytest.fixture
def server(merged, tmp_path):
    """(base_url, model) of a running server."""
    model = os.environ.get("RLLR_SERVED_MODEL", str(merged))
    with served(model, tmp_path / "server.log") as base_url:
        yield base_url, model


def test_real_completions(server, tmp_path):
    base_url, model = server
    task = Task("reviews", "label", ("positive", "negative"))
    specs = {"reviews": TaskSpec(task, "Positive or negative?", {}, {}, False)}
    settings = {
        "base_url": base_url,
        "model": model,
        "prompt": "Film review: {input}\nSay in one sentence why it is {label}.",
        "judge_prompt": "Review: {input}\n1: {first}\n2: {second}\nWhich says better why it is {label}, 1 or 2?",
        "max_tokens": 60,
        "attempts": 4,
        "concurrency": 2,
        "cache": str(tmp_path / "cache.sqlite"),
    }
    asks = [
        Ask("reviews", str(n), text, "", label, -1)
        for n, (text, label) in enumerate(
            [("A gorgeous, witty film.", "positive"), ("Dull and far too long.", "negative")] * 2
        )
    ]
    annotator = EndpointAnnotator(specs, settings)
    rationales = annotator.write(asks)
    print(rationales, annotator.judge([(asks[0], "It is gorgeous.", "No idea.")]), annotator.summary())
    assert annotator.counts["prompt tokens"] > 0 and annotator.counts["answer tokens"] > 0
    assert sum(rationale is None for rationale in rationales) == annotator.counts["rationales dropped"]
    again = EndpointAnnotator(specs, settings)
    assert again.write(asks) == rationales and not again.counts["requests"]
