"""The task that trains a GAN: its steps, sample grids, scores and health warnings."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan.config import GanConfig
from gan.data.datasets import ImageDataset, load_images
from gan.data.stream import BatchStream
from gan.inference import sampling
from gan.inference.images import encode, grid
from gan.runs import checkpoints, scores
from gan.runs.checkpoints import Checkpoint
from gan.runs.initial_weights import describe, load_fitting, read_initial
from gan.runs.loggers import Tracker
from gan.runs.manifest import folder_of
from gan.runs.metrics import METRICS, last_values
from gan.runs.scores import Score
from gan.runs.status import WARM_UP
from gan.training import health
from gan.training.context import GanContext, Metrics
from gan.training.cuda_graph import step_function
from gan.training.gan_state import build_state, restore, snapshot
from gan.training.loop import due, run_training
from gan.training.memory_estimate import gan_bytes, require_memory, require_memory_for_samples
from gan.utils import keyed_random
from gan.utils.distributed import agree_on_errors, on_main, only_on_main
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.settings import to_yaml

log = logging.getLogger(__name__)
REAL_IMAGES = 256  # at most so many are read to learn how much real images differ


class GeneratorScorer(Protocol):
    """Scores a generator while it trains. ``train`` is handed one, since nothing in ``gan`` imports ``eval``."""

    def score(self, network: nn.Module, step: int, check_stop: Callable[[], None]) -> Score | None:
        """Return the score of ``network`` after ``step`` steps on the main process, None on the others.

        All processes call it together. ``check_stop`` is called now and then; it raises where the run is to stop.
        """


OpenScorer = Callable[[GanConfig, ImageDataset, Accelerator], GeneratorScorer]


def train(config: GanConfig, accelerator: Accelerator, open_scorer: OpenScorer | None = None) -> int:
    """Train a GAN for ``config.training.steps`` steps, from the newest checkpoint of the run in ``config.folder``.

    ``open_scorer`` is needed where ``config.evaluation.every`` is not 0. Returns and raises as ``run_training``.
    """

    def make_task(config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> GanTask:
        task = GanTask(config, images, accelerator)
        if config.evaluation.every:
            assert open_scorer is not None
            task.scorer = open_scorer(config, images, accelerator)
        return task

    return run_training(config, accelerator, lambda: load_images(config.data), lambda config, _: config.training.steps, make_task)


class GanTask:
    """A GAN in training; implements ``gan.training.loop.TrainingTask``."""

    def __init__(self, config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> None:
        self.config, self.images = config, images
        self.context = GanContext.of(config, accelerator)
        shard, device = self.context.shard, self.context.device
        with agree_on_errors(accelerator):
            require_memory(config, gan_bytes(config, shard.local_size), device)
            require_memory_for_samples(config, device)
        self.stream = BatchStream(images, self.context.cache_pixels(images), config=config, shard=shard, device=device)
        self.state = build_state(self.context)
        self._take_step = step_function(self.state, self.stream, self.context)
        self.scorer: GeneratorScorer | None = None
        self.images_per_step = config.training.batch_size * config.training.d_steps
        self._last_health: dict[str, float] | None = None  # of the last record; None: not read yet
        self._real_spread = only_on_main(accelerator, self._spread_of_real_images)

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(self.state, checkpoint)

    def begin(self) -> dict[str, Any] | None:
        path, accelerator = self.config.training.initial, self.context.accelerator
        if path is None:
            return None
        initial = on_main(accelerator, lambda: read_initial(path))  # other machines may not see it
        state = self.state
        networks = {"generator": state.generator, "discriminator": state.discriminator, "ema": state.generator_ema}
        with agree_on_errors(accelerator):
            record = load_fitting({name: network for name, network in networks.items() if network is not None}, initial)
        if accelerator.is_main_process:
            log.info(describe(record))
        return record

    def snapshot(self, step: int) -> Checkpoint:
        return snapshot(self.state, step, self.config, self.images.fingerprint)

    def prepare(self, number: int, stopping: Callable[[], bool]) -> None:
        updates = self.config.training.d_steps
        self.stream.prepare(range(number * updates, (number + 1) * updates), stopping)

    def step(self, number: int) -> Metrics:
        try:
            return self._take_step(number)
        except RuntimeError as error:
            if self.config.training.compile and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise UserError(
                    f"training.compile=true: torch cannot compile here ({reason}). Set training.compile=false."
                ) from None
            raise

    def learning_rates(self) -> dict[str, float]:
        state = self.state
        optimizers = {"d_lr": state.d_optimizer, "g_lr": state.g_optimizer}
        return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in optimizers.items()}

    def headline(self, values: dict[str, float]) -> str:
        return f"D {values['d_loss']:.3f}  G {values['g_loss']:.3f}"

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        config = self.config
        before = last_values(config.folder / METRICS, "d_chance_steps") if self._last_health is None else self._last_health
        steps = health.steps_at_chance(config.loss.name, values["d_loss"], step, before)
        limit = config.health.chance_steps
        if limit and before.get("d_chance_steps", 0) < limit <= steps:
            _warn(
                f"step {step}: for {steps} steps D has told real and fake images apart no better than by guessing"
                f" (its loss is {values['d_loss']:.3f}; health.chance_steps={limit}). It has stopped learning.",
                step,
                tracker,
            )
        self._last_health = {"step": step, "d_chance_steps": steps}
        return {"d_chance_steps": steps}

    def should_evaluate(self, step: int) -> bool:
        return self._samples_due(step) or self._score_due(step) or self._milestone_due(step)

    def _samples_due(self, step: int) -> bool:
        return due(step, self.config.samples.every, self.config.training.steps)

    def _score_due(self, step: int) -> bool:
        return due(step, self.config.evaluation.every, self.config.training.steps)

    def _milestone_due(self, step: int) -> bool:
        return step > 0 and due(step, self.config.checkpoint.milestones, self.config.training.steps)

    def evaluate(self, step: int, tracker: Tracker | None, check_stop: Callable[[], None]) -> None:
        if self._score_due(step) and self.scorer is not None:
            score = self.scorer.score(self.state.best_generator, step, check_stop)
            if tracker is not None and score is not None:
                self._save_score(score, step, tracker)
        if self._samples_due(step) and tracker is not None:
            self._warn_of_collapse(self._save_samples(step, tracker), step, tracker)
        if self._milestone_due(step) and tracker is not None:
            self._save_generator(folder_of(self.config.folder / checkpoints.MILESTONES, step), step)

    def _save_generator(self, folder: Path, step: int) -> None:
        """Replace ``folder`` by the generator alone, ready for ``load_generator``."""
        name = "generator" if self.state.generator_ema is None else "ema"
        checkpoints.replace_weights(folder, step, {name: self.state.best_generator.state_dict()}, to_yaml(self.config))

    def _save_score(self, score: Score, step: int, tracker: Tracker) -> None:
        """Record ``score``, and keep the generator as best/ if no earlier score of its kind was better."""
        folder = self.config.folder
        best = scores.best_distance(folder, score.record["series"])
        if best is None or score.distance < best:
            self._save_generator(folder / "best", step)
        # After the weights: a run killed between the two scores this step again and replaces them by the same weights.
        scores.append(folder, score.record)
        tracker.log(step, score.curves)

    def _save_samples(self, step: int, tracker: Tracker) -> Tensor:
        """Write the grid of the run's fixed noise as samples/step-*.png. Return its images, (N, C, H, W) uint8."""
        settings, latent_dim = self.config.samples, self.config.model.latent_dim
        pieces = sampling.generate(self.state.best_generator, seed=settings.seed, count=settings.count, latent_dim=latent_dim)
        images = torch.cat(list(pieces))
        pixels = grid(images)
        folder = self.config.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{step:08d}.png", encode(pixels))
        tracker.image(step, "samples", pixels)
        return images

    def _warn_of_collapse(self, samples: Tensor, step: int, tracker: Tracker) -> None:
        """Record how much ``samples`` differ, relative to real images, and warn where they are nearly equal."""
        least = self.config.health.min_spread
        if self._real_spread is None:
            return
        found = health.relative_spread(samples, self._real_spread)
        tracker.log(step, {"samples_spread": found})
        if found < least and step >= WARM_UP:
            _warn(
                f"step {step}: the generator has collapsed: its samples differ {found:.1%} as much as real images do"
                f" (health.min_spread={least:g}). See samples/; training may not recover from it.",
                step,
                tracker,
            )

    def _spread_of_real_images(self) -> float | None:
        """Return the spread of as many real images as a grid has samples, at most REAL_IMAGES; None where there are too few.

        One is drawn of each of so many equal parts of the set, since the images of a class may follow each other.
        """
        count, total = min(self.config.samples.count, REAL_IMAGES), len(self.images)
        if not self.config.samples.every or min(count, total) < 2:
            return None
        within = keyed_random.uniform(0, "real images beside samples", 0, count)[:, 0]
        chosen = {min(total - 1, int((part + offset) * total / count)) for part, offset in enumerate(within)}
        return health.spread(torch.stack([self.images[index] for index in sorted(chosen)]))

    def close(self) -> None:
        self.stream.close()


def _warn(text: str, step: int, tracker: Tracker) -> None:
    log.warning(text)
    tracker.message(step, text)
