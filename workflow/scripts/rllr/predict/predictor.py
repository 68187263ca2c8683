"""A loaded model that answers rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rllr.lm import fitting, models, rewards, sampling
from rllr.lm.generation import decoded, stop_ids
from rllr.lm.tokens import Encoder
from rllr.predict.confidence import label_logprobs, vote
from rllr.predict.model_file import PredictConfig
from rllr.tasks import Task, read_label


class Predictor:
    """A loaded model and, for best-of-n, the reward model that picks among its samples.

    Args:
        votes: answers sampled per prompt, which vote; 0: the answer is the greedy one, or the best by `reward`.
        claims: task -> label -> what training rationales for it begin with, where that is known.
    """

    def __init__(
        self,
        config: PredictConfig,
        base: Path,
        adapter: Path | None,
        reward: Path | None,
        tasks: dict[str, Task],
        votes: int = 0,
        claims: dict[str, dict[str, str]] | None = None,
    ) -> None:
        self.config = config = fitting.settled(config, base, "predict", rewards=int(bool(reward)))
        self.dtype, self.tasks, self.votes = models.dtype_of(config.precision), tasks, votes
        self.claims = claims or {}
        self.tokenizer = models.load_tokenizer(base)
        self.model = models.load_adapter(base, adapter, self.dtype, config.attention)
        self.reward = rewards.load_reward(base, reward, self.dtype, config.attention) if reward else None
        self.encoder = Encoder(self.tokenizer, config.cutoff)
        models.describe(self.model, self.dtype)

    def prompt(self, row: dict) -> list[int]:
        """Token ids of a row's prompt."""
        return self.encoder.prompt(row, room=self.config.max_new_tokens)

    def answers(self, rows: list[dict], prompts: list[list[int]]) -> Iterator[tuple[list[int], list[dict]]]:
        """Yield `(indices, answers)` of batches of rows, longest prompts (from `prompt`) first.

        An answer has its text in `answer`, and `logprobs` of the task's labels or, of answers that voted, `votes`.
        """
        config = self.config
        if self.votes:
            yield from self._voted(rows, prompts)
            return
        batches: Iterator[tuple[list[int], list[list[int]], Any]]
        if self.reward:
            batches = self._best_of(rows, prompts)
        else:
            found = sampling.respond(
                self.model, self.tokenizer, prompts, config.batch_size, config.max_new_tokens, self.dtype,
                keep_reading=True,
            )  # fmt: skip
            batches = ((indices, result.responses, result.reading) for indices, result in found)
        for indices, responses, reading in batches:
            texts = self._texts(responses)
            tasks = [self.tasks[rows[i]["task"]] for i in indices]
            own = [prompts[i] for i in indices]
            sure = label_logprobs(
                self.model, self.encoder, own, texts, tasks, config.batch_size, self.dtype, reading, self.claims
            )
            yield indices, [{"answer": text, "logprobs": found} for text, found in zip(texts, sure, strict=True)]

    def _texts(self, responses: list[list[int]]) -> list[str]:
        return decoded(self.tokenizer, responses, stop_ids(self.model, self.tokenizer))

    def _samples(self, rows: list[dict], prompts: list[list[int]], n: int) -> Iterator[tuple[list[int], list[list]]]:
        """Yield `(indices, n responses to each)`, longest prompts first."""
        order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
        size = max(1, self.config.batch_size // n)
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            own, ids = [prompts[i] for i in batch], [rows[i]["id"] for i in batch]
            yield batch, sampling.sample(self.model, self.tokenizer, own, ids, n, self.config, self.dtype)

    def _voted(self, rows: list[dict], prompts: list[list[int]]) -> Iterator[tuple[list[int], list[dict]]]:
        """The answers whose label most samples give: of these the first sample."""
        for batch, drawn in self._samples(rows, prompts, self.votes):
            answers = []
            for i, responses in zip(batch, drawn, strict=True):
                texts, task = self._texts(responses), self.tasks[rows[i]["task"]]
                labels = [read_label(text, task) for text in texts]
                label, shares = vote(labels, task)
                answers.append({"answer": texts[labels.index(label)], "votes": shares})
            yield batch, answers

    def _best_of(self, rows: list[dict], prompts: list[list[int]]) -> Iterator[tuple[list[int], list[list[int]], None]]:
        """The sample with the highest reward of each prompt (the first among equals)."""
        n, config = self.config.best_of, self.config
        assert self.reward is not None
        for batch, drawn in self._samples(rows, prompts, n):
            flat = [response for responses in drawn for response in responses]
            repeated = [prompts[i] for i in batch for _ in range(n)]
            values = rewards.scores(self.reward, self.tokenizer, repeated, flat, config.batch_size, self.dtype)
            best = [max(range(k, k + n), key=values.__getitem__) for k in range(0, len(flat), n)]
            yield batch, [flat[k] for k in best], None
