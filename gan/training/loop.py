"""A run, whatever it trains: opened, gone on with, stepped, recorded, saved and stopped at any moment, bit for bit."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from gan.data.datasets import ImageDataset
from gan.runs import checkpoints
from gan.runs.checkpoints import Checkpoint
from gan.runs.folder import RunLock, is_run, open_run, same_settings, start_folder
from gan.runs.loggers import Tracker, check_trackers
from gan.training.context import Metrics
from gan.training.health import DivergenceMonitor
from gan.utils.cli import is_users
from gan.utils.distributed import StopAskedError, StopRequest, on_all, on_all_in_turn, on_main
from gan.utils.errors import TrainingDivergedError, UserError, first_line
from gan.utils.progress import Progress
from gan.utils.settings import C, RunConfig, check_processes, flatten

log = logging.getLogger(__name__)

I = TypeVar("I", bound=ImageDataset)  # noqa: E741


class TrainingTask(Protocol):
    """What a run trains. Its functions are called by all processes together."""

    total: int  # steps of the whole run
    images_per_step: int  # real ones, over all processes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over all that ``snapshot`` gave."""

    def snapshot(self, step: int) -> Checkpoint:
        """All that the rest of the run depends on."""

    def step(self, number: int) -> Metrics:
        """Step ``number`` from 0. Scalars on the device."""

    def learning_rates(self) -> dict[str, float]:
        """By name, for the record."""

    def headline(self, values: dict[str, float]) -> str:
        """What the progress line shows of a record."""

    def looks(self, step: int) -> bool:
        """Whether ``look`` has something to do after ``step`` steps."""

    def look(self, step: int, tracker: Tracker | None, check: Callable[[], None]) -> None:
        """Pictures, scores and whatever else shows how far it is; the main process has the ``tracker`` and writes.

        What takes long calls ``check`` now and then, on all processes together: it raises where the run is to stop. Then this is
        called again when the run goes on, in another process: what it writes before ``check`` must not be written twice.
        """

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        """What a record of ``values`` says of the training's health, for the record; on the main process, which warns."""

    def close(self) -> None:
        """Ends what runs beside it."""


def run_training(
    config: C,
    accelerator: Accelerator,
    load: Callable[[], I],
    total: Callable[[C, I], int],
    begin: Callable[[C, I, Accelerator], TrainingTask],
) -> int:
    """Trains what ``begin`` makes of the images that ``load`` gives, to the last of ``total`` steps, going on from the newest
    checkpoint in ``config.folder``.

    Returns 0, or the number of the signal that stopped it (after a checkpoint). Raises UserError for a mistake in the
    configuration, the images or the folder, TrainingDivergedError for numbers that are not finite.
    """
    main = accelerator.is_main_process
    on_all(accelerator, lambda: check_processes(config, accelerator.num_processes))
    on_all(accelerator, lambda: check_trackers(wandb=config.tracking.wandb, tensorboard=config.tracking.tensorboard))
    config = on_main(accelerator, lambda: same_settings(config))  # before anything is downloaded for it
    images = _load_on_all(config, load, accelerator)
    with ExitStack() as stack:

        def take() -> RunLock | None:
            return stack.enter_context(closing(RunLock(config.folder))) if main else None

        # Held before it is read, so that what was read stays true; made only for a run that may start.
        hold = on_all(accelerator, lambda: take() if is_run(config.folder) else None)
        config, checkpoint = on_main(accelerator, lambda: open_run(config, images, accelerator.device))
        start, last = checkpoint.step if checkpoint else 0, total(config, images)
        looked = checkpoint.looked if checkpoint else False  # a new run is looked at before its first step
        if checkpoint:
            on_main(accelerator, lambda: checkpoints.tidy(config.folder / "checkpoints", start, keep=config.checkpoint.keep))
        if start >= last and looked:
            if main:
                log.info(f"{config.folder} is complete at step {start}. To train on, set more steps than that.")
            return 0
        work = begin(config, images, accelerator)
        if checkpoint:
            on_all(accelerator, lambda: _restore(work, checkpoint, config))
        hold = on_all(accelerator, lambda: hold or take())
        on_main(accelerator, lambda: start_folder(config, images, accelerator, hold, start, looked=looked))
        tracker = on_all(accelerator, lambda: _open_tracker(config, start, looked) if main else None)
        if main:
            for warning in config.warnings():
                log.warning(f"{warning}")
            count = accelerator.num_processes
            where = f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type} in {config.training.precision}"
            log.info(f"{config.folder}: from step {start} to {last}, {len(images):,} images, {where}")
        with closing(work), tracker or nullcontext():
            return _Course(work, config, accelerator, tracker, start).run(looked)


def _restore(work: TrainingTask, checkpoint: Checkpoint, config: RunConfig) -> None:
    """Puts back what was saved. Its checksums are right, but whoever made the folder made them too."""
    try:
        work.restore(checkpoint)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{config.folder}: the checkpoint of step {checkpoint.step} does not fit its config.yaml ({first_line(error)})."
            " Restore the folder from a copy."
        ) from None


def _load_on_all(config: RunConfig, load: Callable[[], I], accelerator: Accelerator) -> I:
    """The images, on every process."""
    images = on_all_in_turn(accelerator, load)
    prints = set(gather_object([images.fingerprint]))

    def same_everywhere() -> None:
        if len(prints) > 1:
            raise UserError(f"data.path={config.data.path}: processes see different images ({', '.join(sorted(prints))}).")

    on_all(accelerator, same_everywhere)
    return images


def _open_tracker(config: RunConfig, start: int, looked: bool) -> Tracker:
    tracking = config.tracking
    return Tracker(
        config.folder,
        start,
        looked=looked,
        settings=dict(flatten(config)),
        wandb=tracking.wandb,
        project=tracking.wandb_project,
        tensorboard=tracking.tensorboard,
    )


@dataclass
class _Course:
    """A run under way. The main process has the ``tracker`` and writes; all compute the same steps."""

    work: TrainingTask
    config: RunConfig
    accelerator: Accelerator
    tracker: Tracker | None
    saved: int  # the step up to which a checkpoint holds it

    def __post_init__(self) -> None:
        self.watch = DivergenceMonitor(self.accelerator.device, self.config.health.max_grad_norm)
        self.stop = StopRequest(self.accelerator)
        self.root = self.config.folder / "checkpoints"

    def run(self, looked: bool) -> int:
        """From the step after ``saved``, which has been ``looked`` at or not, to the last. Returns as ``run_training``."""
        work, config, start = self.work, self.config, self.saved
        progress = Progress(start, work.total, "step", shown=self.tracker is not None)
        with self.stop.listening(), progress:
            if not looked and work.looks(start) and not self._look(start):
                return self._stopped(start)
            if start:
                on_main(self.accelerator, lambda: checkpoints.note_looked(self.root, start))
            rate = Rate(start, images_per_step=work.images_per_step)
            for step in range(start + 1, work.total + 1):
                metrics = work.step(step - 1)
                self.watch.note(step, metrics)
                stopping, looked = self.stop.agreed(), True
                logging, saving = (due(step, every, work.total) for every in (config.tracking.every, config.checkpoint.every))
                looking = work.looks(step)
                if logging or looking or saving or stopping:
                    self._require_health(step)
                shown = self._record(step, metrics, rate) if logging else ""
                if looking:
                    began = time.monotonic()
                    looked = self._look(step)
                    rate.leave_out(time.monotonic() - began)  # records are of training alone
                    stopping |= not looked
                if saving or stopping:
                    on_main(self.accelerator, partial(self._save, step, looked))
                    self.saved = step
                progress.advance(shown)
                if stopping:
                    return self._stopped(step)
        return 0

    def _record(self, step: int, metrics: Metrics, rate: "Rate") -> str:
        """What the progress line shows of it."""
        values = _mean_values(metrics, self.accelerator)
        if self.tracker is not None:
            with _telling_what_is_saved(self.config.folder, self.saved):
                health = self.work.diagnose(step, values, self.tracker)
                self.tracker.log(step, {**values, **health, **self.work.learning_rates(), **rate.since_last(step)})
        return self.work.headline(values)

    def _look(self, step: int) -> bool:
        """Whether it came to its end."""
        try:
            with _telling_what_is_saved(self.config.folder, self.saved):
                self.work.look(step, self.tracker, self.stop.check)
        except StopAskedError:
            return False
        return True

    def _save(self, step: int, looked: bool) -> None:
        assert self.tracker is not None
        with _telling_what_is_saved(self.config.folder, self.saved):
            self.tracker.flush()  # a checkpoint must not be newer than the record that leads to it
            snapshot = replace(self.work.snapshot(step), looked=looked)
            checkpoints.save(self.root, snapshot, keep=self.config.checkpoint.keep)

    def _require_health(self, step: int) -> None:
        try:
            self.watch.require(self.accelerator, self.config.folder)
        except TrainingDivergedError as error:
            if self.tracker is not None:
                self.tracker.message(step, str(error))
            raise

    def _stopped(self, step: int) -> int:
        if self.tracker is not None:
            name, saved = signal.Signals(self.stop.signal).name, "saved" if step else "nothing to save"
            log.info(f"stopped by {name} at step {step}, {saved}. The same command goes on from there.")
        return self.stop.signal


@contextmanager
def _telling_what_is_saved(folder: Path, step: int) -> Iterator[None]:
    """Tells what a disk or a permission refuses as the user's to mend, with the step from which the run goes on."""
    try:
        yield
    except OSError as error:
        if not is_users(error):
            raise
        since = f"The run is saved up to step {step}" if step else "Nothing had been saved yet"
        raise UserError(
            f"{error.filename or folder}: {error.strerror}. {since}. Mend that, and the same command goes on from there."
        ) from None


def due(step: int, every: int, total: int) -> bool:
    """Whether what happens ``every`` so many steps, and after the last of ``total``, happens after ``step``; 0 means never."""
    return every > 0 and (step % every == 0 or step == total)


class Rate:
    """Real images a second, over all processes, between two records."""

    def __init__(self, step: int, *, images_per_step: int) -> None:
        self.step, self.images_per_step, self.time = step, images_per_step, time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Time that was spent on something else."""
        self.time += seconds

    def since_last(self, step: int) -> dict[str, float]:
        now = time.monotonic()
        seconds, steps = now - self.time, step - self.step
        self.step, self.time = step, now
        return {"images_per_second": round(steps * self.images_per_step / seconds, 2), "seconds": round(seconds, 3)}


def _mean_values(metrics: Metrics, accelerator: Accelerator) -> dict[str, float]:
    """Means over processes, as numbers. Waits for the device."""
    values: Tensor = accelerator.reduce(torch.stack(list(metrics.values())), "mean")
    return dict(zip(metrics, values.tolist(), strict=True))
