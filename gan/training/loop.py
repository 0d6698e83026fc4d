"""Training loop for GANs and classifiers: resume, step, check, log, evaluate, save, stop."""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from gan.data.check import check_images
from gan.data.datasets import ImageDataset
from gan.data.loader import require_none
from gan.data.sources import needs_decoding
from gan.runs import checkpoints
from gan.runs.checkpoints import Checkpoint
from gan.runs.folder import is_run, open_run, refuse_run, require_unused, same_settings, start_folder
from gan.runs.lock import lock_run
from gan.runs.loggers import Tracker, check_trackers
from gan.training.context import Metrics
from gan.training.recorder import Recorder
from gan.utils.distributed import StopRequest, agree_on_errors, on_all, on_all_in_turn, on_main, only_on_main
from gan.utils.errors import UserError, first_line
from gan.utils.progress import follow, progress
from gan.utils.settings import C, RunConfig, check_processes

log = logging.getLogger(__name__)
_CHECK_SECONDS = 30  # of decoding images that will be streamed, before the first step
I = TypeVar("I", bound=ImageDataset)  # noqa: E741


class TrainingTask(Protocol):
    """What a run trains: a GAN or a classifier. All processes call its methods together."""

    images_per_step: int  # real images, over all processes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load what ``snapshot`` returned."""

    def begin(self) -> dict[str, Any] | None:
        """Load the weights of another run, where the settings name one; a new run calls it once.

        Return what was loaded, None for nothing. Raises UserError where it cannot be read or does not fit.
        """

    def snapshot(self, step: int) -> Checkpoint:
        """Return all that the rest of the run depends on."""

    def prepare(self, number: int, stopping: Callable[[], bool]) -> None:
        """Wait for the images of step ``number``; return early when ``stopping()`` is true. Nothing that is saved changes.

        Raises UserError where they cannot be had. Called by each process alone.
        """

    def step(self, number: int) -> Metrics:
        """Take step ``number`` (from 0). Return scalars on the device, under the same names at each step."""

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates of the last step, by name."""

    def headline(self, values: dict[str, float]) -> str:
        """Return what the progress line shows of a record's ``values``."""

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        """Return what a record says of the training's health, and warn about it. Called on the main process only."""

    def should_evaluate(self, step: int) -> bool:
        """Return whether ``evaluate`` has anything to do after ``step`` steps."""

    def evaluate(self, step: int, tracker: Tracker | None, check_stop: Callable[[], None]) -> None:
        """Write sample grids, scores and test results. The main process has the ``tracker`` and writes.

        Long work calls ``check_stop`` now and then, on all processes together. It raises where the run is to stop; the
        resumed run calls ``evaluate`` again, so nothing may have been written before that would be written twice.
        """

    def close(self) -> None:
        """Stop worker processes."""


def run_training(
    config: C,
    accelerator: Accelerator,
    load_images: Callable[[], I],
    total_steps: Callable[[C, I], int],
    make_task: Callable[[C, I, Accelerator], TrainingTask],
) -> int:
    """Train the task that ``make_task`` returns up to its last step, from the newest checkpoint in ``config.folder``.

    Returns 0, or the number of the signal that stopped the run (after a checkpoint was saved). Raises UserError for a mistake
    in the settings, the images or the folder, TrainingDivergedError for numbers that are not finite.
    """
    with ExitStack() as stack:
        # Settings, images and the run's folder, which is locked before it is read. Nothing is written yet.
        config, images = _load(config, accelerator, load_images)
        if resuming := on_main(accelerator, lambda: is_run(config.folder)):
            _lock(config, accelerator, stack)
        config, checkpoint = _open(config, images, accelerator)
        start, last = checkpoint.step if checkpoint else 0, total_steps(config, images)
        evaluated = checkpoint is not None and checkpoint.evaluated
        if start >= last and evaluated:
            return _complete(config, accelerator, start)

        # Networks, optimisers and the batch stream, as the checkpoint left them.
        task = stack.enter_context(closing(make_task(config, images, accelerator)))
        origin = _restore(task, checkpoint, config, accelerator)

        # Records. From here on the run's folder is written to.
        if not resuming:
            _lock_unused(config, accelerator, stack)
        on_main(accelerator, lambda: start_folder(config, images, accelerator, checkpoint, origin))
        tracker = only_on_main(accelerator, lambda: stack.enter_context(Tracker(config, start)))
        stop = stack.enter_context(StopRequest(accelerator))
        bar = stack.enter_context(progress(last, "step", start=start, shown=accelerator.is_main_process))
        recorder = Recorder(task, config, accelerator, tracker, stop, saved=start)
        _announce(config, images, accelerator, start, last)
        if origin is not None:  # from here on the run does not need the other one
            recorder.save(start, evaluated=False)
        if not evaluated and not recorder.evaluate(start):
            return recorder.stopped(start)
        on_all(accelerator, lambda: task.prepare(start, lambda: False))  # a stop comes after a step, which is saved
        for step in range(start + 1, last + 1):
            metrics = task.step(step - 1)
            recorder.monitor.note(step, metrics)
            missing = _prepare(task, step, stop) if step < last else None
            stopping = stop.agreed(failed=missing is not None)
            logging_due, saving_due = due(step, config.tracking.every, last), due(step, config.checkpoint.every, last)
            evaluation_due = task.should_evaluate(step)
            if logging_due or saving_due or evaluation_due or stopping:
                recorder.require_healthy(step)
            if logging_due:
                bar.set_postfix_str(recorder.log(step, metrics), refresh=False)
            stopping = (evaluation_due and not recorder.evaluate(step)) or stopping
            if saving_due or stopping:
                recorder.save(step)
            bar.update()
            if stopping:
                on_all(accelerator, partial(_require_images, missing, step))
                return recorder.stopped(step)
    return 0


def _prepare(task: TrainingTask, number: int, stop: StopRequest) -> UserError | None:
    """Wait for the images of step ``number``. Return why they cannot be had, None where they are there or ``stop`` was asked.

    A step that has begun cannot be saved, so its images come before it.
    """
    try:
        task.prepare(number, lambda: stop.signal != 0)
    except UserError as error:
        return error
    return None


def _require_images(missing: UserError | None, step: int) -> None:
    """Raise UserError where the images after the saved ``step`` are ``missing``."""
    if missing is not None:
        raise UserError(
            f"{missing} The run is saved up to step {step}; the same command resumes from there, with data.accept_changes=true"
            " after a change of images."
        )


def due(step: int, every: int, total: int) -> bool:
    """Return whether an action of period ``every``, taken after the last of ``total`` steps too, is due after ``step``.

    A period of 0 means never.
    """
    return every > 0 and (step % every == 0 or step == total)


def check_inputs(config: RunConfig) -> None:
    """Raise UserError for a tracker that is not there, or where a run's grids of samples are or would become images."""
    check_trackers(config.tracking)
    images = Path(config.data.path or "")
    if config.data.name == "folder":
        refuse_run(images)
        if os.path.isdir(images) and config.folder.resolve().is_relative_to(images.resolve()):  # noqa: PTH112 (as in refuse_run)
            raise UserError(
                f"{config.folder}: inside data.path={config.data.path}, so that the run's grids of samples would become training"
                " images. Set run.dir to a folder outside."
            )
    if config.data.name == "digits" and config.data.path is not None:
        raise UserError(
            f"data.path={config.data.path}: data.name=digits comes with scikit-learn and has no path. Set data.name=folder for"
            " the images there, or leave the path out."
        )


def _load(config: C, accelerator: Accelerator, load_images: Callable[[], I]) -> tuple[C, I]:
    """Check the settings against the processes and the run's folder, then load the images, the same on every process."""
    with agree_on_errors(accelerator):
        check_inputs(config)
    config = on_main(accelerator, lambda: same_settings(config))  # before anything is downloaded
    with agree_on_errors(accelerator):
        check_processes(config, accelerator.num_processes)
    images = on_all_in_turn(accelerator, load_images)
    fingerprints = set(gather_object([images.fingerprint]))
    with agree_on_errors(accelerator):
        if len(fingerprints) > 1:
            found = ", ".join(sorted(fingerprints))
            raise UserError(f"data.path={config.data.path}: processes see different images ({found}).")
    if accelerator.is_main_process:
        for remark in images.remarks():
            log.info(remark)
    return config, images


def _check_images(config: RunConfig, images: ImageDataset, accelerator: Accelerator) -> None:
    """Decode images that will be streamed, for a bounded time. Raises UserError that names all that cannot be read.

    Images that are kept in memory are all decoded at the start anyhow.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    mistakes, checked, total = [], 0, 0
    for part in images.parts():
        if part.gigabytes() > config.data.memory_gb and needs_decoding(part.source):
            show = follow if accelerator.is_main_process else lambda items, _total, _what: items
            own = range(rank, len(part), processes)
            with agree_on_errors(accelerator):
                report = check_images(part.source, own, show, workers=config.data.workers, seconds=_CHECK_SECONDS)
            mistakes += gather_object(report.mistakes)
            checked, total = checked + sum(gather_object([report.checked])), total + len(part)
    with agree_on_errors(accelerator):
        require_none(mistakes, checked)
    if accelerator.is_main_process and checked < total:
        log.info(f"checked {checked:,} of {total:,} images in {_CHECK_SECONDS} s; python -m gan check checks all of them")


def _open(config: C, images: I, accelerator: Accelerator) -> tuple[C, Checkpoint | None]:
    """Open the run in ``config.folder``; see ``open_run``. Put damaged and surplus checkpoints aside, and check new images."""

    def open_and_tidy() -> tuple[C, Checkpoint | None]:
        opened, checkpoint = open_run(config, images, accelerator.device)
        if checkpoint is not None:
            checkpoints.tidy(config.folder / "checkpoints", checkpoint.step, keep=config.checkpoint.keep)
        return opened, checkpoint

    opened, checkpoint = on_main(accelerator, open_and_tidy)
    if checkpoint is None or config.data.accept_changes:
        _check_images(opened, images, accelerator)
    return opened, checkpoint


def _lock(config: RunConfig, accelerator: Accelerator, stack: ExitStack) -> None:
    """Lock the run's folder until ``stack`` ends, on the main process."""
    on_all(accelerator, lambda: stack.enter_context(lock_run(config.folder)) if accelerator.is_main_process else None)


def _lock_unused(config: RunConfig, accelerator: Accelerator, stack: ExitStack) -> None:
    """Lock the folder of a new run as ``_lock`` does. Raises UserError where another process has started a run in it."""
    _lock(config, accelerator, stack)
    on_main(accelerator, lambda: require_unused(config.folder))


def _complete(config: RunConfig, accelerator: Accelerator, step: int) -> int:
    if accelerator.is_main_process:
        log.info(f"{config.folder} is complete at step {step}. To train on, set more steps than that.")
    return 0


def _restore(
    task: TrainingTask, checkpoint: Checkpoint | None, config: RunConfig, accelerator: Accelerator
) -> dict[str, Any] | None:
    """Restore ``task``, or begin it where there is no checkpoint; return what it then loaded of another run.

    The checksums of a checkpoint are right, but whoever made the folder made them too.
    """
    if checkpoint is None:
        return task.begin()
    with agree_on_errors(accelerator):
        try:
            task.restore(checkpoint)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"{config.folder}: the checkpoint of step {checkpoint.step} does not fit its config.yaml ({first_line(error)})."
                " Restore the folder from a copy."
            ) from None
    return None


def _announce(config: RunConfig, images: ImageDataset, accelerator: Accelerator, start: int, last: int) -> None:
    if not accelerator.is_main_process:
        return
    for warning in config.warnings():
        log.warning(warning)
    if config.training.batch_size > len(images):
        log.warning(
            f"training.batch_size={config.training.batch_size} is more than the {len(images):,} images: a batch holds some"
            " of them more than once."
        )
    count = accelerator.num_processes
    where = f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type} in {config.training.precision}"
    log.info(f"{config.folder}: from step {start} to {last}, {len(images):,} images, {where}")
