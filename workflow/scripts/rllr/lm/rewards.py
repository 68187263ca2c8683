"""Trained reward models: loading one, and the scores that it gives to responses."""

from pathlib import Path

import torch

from rllr.cli import UserError
from rllr.files import read_json
from rllr.lm import models
from rllr.lm.padding import fill


def load_reward(base: Path | str, adapter: Path | str, kind: torch.dtype, attention: str = "auto"):
    """A trained reward model: the backbone with its LoRA and score head, in eval mode on the device.

    Raises:
        UserError: the adapter is not a reward model's.
    """
    from peft import PeftModel

    if (found := read_json(Path(adapter) / "adapter_config.json").get("task_type")) != "SEQ_CLS":
        raise UserError(f"{adapter}: expected the adapter of a reward model (task type SEQ_CLS), found {found}")
    model = PeftModel.from_pretrained(models.load_scorer(base, kind, attention), adapter)
    models.cast_weights_not_activations(model)
    return model.to(models.device()).eval()


def scores(reward, tokenizer, prompts, responses, batch_size: int, kind) -> list[float]:
    """The reward of each response to its prompt (both token ids)."""
    whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    with models.autocast(kind):
        return score_sequences(reward, whole, tokenizer.pad_token_id, batch_size).tolist()


@torch.no_grad()
def score_sequences(model, sequences: list[list[int]], pad: int, batch_size: int, progress: str = "") -> torch.Tensor:
    """Scores of whole sequences (prompt + response) by a SEQ_CLS reward model, length-sorted; (N,) fp32 on the CPU.

    The model's own `logits` already are the head's output at the last token that is not padding.
    """
    from tqdm import tqdm

    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    scores = torch.empty(len(sequences))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=not progress, mininterval=2):
        batch = order[start : start + batch_size]
        ids, mask = fill([sequences[i] for i in batch], pad, model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        scores[batch] = logits[:, 0].float().cpu()
    return scores
