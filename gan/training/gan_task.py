"""Training a GAN: what its run does at each step, and what it shows of it."""

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan.config import GanConfig
from gan.data.datasets import ImageDataset, load_images
from gan.data.stream import BatchShard, BatchStream
from gan.inference import sampling
from gan.inference.images import encode, grid
from gan.runs import checkpoints, scores
from gan.runs.checkpoints import Checkpoint
from gan.runs.loggers import METRICS, Tracker, last_values
from gan.runs.scores import Score
from gan.training import health
from gan.training.context import Metrics
from gan.training.gan_step import GanContext, GanState, build_state, restore, snapshot, train_step
from gan.training.loop import due, run_training
from gan.utils.files import write_atomically
from gan.utils.settings import to_yaml

log = logging.getLogger(__name__)

# Scores a generator after a step. Called by all processes together; the main one gets the score. The last argument is
# called now and then, and raises where the run is to stop.
Evaluate: TypeAlias = Callable[[nn.Module, int, Callable[[], None]], Score | None]
# Updates before which samples may be alike: an untrained generator's are, and so are an average's at first.
WARM_UP = 200
OpenEvaluation: TypeAlias = Callable[[GanConfig, ImageDataset, Accelerator], Evaluate]


def train(config: GanConfig, accelerator: Accelerator, open_evaluation: OpenEvaluation | None = None) -> int:
    """Trains until ``config.training.steps``, going on from the newest checkpoint of the run in ``config.folder``.

    ``open_evaluation`` gets ready what ``config.evaluation`` asks for; handed in, since nothing here imports eval.

    Returns and raises as ``gan.training.loop.run_training``.
    """

    def begin(config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> GanTask:
        evaluate = None
        work = GanTask(config, images, accelerator)
        if config.evaluation.every:
            assert open_evaluation is not None
            evaluate = open_evaluation(config, images, accelerator)
        work.evaluate = evaluate
        return work

    return run_training(config, accelerator, lambda: load_images(config.data), lambda config, _: config.training.steps, begin)


class GanTask:
    """The two players at work; see ``gan.training.loop.TrainingTask``."""

    def __init__(self, config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> None:
        share = BatchShard.of(config, rank=accelerator.process_index, processes=accelerator.num_processes)
        self.config = config
        self.job = GanContext(config, accelerator, share)
        self.stream = BatchStream(images, self.job.in_memory(images), config=config, share=share, device=self.job.device)
        self.players = build_state(self.job)
        self.evaluate: Evaluate | None = None
        self._last: dict[str, float] | None = None  # of the records, what `diagnose` goes on from; None: not looked up yet
        self.total = config.training.steps  # counts G updates: the one that a step ends with
        self.images_per_step = config.training.batch_size * config.training.d_steps

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(self.players, checkpoint)

    def snapshot(self, step: int) -> Checkpoint:
        return snapshot(self.players, step, self.config, self.stream.images.fingerprint)

    def step(self, number: int) -> Metrics:
        return train_step(self.players, self.stream, number, self.job)

    def learning_rates(self) -> dict[str, float]:
        players = self.players
        return {"d_lr": players.d_optimizer.param_groups[0]["lr"], "g_lr": players.g_optimizer.param_groups[0]["lr"]}

    def headline(self, values: dict[str, float]) -> str:
        return f"D {values['d_loss']:.3f}  G {values['g_loss']:.3f}"

    def looks(self, step: int) -> bool:
        return any(due(step, every, self.total) for every in (self.config.samples.every, self.config.evaluation.every))

    def look(self, step: int, tracker: Tracker | None, check: Callable[[], None]) -> None:
        if due(step, self.config.evaluation.every, self.total) and self.evaluate is not None:
            save_score(self.players, step, self.config, tracker, self.evaluate, check)
        if due(step, self.config.samples.every, self.total) and tracker is not None:
            samples = save_samples(self.players, step, self.config, tracker)
            self._look_for_collapse(step, samples, tracker)

    def _look_for_collapse(self, step: int, samples: Tensor, tracker: Tracker) -> None:
        images, least = self.stream.images, self.config.health.min_spread
        count = min(len(samples), len(images))
        if count < 2:
            return
        found = health.relative_spread(samples, (images[index] for index in range(count)))
        tracker.log(step, {"samples_spread": found})
        if found < least and step >= WARM_UP:
            _warn(
                f"step {step}: the generator has collapsed: its samples differ {found:.1%} as much as real images do"
                f" (health.min_spread={least:g}). Look at samples/; training may not recover from it.",
                step,
                tracker,
            )

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        config = self.config
        before = last_values(config.folder / METRICS, "d_chance_steps") if self._last is None else self._last
        steps = health.steps_at_chance(config.loss.name, values["d_loss"], step, before)
        limit = config.health.chance_steps
        if limit and before.get("d_chance_steps", 0) < limit <= steps:
            _warn(
                f"step {step}: for {steps} steps D has told real and fake images apart no better than by guessing"
                f" (its loss is {values['d_loss']:.3f}; health.chance_steps={limit}). It has stopped learning.",
                step,
                tracker,
            )
        self._last = {"step": step, "d_chance_steps": steps}
        return {"d_chance_steps": steps}

    def close(self) -> None:
        self.stream.close()


def _warn(text: str, step: int, tracker: Tracker) -> None:
    log.warning(f"{text}")
    tracker.message(step, text)


def save_samples(players: GanState, step: int, config: GanConfig, tracker: Tracker) -> Tensor:
    """The grid of the run's fixed noise as samples/step-*.png: of the averaged generator where there is one. Returns its
    images."""
    pieces = sampling.generate(
        players.average or players.generator,
        seed=config.samples.seed,
        count=config.samples.count,
        latent_dim=config.model.latent_dim,
    )
    images = torch.cat(list(pieces))
    pixels = grid(images)
    folder = config.folder / "samples"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"step-{step:08d}.png", encode(pixels))
    tracker.image(step, "samples", pixels)
    return images


def save_score(
    players: GanState, step: int, config: GanConfig, tracker: Tracker | None, evaluate: Evaluate, check: Callable[[], None]
) -> None:
    """Scores the averaged generator where there is one, and keeps it as best/ if no score of its kind was better."""
    network = players.average or players.generator
    score = evaluate(network, step, check)
    if tracker is None or score is None:
        return
    best = scores.best_distance(config.folder, score.record["series"])
    if best is None or score.distance < best:
        name = "generator" if players.average is None else "ema"
        checkpoints.replace_weights(config.folder / "best", step, {name: network.state_dict()}, to_yaml(config))
    # Later than the weights: a kill between the two scores this step again, and replaces them by the same.
    scores.append(config.folder, score.record)
    tracker.log(step, score.curves)
