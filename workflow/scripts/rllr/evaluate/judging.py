"""A reward model's scores of policies' samples."""

from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.base.published import stop_ids
from rllr.evaluate.quality import statistics
from rllr.files import read_jsonl, stage_lock, write_json, write_jsonl
from rllr.lm import budget, duration, fitting, models, rewards
from rllr.lm.generation import decoded
from rllr.lm.lengths import answer_room
from rllr.lm.tokens import Encoder
from rllr.predict.model_file import SAMPLES, PredictConfig
from rllr.tasks import Task, agrees, read_label


def judge(
    config: PredictConfig,
    base: Path,
    reward: Path,
    samples: list[Path],
    rows: list[dict],
    tasks: dict[str, Task],
    responses: Path,
    out: Path,
) -> None:
    """Score each policy's samples (files of `write_samples`) with a reward model; writes `out` (quality.json).

    Args:
        responses: the training responses, which give the samples' room, and so the prompts, as `write_samples` had it.
    """
    dtype, config = models.dtype_of(config.precision), fitting.settled(config, base, "predict")
    tokenizer = models.load_tokenizer(base)
    encoder = Encoder(tokenizer, config.cutoff)
    room = answer_room(config.max_new_tokens, responses, encoder)
    prompts = {row["id"]: encoder.prompt(row, room=room) for row in rows}
    known = {row["id"]: row for row in rows}
    stops = [tokenizer.eos_token_id, *stop_ids(base)]
    with stage_lock(out.parent):
        tokens = sum(map(len, prompts.values())) + SAMPLES * len(prompts) * room // 2  # answers of half the room
        estimate = budget.check(base, asdict(config), "predict", duration.Work(read=len(samples) * tokens), out.parent)
        model = rewards.load_reward(base, reward, dtype, config.attention)
        lines, found = [], {}
        for path in samples:
            flat = [(line["id"], response) for _, line in read_jsonl(path) for response in line["responses"]]
            if missing := sorted({name for name, _ in flat} - set(known)):
                raise cli.UserError(f"{path}: id {missing[0]!r} is not in the validation data; sample anew")
            values = rewards.scores(
                model, tokenizer, [prompts[name] for name, _ in flat], [r for _, r in flat], config.batch_size, dtype
            )
            texts = decoded(tokenizer, [r for _, r in flat], stops)
            own = []
            for (name, _), text, value in zip(flat, texts, values, strict=True):
                row, task = known[name], tasks[known[name]["task"]]
                right = agrees(read_label(text, task), row["label"], task)
                own.append({"id": name, "task": task.name, "correct": right, "reward": value, "answer": text})
            policy = path.parent.name
            found[policy] = statistics(own)
            lines += [{"policy": policy, **line} for line in own]
            cli.log(f"{policy}: accuracy {found[policy]['accuracy']:.3f}, AUC {found[policy]['auc']}")
        write_jsonl(out.with_name("quality_samples.jsonl"), lines)
        write_json(out, {"reward_model": out.parent.name, "samples_per_prompt": SAMPLES, "policies": found})
        budget.report(estimate)
