"""The training loop: a run that can be stopped at any moment and goes on bit for bit."""

import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from gan import checkpoints, sampling, scores
from gan.config import Config, check_processes, flatten, to_yaml, warnings
from gan.data import BatchStream, Images, Share, load_images
from gan.errors import UserError
from gan.files import write_atomically
from gan.processes import FiniteCheck, StopRequest, on_all, on_all_in_turn, on_main
from gan.progress import Progress, follow, say
from gan.runs import hold, is_run, open_run, same_settings, start_folder
from gan.scores import Score
from gan.tracking import Tracker, check_trackers
from gan.updates import Job, Metrics, Players, build_players, restore, snapshot, train_step

# Scores a generator after a step. Called by all processes together; the main one gets the score.
Evaluate: TypeAlias = Callable[[nn.Module, int], Score | None]
OpenEvaluation: TypeAlias = Callable[[Config, Images, Accelerator], Evaluate]


def train(config: Config, accelerator: Accelerator, open_evaluation: OpenEvaluation | None = None) -> int:
    """Trains until ``config.training.steps``, going on from the newest checkpoint of the run in ``config.folder``.

    ``open_evaluation`` gets ready what ``config.evaluation`` asks for; handed in, since nothing here imports eval.

    Returns 0, or the number of the signal that stopped it (after a checkpoint). Raises UserError for a mistake in the
    configuration, the images or the folder, TrainingDivergedError for numbers that are not finite.
    """
    main = accelerator.is_main_process
    on_all(accelerator, lambda: check_processes(config, accelerator.num_processes))
    on_all(accelerator, lambda: check_trackers(wandb=config.tracking.wandb, tensorboard=config.tracking.tensorboard))
    config = on_main(accelerator, lambda: same_settings(config))  # before anything is downloaded for it
    images = _load_on_all(config, accelerator)
    # Held before it is read, so that what was read stays true; made only for a run that may start.
    lock = on_all(accelerator, lambda: hold(config.folder) if main and is_run(config.folder) else None)
    config, checkpoint = on_main(accelerator, lambda: open_run(config, images, accelerator.device))
    start = checkpoint.step if checkpoint else 0
    if checkpoint:
        on_main(accelerator, lambda: checkpoints.tidy(config.folder / "checkpoints", start, keep=config.checkpoint.keep))
    if start >= config.training.steps:
        if main:
            say(f"{config.folder} is complete at step {start}. To train on, set training.steps above {start}.")
        return 0
    job = Job(config, accelerator, Share.of(config, rank=accelerator.process_index, processes=accelerator.num_processes))
    stream = BatchStream(images, _in_memory(images, job), config=config, share=job.share, device=job.device)
    players = build_players(config, job.device)
    if checkpoint:
        restore(players, checkpoint)
    evaluate = None
    if config.evaluation.every:
        assert open_evaluation is not None
        evaluate = open_evaluation(config, images, accelerator)
    lock = on_all(accelerator, lambda: hold(config.folder) if main and lock is None else lock)
    on_main(accelerator, lambda: start_folder(config, images, accelerator, start))
    tracker = on_all(accelerator, lambda: _open_tracker(config, start) if main else None)
    if main:
        for warning in warnings(config):
            say(f"warning: {warning}")
        say(f"{config.folder}: from step {start} to {config.training.steps}, {len(images):,} images, {job.describe()}")
    with closing(stream), tracker or nullcontext():
        return _loop(players, stream, job, tracker, start, evaluate)


def _load_on_all(config: Config, accelerator: Accelerator) -> Images:
    """The images, on every process."""
    images = on_all_in_turn(accelerator, lambda: load_images(config.data))
    prints = set(gather_object([images.fingerprint]))

    def same_everywhere() -> None:
        if len(prints) > 1:
            raise UserError(f"data.path={config.data.path}: processes see different images ({', '.join(sorted(prints))}).")

    on_all(accelerator, same_everywhere)
    return images


def _in_memory(images: Images, job: Job) -> Tensor | None:
    """All images on the device, or None where they are to be streamed."""
    if images.gigabytes() > job.config.data.memory_gb:
        return None
    shown = follow if job.accelerator.is_main_process else lambda items, _total, _what: items
    return on_all(job.accelerator, lambda: images.to_memory(shown)).to(job.device)


def _open_tracker(config: Config, start: int) -> Tracker:
    tracking = config.tracking
    return Tracker(
        config.folder,
        start or -1,  # without a checkpoint, what was recorded before the first step will be recorded again too
        settings=dict(flatten(config)),
        wandb=tracking.wandb,
        project=tracking.wandb_project,
        tensorboard=tracking.tensorboard,
    )


def _loop(players: Players, stream: BatchStream, job: Job, tracker: Tracker | None, start: int, evaluate: Evaluate | None) -> int:
    """Steps ``start`` + 1 to the last. The main process has the ``tracker`` and writes; all compute the same steps."""
    config, total = job.config, job.config.training.steps
    health, stop = FiniteCheck(job.device), StopRequest(job.accelerator)
    progress = Progress(start, total, "step", shown=tracker is not None)

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == total)

    if tracker is not None and start == 0 and config.samples.every:
        save_samples(players, 0, config, tracker)
    if evaluate is not None and start == 0:
        save_score(players, 0, config, tracker, evaluate)
    rate = Rate(start, images_per_step=config.training.batch_size * config.training.d_steps)
    with stop.listening(), progress:
        for step in range(start + 1, total + 1):  # counts G updates: the one that this step ends with
            metrics = train_step(players, stream, step - 1, job)
            health.note(step, metrics)
            stopping = stop.agreed()
            logging, picturing, saving = due(config.tracking.every), due(config.samples.every), due(config.checkpoint.every)
            scoring = due(config.evaluation.every)
            if logging or picturing or scoring or saving or stopping:
                health.require(job.accelerator)
            shown = ""
            if logging:
                values = _mean_values(metrics, job.accelerator)
                shown = f"D {values['d_loss']:.3f}  G {values['g_loss']:.3f}"
                if tracker is not None:
                    tracker.log(step, {**values, **_learning_rates(players), **rate.since_last(step)})
            if picturing and tracker is not None:
                save_samples(players, step, config, tracker)
            if scoring and evaluate is not None:
                began = time.monotonic()
                save_score(players, step, config, tracker, evaluate)
                rate.leave_out(time.monotonic() - began)  # records are of training alone
            if saving or stopping:
                if tracker is not None:
                    tracker.flush()  # a checkpoint must not be newer than the record that leads to it
                    checkpoint = snapshot(players, step, config, stream.images.fingerprint)
                    checkpoints.save(config.folder / "checkpoints", checkpoint, keep=config.checkpoint.keep)
                job.accelerator.wait_for_everyone()
            progress.advance(shown)
            if stopping:
                if tracker is not None:
                    name = signal.Signals(stop.signal).name
                    say(f"stopped by {name} at step {step}, saved. The same command goes on from there.")
                return stop.signal
    return 0


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


def _learning_rates(players: Players) -> dict[str, float]:
    return {"d_lr": players.d_optimizer.param_groups[0]["lr"], "g_lr": players.g_optimizer.param_groups[0]["lr"]}


def save_samples(players: Players, step: int, config: Config, tracker: Tracker) -> None:
    """The grid of the run's fixed noise as samples/step-*.png: of the averaged generator where there is one."""
    pieces = sampling.generate(
        players.average or players.generator,
        seed=config.samples.seed,
        count=config.samples.count,
        latent_dim=config.model.latent_dim,
    )
    pixels = sampling.grid(torch.cat(list(pieces)))
    folder = config.folder / "samples"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"step-{step:08d}.png", sampling.encode(pixels))
    tracker.image(step, "samples", pixels)


def save_score(players: Players, step: int, config: Config, tracker: Tracker | None, evaluate: Evaluate) -> None:
    """Scores the averaged generator where there is one, and keeps it as best/ if no score of its kind was better."""
    network = players.average or players.generator
    score = evaluate(network, step)
    if tracker is None or score is None:
        return
    best = scores.best_distance(config.folder, score.record["series"])
    if best is None or score.distance < best:
        name = "generator" if players.average is None else "ema"
        checkpoints.replace_weights(config.folder / "best", step, {name: network.state_dict()}, to_yaml(config))
    # Later than the weights: a kill between the two scores this step again, and replaces them by the same.
    scores.append(config.folder, score.record)
    tracker.log(step, score.curves)
