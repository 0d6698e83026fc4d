"""Where a run's records go: metrics.jsonl and probes.jsonl always; TensorBoard and wandb where they are enabled."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan.runs.metrics import METRICS, PROBES, JsonLines
from gan.runs.wandb_run import WandbRun, library
from gan.utils.errors import UserError
from gan.utils.settings import RunConfig, TrackingConfig, flatten


def check_trackers(tracking: TrackingConfig) -> None:
    """Raise UserError when an enabled logger is not installed or has no key."""
    wandb = tracking.wandb
    if tracking.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard=true: TensorBoard is not installed. pip install 'msngan[tensorboard]', or set it to false."
        )
    if wandb != "off" and find_spec("wandb") is None:
        raise UserError(f"tracking.wandb={wandb}: wandb is not installed. pip install wandb, or set tracking.wandb=off.")
    if wandb == "online" and not library().login(prompt=False, verify=False):
        raise UserError("tracking.wandb=online: no key for wandb. Run 'wandb login', or set tracking.wandb=offline.")


class Tracker:
    """Writes the records of one run, on the main process only."""

    def __init__(self, config: RunConfig, step: int) -> None:
        """Append to the records of the run, whose last record is that of ``step``."""
        self._folder, tracking = config.folder, config.tracking
        self._metrics = JsonLines(self._folder / METRICS)
        self._probes: JsonLines | None = None
        self._wandb: WandbRun | None = None
        self._tensorboard: Any = None
        if tracking.wandb != "off":
            settings = dict(flatten(config))
            self._wandb = WandbRun(self._folder, tracking.wandb, project=tracking.wandb_project, config=settings)
        if tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record of finite ``values``."""
        self._metrics.append({"step": step, **values})
        if self._wandb is not None:
            self._wandb.log(step, values)
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)

    def probe(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of probes.jsonl, for data too large for curves."""
        if self._probes is None:
            self._probes = JsonLines(self._folder / PROBES)
        self._probes.append({"step": step, **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Send an image (H, W) or (H, W, 3) to wandb and TensorBoard. The caller writes the PNG."""
        if self._wandb is not None:
            self._wandb.log(step, {name: library().Image(Image.fromarray(pixels))})
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def message(self, step: int, text: str) -> None:
        """Send a warning or error text to wandb and TensorBoard."""
        if self._wandb is not None:
            self._wandb.log(step, {"message": text})
        if self._tensorboard is not None:
            self._tensorboard.add_text("message", text, step)

    def flush(self) -> None:
        """Sync all lines to the disk: a checkpoint must not be newer than the records that lead to it."""
        self._metrics.flush()
        if self._probes is not None:
            self._probes.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._probes is not None:
            self._probes.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
