"""Rationales from an OpenAI-compatible chat endpoint, and its judgement of two rationales.

Every answer goes into a SQLite file at once, so a run that was interrupted, or is extended, never pays twice. The
key comes from the environment and is neither stored nor logged.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rllr.cli import UserError, log
from rllr.data.annotators import Ask
from rllr.data.spec import TaskSpec
from rllr.tasks import Task


@dataclass(frozen=True)
class Settings:
    """The `endpoint` section of a data config; its schema describes every key."""

    base_url: str
    model: str
    prompt: str
    cache: str  # SQLite file
    system: str | None = None
    judge_prompt: str = ""  # needed where pairs are judged
    key_from: str = "OPENAI_API_KEY"
    temperature: float = 0.7
    max_tokens: int = 120
    concurrency: int = 8
    retries: int = 5
    timeout: float = 60
    attempts: int = 3
    max_requests: int | None = None
    max_total_tokens: int | None = None


def mentioned(text: str, task: Task) -> set[str]:
    """The task's labels that stand in a text as whole words; a label inside a longer one does not count."""
    found, text = set(), text.lower()
    for label in sorted(task.labels, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(label.lower())}(?!\w)"
        if re.search(pattern, text):
            found.add(label)
            text = re.sub(pattern, " ", text)
    return found


def problem(rationale: str, label: str, task: Task) -> str | None:
    """Why an answer cannot serve as the rationale for `label`, if it cannot."""
    if not rationale:
        return "empty"
    if re.search(task.answer, rationale):
        return "gives the label away in an answer line"
    labels = mentioned(rationale, task) if task.kind == "label" else set()
    return "argues for another label" if labels and label not in labels else None


class EndpointAnnotator:
    """Asks the endpoint, with bounded concurrency; an answer that cannot be used is asked for again, then dropped."""

    learns = False
    parallel = False  # it waits for a server; threads do

    def __init__(self, specs: dict[str, TaskSpec], settings: dict) -> None:
        import openai

        self.specs, self.settings = specs, Settings(**settings)
        fields = dict.fromkeys(("instruction", "input", "label", "claim", "first", "second"), "")
        for name in ("prompt", "judge_prompt"):
            try:
                (getattr(self.settings, name) or "").format(**fields)
            except (LookupError, ValueError) as error:
                raise UserError(f"annotator.endpoint.{name}: expected only {', '.join(fields)} in braces") from error
        self.client = openai.OpenAI(
            base_url=self.settings.base_url,
            api_key=os.environ.get(self.settings.key_from) or "none",
            max_retries=self.settings.retries,
            timeout=self.settings.timeout,
        )
        self.lock = threading.Lock()
        self.counts: Counter = Counter()
        try:
            self.cache = sqlite3.connect(self.settings.cache, check_same_thread=False)
            self.cache.execute("create table if not exists answers (key text primary key, answer text)")
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.settings.cache}: not a cache of answers ({error}); delete it or name another"
            ) from None

    def write(self, asks: list[Ask]) -> list[str | None]:
        return self._map(self._rationale, asks, "rationales")

    def judge(self, cases: list[tuple[Ask, str, str]]) -> list[int | None]:
        """For each (ask, first, second) which rationale is better, 0 or 1; None if the order decided."""
        return self._map(self._verdict, cases, "judgements")

    def summary(self) -> dict:
        return {"model": self.settings.model, **dict(sorted(self.counts.items()))}

    def _map(self, function: Callable, items: list, what: str) -> list:
        from tqdm import tqdm

        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                results = list(tqdm(pool.map(function, items), total=len(items), desc=what, unit="", mininterval=5))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # requests in flight end, and their answers are kept
                raise
        log(", ".join(f"{name} {count}" for name, count in sorted(self.counts.items())))
        return results

    def _fields(self, ask: Ask) -> dict[str, str]:
        spec = self.specs[ask.task]
        return {
            "instruction": spec.instruction,
            "input": spec.task.input.format(text=ask.text, text2=ask.text2),
            "label": ask.label,
            "claim": spec.claims.get(spec.label_class(ask.label), ask.label),
        }

    def _rationale(self, ask: Ask) -> str | None:
        for attempt in range(self.settings.attempts):
            answer = self._answer(self.settings.prompt.format(**self._fields(ask)), f"{ask.variant}.{attempt}")
            if answer is None:
                continue
            fault = "cut off" if answer["cut"] else problem(answer["text"], ask.label, self.specs[ask.task].task)
            if fault is None:
                return " ".join(answer["text"].split())
            self._count(f"answers refused: {fault}")
        self._count("rationales dropped")
        return None

    def _verdict(self, case: tuple[Ask, str, str]) -> int | None:
        ask, first, second = case
        verdicts = []
        for one, two in ((first, second), (second, first)):
            prompt = self.settings.judge_prompt.format(**self._fields(ask), first=one, second=two)
            answer = self._answer(prompt, "judge") or {"text": ""}
            verdicts.append(re.findall(r"(?<!\w)[12](?!\w)", answer["text"])[:1])
        if verdicts == [["1"], ["2"]]:
            return 0
        if verdicts == [["2"], ["1"]]:
            return 1
        self._count("judgements dropped: the order decided, or no answer")
        return None

    def _answer(self, prompt: str, draw: str) -> dict | None:
        """`{text, cut}` from the cache or the endpoint; None if what came back is no completion."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        request = {
            "model": self.settings.model,
            "messages": [*system, {"role": "user", "content": prompt}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        key = hashlib.sha256(json.dumps([request, draw], sort_keys=True).encode()).hexdigest()
        with self.lock:
            row = self.cache.execute("select answer from answers where key = ?", [key]).fetchone()
        if row:
            self._count("answers from the cache")
            return json.loads(row[0])
        self._spend()
        completion = self._complete(request)
        try:
            choice = completion.choices[0]
            answer = {"text": (choice.message.content or "").strip(), "cut": choice.finish_reason == "length"}
        except (AttributeError, IndexError, TypeError):
            self._count("answers refused: not a completion")
            return None
        if completion.usage:
            self._count("prompt tokens", completion.usage.prompt_tokens)
            self._count("answer tokens", completion.usage.completion_tokens)
        with self.lock:
            self.cache.execute("insert or replace into answers values (?, ?)", [key, json.dumps(answer)])
            self.cache.commit()
        return answer

    def _complete(self, request: dict) -> Any:
        import openai

        where = f"endpoint {self.settings.base_url}, model {self.settings.model}"
        try:
            return self.client.chat.completions.create(**request)
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            return None
        except openai.APIStatusError as error:
            raise UserError(
                f"{where}: status {error.status_code} after {self.settings.retries} repeats where it is repeated; "
                "answers so far are kept, run again to go on"
            ) from None
        except openai.APIConnectionError:
            raise UserError(
                f"{where}: no answer within {self.settings.timeout:g} s, {self.settings.retries + 1} times; "
                "answers so far are kept, run again to go on"
            ) from None

    def _spend(self) -> None:
        """Count a request, or stop where the limits say so."""
        with self.lock:
            tokens = self.counts["prompt tokens"] + self.counts["answer tokens"]
            for name, used, limit in (
                ("max_requests", self.counts["requests"], self.settings.max_requests),
                ("max_total_tokens", tokens, self.settings.max_total_tokens),
            ):
                if limit is not None and used >= limit:
                    raise UserError(f"endpoint: {name} {limit} is reached; answers so far are kept, raise it to go on")
            self.counts["requests"] += 1

    def _count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number
