"""What a run writes while it trains: records, evaluations, checkpoints and the message at a stop."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from gan.runs import checkpoints
from gan.runs.loggers import Tracker
from gan.training.context import Metrics
from gan.training.health import DivergenceMonitor
from gan.utils.cli import is_users
from gan.utils.distributed import AgreedError, StopAskedError, StopRequest, on_main
from gan.utils.errors import TrainingDivergedError, UserError
from gan.utils.settings import RunConfig

if TYPE_CHECKING:
    from gan.training.loop import TrainingTask

log = logging.getLogger(__name__)


@dataclass
class Recorder:
    """Writes a run's folder. All processes call its methods together; the main one has the ``tracker`` and writes."""

    task: "TrainingTask"
    config: RunConfig
    accelerator: Accelerator
    tracker: Tracker | None
    stop: StopRequest
    saved: int  # the step of the newest checkpoint; 0: none
    evaluated: bool = True  # False from a stop during an evaluation on
    throughput: "Throughput" = field(init=False)
    monitor: DivergenceMonitor = field(init=False)

    def __post_init__(self) -> None:
        self.monitor = DivergenceMonitor(self.accelerator.device, self.config.health.max_grad_norm)
        self.throughput = Throughput(self.saved, images_per_step=self.task.images_per_step)

    def log(self, step: int, metrics: Metrics) -> str:
        """Write one record of the training. Return what the progress line shows of it. Waits for the device."""
        means: Tensor = self.accelerator.reduce(torch.stack(list(metrics.values())), "mean")
        values = dict(zip(metrics, means.tolist(), strict=True))
        if self.tracker is not None:
            with self._disk_errors_as_user_errors():
                health = self.task.diagnose(step, values, self.tracker)
                rates = {**self.task.learning_rates(), **self.throughput.since_last(step)}
                self.tracker.log(step, {**values, **health, **rates})
        return self.task.headline(values)

    def evaluate(self, step: int) -> bool:
        """Evaluate the task where that is due. Return False where the run was asked to stop before the evaluation had ended.

        A mistake that ends all processes, such as a damaged image, is raised once the steps since the last checkpoint are saved.
        """
        began = time.monotonic()
        try:
            with self._disk_errors_as_user_errors():
                if self.task.should_evaluate(step):
                    self.task.evaluate(step, self.tracker, self.stop.check)
                if self.tracker is not None:
                    checkpoints.mark_evaluated(self.config.folder / "checkpoints", step)
        except StopAskedError:
            self.evaluated = False
        except (AgreedError, SystemExit) as error:
            self.evaluated = False
            if step > self.saved:
                self.save(step)
            if isinstance(error, SystemExit):
                raise
            since = f"The run is saved up to step {self.saved}; the same command resumes from there" if self.saved else ""
            raise AgreedError(f"{error} {since}".rstrip()) from None
        self.throughput.exclude(time.monotonic() - began)
        return self.evaluated

    def save(self, step: int, *, evaluated: bool = True) -> None:
        """Save a checkpoint, after the records that lead to it are on the disk. ``evaluated`` is that of Checkpoint."""

        def write() -> None:
            assert self.tracker is not None
            with self._disk_errors_as_user_errors():
                self.tracker.flush()
                snapshot = replace(self.task.snapshot(step), evaluated=self.evaluated and evaluated)
                checkpoints.save(self.config.folder / "checkpoints", snapshot, keep=self.config.checkpoint.keep)

        on_main(self.accelerator, write)
        self.saved = step

    def require_healthy(self, step: int) -> None:
        """Raise TrainingDivergedError where any step so far had numbers that are not finite, or exploding gradients."""
        try:
            self.monitor.require(self.accelerator, self.config.folder)
        except TrainingDivergedError as error:
            if self.tracker is not None:
                self.tracker.message(step, str(error))
            raise

    def stopped(self, step: int) -> int:
        """Report the stop after ``step``. Return the number of the signal that asked for it."""
        if self.tracker is not None:
            name, saved = signal.Signals(self.stop.signal).name, "saved" if step else "nothing to save"
            log.info(f"stopped by {name} at step {step}, {saved}. The same command resumes from there.")
        return self.stop.signal

    @contextmanager
    def _disk_errors_as_user_errors(self) -> Iterator[None]:
        """Re-raise disk and permission errors as UserError that names the last saved step."""
        try:
            yield
        except OSError as error:
            since = f"The run is saved up to step {self.saved}" if self.saved else "Nothing had been saved yet"
            if isinstance(error, FileNotFoundError) and not (self.config.folder / "config.yaml").exists():
                raise UserError(
                    f"{self.config.folder}: moved or removed while the run was training. {since}. Where it was moved, put it"
                    " back, or set run.dir and run.name to the new place; the same command then resumes from there."
                ) from None
            if not is_users(error):
                raise
            path: str | Path = error.filename or self.config.folder
            raise UserError(
                f"{path}: {error.strerror}. {since}. Once this is repaired, the same command resumes from there."
            ) from None


class Throughput:
    """Real images a second, over all processes, between two records."""

    def __init__(self, step: int, *, images_per_step: int) -> None:
        self.step, self.images_per_step, self.time = step, images_per_step, time.monotonic()

    def exclude(self, seconds: float) -> None:
        """Leave ``seconds`` out of the next rate: records are of training alone, not of evaluations."""
        self.time += seconds

    def since_last(self, step: int) -> dict[str, float]:
        """Return the rate and the seconds since the last call."""
        now = time.monotonic()
        seconds, steps = now - self.time, step - self.step
        self.step, self.time = step, now
        return {"images_per_second": round(steps * self.images_per_step / seconds, 2), "seconds": round(seconds, 3)}
