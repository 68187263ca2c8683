"""Trained reward models: loading one, and the scores that it gives to responses."""

from pathlib import Path

import torch

from rllr.cli import UserError
from rllr.files import read_json
from rllr.lm import models
from rllr.lm.packing import Packed, by_size, shares_prompts


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


def token_scores(model, batch: Packed, columns: torch.Tensor) -> torch.Tensor:
    """(N, C) fp32 scores of a SEQ_CLS reward model, PEFT or plain, at `columns` of each response's group."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = getattr(plain, plain.base_model_prefix)
    hidden = trunk(**batch.inputs(), use_cache=False).last_hidden_state
    return plain.score(hidden[batch.group, columns])[..., 0]


@torch.no_grad()
def scores(
    model, tokenizer, prompts: list[list[int]], responses: list[list[int]], batch_size: int, kind, progress: str = ""
) -> list[float]:
    """The reward of each response to its prompt (token ids): the head's output at the last token, EOS included.

    Args:
        batch_size: responses side by side; those of one prompt share it. progress: what the progress bar says.
    """
    from tqdm import tqdm

    found, shared = [0.0] * len(prompts), shares_prompts(model)
    with tqdm(total=len(prompts), desc=progress, disable=not progress, mininterval=2) as bar:
        for numbers in by_size(prompts, responses, batch_size):
            own = ([part[i] for i in numbers] for part in (prompts, responses))
            batch = Packed.build(*own, tokenizer.pad_token_id, models.device(), kind, shared)
            with models.autocast(kind):
                values = token_scores(model, batch, batch.last())[:, 0]
            for i, value in zip(numbers, values.tolist(), strict=True):
                found[i] = value
            bar.update(len(numbers))
    return found
