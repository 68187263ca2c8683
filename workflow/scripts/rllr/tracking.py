"""What a stage logs, told to trackers as well, under the names of train_log.jsonl: TensorBoard, W&B, MLflow.

RLLR_REPORT_TO (config.yaml's `report_to`) names them. W&B and MLflow write into the stage's folder, and nothing leaves
the machine, unless their own variables (WANDB_MODE, MLFLOW_TRACKING_URI, ...) say so. Keys are read by them alone.
"""

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from rllr.cli import UserError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Board:
    """The trackers of one stage. A stage that is resumed goes on in TensorBoard, and begins a new run elsewhere.

    Args:
        folder: of the TensorBoard events, in the stage's folder.
        step: where a resumed run goes on; from there on, events of the run that was interrupted count no more.

    Raises:
        UserError: a tracker's package is not there.
    """

    def __init__(self, folder: Path, step: int) -> None:
        names = os.environ.get("RLLR_REPORT_TO", "tensorboard").split()
        for name in names:
            if importlib.util.find_spec(PACKAGES[name]) is None:
                raise UserError(f"report_to: {name}: its package is not installed; pip install {PACKAGES[name]}")
        self.writer: Any = None
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
        self.others = [start(name, folder.parent) for name in names if name != "tensorboard"]

    def write(self, values: dict, step: int, texts: dict[str, str] | None = None) -> None:
        """Numbers by name (what is no number is left out), and texts, which only TensorBoard keeps."""
        numbers = {
            key: value
            for key, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value) and key not in ("step", "iteration")
        }
        for tracker in self.others:
            tracker.log(numbers, step=step)
        if self.writer:
            for key, value in numbers.items():
                self.writer.add_scalar(key, value, step)
            for key, text in (texts or {}).items():
                self.writer.add_text(key, text, step)
            self.writer.flush()

    def close(self) -> None:
        """End the stage's runs, so that it may begin another in the same process."""
        for tracker in self.others:
            tracker.finish()
        if self.writer:
            self.writer.close()


def start(name: str, stage: Path) -> Any:
    """A tracker of accelerate's, at work in a stage's folder, with the stage's configuration."""
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, WandBTracker

    from rllr.config import load_yaml

    PartialState()  # which process this is; trackers ask
    title = f"{stage.resolve().parent.name}/{stage.name}"
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        settings = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True}
        project = os.environ.get("WANDB_PROJECT", "rllr")
        tracker: Any = WandBTracker(project, name=title, dir=str(stage), settings=settings)
    else:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = (stage / "mlflow").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        tracker = MLflowTracker(os.environ.get("MLFLOW_EXPERIMENT_NAME", "rllr"), run_name=title)
    tracker.start()
    if (stage / "config.yaml").is_file():
        tracker.store_init_configuration({key: str(value) for key, value in load_yaml(stage / "config.yaml").items()})
    return tracker
