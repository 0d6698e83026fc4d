"""A run, whatever it trains: opened, gone on with, stepped, recorded, saved and stopped at any moment, bit for bit."""

import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from gan import checkpoints
from gan.checkpoints import Checkpoint
from gan.data import Images
from gan.errors import UserError
from gan.job import Metrics
from gan.processes import FiniteCheck, StopRequest, on_all, on_all_in_turn, on_main
from gan.progress import Progress, say
from gan.runs import hold, is_run, open_run, same_settings, start_folder
from gan.settings import C, Settings, check_processes, flatten
from gan.tracking import Tracker, check_trackers

I = TypeVar("I", bound=Images)  # noqa: E741


class Work(Protocol):
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

    def look(self, step: int, tracker: Tracker | None) -> None:
        """Pictures, scores and whatever else shows how far it is; the main process has the ``tracker`` and writes."""

    def close(self) -> None:
        """Ends what runs beside it."""


def conduct(
    config: C,
    accelerator: Accelerator,
    load: Callable[[], I],
    total: Callable[[C, I], int],
    begin: Callable[[C, I, Accelerator], Work],
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
    # Held before it is read, so that what was read stays true; made only for a run that may start.
    lock = on_all(accelerator, lambda: hold(config.folder) if main and is_run(config.folder) else None)
    config, checkpoint = on_main(accelerator, lambda: open_run(config, images, accelerator.device))
    start, last = checkpoint.step if checkpoint else 0, total(config, images)
    if checkpoint:
        on_main(accelerator, lambda: checkpoints.tidy(config.folder / "checkpoints", start, keep=config.checkpoint.keep))
    if start >= last:
        if main:
            say(f"{config.folder} is complete at step {start}. To train on, set more steps than that.")
        return 0
    work = begin(config, images, accelerator)
    if checkpoint:
        on_all(accelerator, lambda: _restore(work, checkpoint, config))
    lock = on_all(accelerator, lambda: hold(config.folder) if main and lock is None else lock)
    on_main(accelerator, lambda: start_folder(config, images, accelerator, start))
    tracker = on_all(accelerator, lambda: _open_tracker(config, start) if main else None)
    if main:
        for warning in config.warnings():
            say(f"warning: {warning}")
        count = accelerator.num_processes
        where = f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type} in {config.training.precision}"
        say(f"{config.folder}: from step {start} to {last}, {len(images):,} images, {where}")
    with closing(work), tracker or nullcontext():
        return _loop(work, config, accelerator, tracker, start)


def _restore(work: Work, checkpoint: Checkpoint, config: Settings) -> None:
    """Puts back what was saved. Its checksums are right, but whoever made the folder made them too."""
    try:
        work.restore(checkpoint)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{config.folder}: the checkpoint of step {checkpoint.step} does not fit its config.yaml ({reason}). Restore the"
            " folder from a copy."
        ) from None


def _load_on_all(config: Settings, load: Callable[[], I], accelerator: Accelerator) -> I:
    """The images, on every process."""
    images = on_all_in_turn(accelerator, load)
    prints = set(gather_object([images.fingerprint]))

    def same_everywhere() -> None:
        if len(prints) > 1:
            raise UserError(f"data.path={config.data.path}: processes see different images ({', '.join(sorted(prints))}).")

    on_all(accelerator, same_everywhere)
    return images


def _open_tracker(config: Settings, start: int) -> Tracker:
    tracking = config.tracking
    return Tracker(
        config.folder,
        start or -1,  # without a checkpoint, what was recorded before the first step will be recorded again too
        settings=dict(flatten(config)),
        wandb=tracking.wandb,
        project=tracking.wandb_project,
        tensorboard=tracking.tensorboard,
    )


def _loop(work: Work, config: Settings, accelerator: Accelerator, tracker: Tracker | None, start: int) -> int:
    """Steps ``start`` + 1 to the last. The main process has the ``tracker`` and writes; all compute the same steps."""
    health, stop = FiniteCheck(accelerator.device), StopRequest(accelerator)
    progress = Progress(start, work.total, "step", shown=tracker is not None)
    if start == 0 and work.looks(0):
        work.look(0, tracker)
    rate = Rate(start, images_per_step=work.images_per_step)
    with stop.listening(), progress:
        for step in range(start + 1, work.total + 1):
            metrics = work.step(step - 1)
            health.note(step, metrics)
            stopping = stop.agreed()
            logging, saving = (due(step, every, work.total) for every in (config.tracking.every, config.checkpoint.every))
            looking = work.looks(step)
            if logging or looking or saving or stopping:
                health.require(accelerator)
            shown = ""
            if logging:
                values = _mean_values(metrics, accelerator)
                shown = work.headline(values)
                if tracker is not None:
                    tracker.log(step, {**values, **work.learning_rates(), **rate.since_last(step)})
            if looking:
                began = time.monotonic()
                work.look(step, tracker)
                rate.leave_out(time.monotonic() - began)  # records are of training alone
            if saving or stopping:
                if tracker is not None:
                    tracker.flush()  # a checkpoint must not be newer than the record that leads to it
                    checkpoints.save(config.folder / "checkpoints", work.snapshot(step), keep=config.checkpoint.keep)
                accelerator.wait_for_everyone()
            progress.advance(shown)
            if stopping:
                if tracker is not None:
                    name = signal.Signals(stop.signal).name
                    say(f"stopped by {name} at step {step}, saved. The same command goes on from there.")
                return stop.signal
    return 0


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
