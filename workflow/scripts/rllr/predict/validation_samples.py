"""Several answers of a policy to each validation prompt."""

from dataclasses import asdict, replace
from pathlib import Path

from rllr import cli
from rllr.files import write_jsonl
from rllr.lm import budget, duration, fitting, models, sampling
from rllr.lm.lengths import answer_room
from rllr.lm.tokens import Encoder
from rllr.predict.model_file import SAMPLES, PredictConfig


def write_samples(
    config: PredictConfig, base: Path, adapter: Path | None, rows: list[dict], responses: Path, out: Path
) -> None:
    """Sample SAMPLES answers of a policy to each row; `out` gets a line a row: id, responses (token ids).

    Args:
        responses: the training responses that answers are to be like.
    """
    dtype = models.dtype_of(config.precision)
    tokenizer = models.load_tokenizer(base)
    encoder = Encoder(tokenizer, config.cutoff)
    config = replace(config, max_new_tokens=answer_room(config.max_new_tokens, responses, encoder))
    config = fitting.settled(config, base, "predict")
    prompts = [encoder.prompt(row, room=config.max_new_tokens) for row in rows]
    ids = [row["id"] for row in rows]
    cli.log(f"sampling {SAMPLES} answers to {len(rows)} prompts")
    length = sum(map(len, prompts)) / len(prompts)
    work = duration.answering(SAMPLES * len(rows), length, config.max_new_tokens, config.batch_size)
    estimate = budget.check(base, asdict(config), "predict", work, out.parent)
    model = models.load_adapter(base, adapter, dtype, config.attention)
    drawn = sampling.sample(model, tokenizer, prompts, ids, SAMPLES, config, dtype)
    # No lock: one file, whole or not at all, and predictions may be made in the folder meanwhile.
    write_jsonl(out, ({"id": name, "responses": responses} for name, responses in zip(ids, drawn, strict=True)))
    budget.report(estimate)
