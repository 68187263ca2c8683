"""TensorBoard events beside a stage's outputs, with the names of train_log.jsonl."""

import math
from pathlib import Path


class Board:
    """Events of one stage.

    Args:
        step: where a resumed run goes on; from there on, events of the run that was interrupted count no more.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def write(self, values: dict, step: int, texts: dict[str, str] | None = None) -> None:
        """Numbers by name (what is no number is left out), and texts."""
        for key, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value) and key not in ("step", "iteration"):
                self.writer.add_scalar(key, value, step)
        for key, text in (texts or {}).items():
            self.writer.add_text(key, text, step)
        self.writer.flush()
