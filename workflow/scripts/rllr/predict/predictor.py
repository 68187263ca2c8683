"""A loaded model that answers rows."""

from collections.abc import Iterator
from pathlib import Path

from rllr.lm import models, rewards, sampling
from rllr.lm.generation import decoded, stop_ids
from rllr.lm.tokens import Encoder
from rllr.predict.model_file import PredictConfig


class Predictor:
    """A loaded model and, for best-of-n, the reward model that picks among its samples."""

    def __init__(self, config: PredictConfig, base: Path, adapter: Path | None, reward: Path | None) -> None:
        self.config, self.kind = config, models.dtype(config.precision)
        self.tokenizer = models.load_tokenizer(base)
        self.model = models.load_adapter(base, adapter, self.kind, config.attention)
        self.reward = rewards.load_reward(base, reward, self.kind, config.attention) if reward else None
        self.encoder = Encoder(self.tokenizer, config.cutoff)
        models.describe(self.model, self.kind)

    def answers(self, rows: list[dict]) -> Iterator[tuple[list[int], list[str]]]:
        """Yield `(indices, answers)` of batches of rows, longest prompts first."""
        if not rows:
            return
        config = self.config
        prompts = [self.encoder.prompt(row, room=config.max_new_tokens) for row in rows]
        self.encoder.report("prompts", list(map(len, prompts)))
        if self.reward:
            batches = self._best_of(rows, prompts)
        else:
            batches = sampling.respond(
                self.model, self.tokenizer, prompts, config.batch_size, config.max_new_tokens, self.kind
            )
        for indices, responses in batches:
            yield indices, decoded(self.tokenizer, responses, stop_ids(self.model, self.tokenizer))

    def _best_of(self, rows: list[dict], prompts: list[list[int]]) -> Iterator[tuple[list[int], list[list[int]]]]:
        """The sample with the highest reward of each prompt (the first among equals)."""
        n, config = self.config.best_of, self.config
        order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
        size = max(1, config.batch_size // n)
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            own, ids = [prompts[i] for i in batch], [rows[i]["id"] for i in batch]
            drawn = sampling.sample(self.model, self.tokenizer, own, ids, n, config, self.kind)
            flat = [response for responses in drawn for response in responses]
            repeated = [prompt for prompt in own for _ in range(n)]
            values = rewards.scores(self.reward, self.tokenizer, repeated, flat, config.batch_size, self.kind)
            best = [max(range(k, k + n), key=values.__getitem__) for k in range(0, len(flat), n)]
            yield batch, [flat[k] for k in best]
