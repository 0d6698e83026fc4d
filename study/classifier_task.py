"""The task that trains a classifier: its steps, tests and probes."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gan.data.datasets import ImageDataset
from gan.data.stream import BatchStream
from gan.runs.checkpoints import Checkpoint
from gan.runs.lock import writing_to
from gan.runs.loggers import Tracker
from gan.training.context import Metrics, TrainContext
from gan.training.loop import run_training
from gan.training.memory_estimate import require_memory
from gan.utils.distributed import agree_on_errors, on_main
from gan.utils.errors import TrainingDivergedError, UserError
from gan.utils.settings import to_yaml
from study.config import StudyConfig
from study.data import LabelledDataset, normalised, require_channels, training_images
from study.dropout import dropping
from study.models import build_classifier, update_classifier
from study.probes import Prober
from study.results import FAILED, check_part, write_failure

TEST_BATCH = 250  # images in a forward pass of the test; in evaluation mode no norm mixes them, so the size changes no result

FEWEST_MAPS = 16  # of an image's own size that any network keeps for its backward pass, in 2 bytes or more a value


def train(config: StudyConfig, accelerator: Accelerator, task: "type[ClassifierTask] | None" = None) -> int:
    """Train a classifier for ``config.training.epochs`` epochs, from the newest checkpoint of the run in ``config.folder``.

    ``task`` is the class of its task, by default ClassifierTask. Returns and raises as ``run_training``. A run that diverges is
    marked by failed.json, until it is trained again.
    """

    def make_task(config: StudyConfig, images: LabelledDataset, accelerator: Accelerator) -> ClassifierTask:
        chosen = task or ClassifierTask
        on_main(accelerator, lambda: check_part(config.folder, chosen.part))
        on_main(accelerator, lambda: _forget_failure(config.folder))  # only now is the folder locked and known to be a run
        return chosen(config, images, accelerator)

    try:
        return run_training(config, accelerator, lambda: training_images(config.data), total_steps, make_task)
    except TrainingDivergedError as error:
        if accelerator.is_main_process:
            write_failure(config.folder, str(error))
        raise


def _forget_failure(folder: Path) -> None:
    with writing_to(folder):
        (folder / FAILED).unlink(missing_ok=True)


def total_steps(config: StudyConfig, images: LabelledDataset) -> int:
    """Return the number of steps of the whole run."""
    return step_after(config.training.epochs, config, images)


def step_after(epochs: float, config: StudyConfig, images: LabelledDataset) -> int:
    """Return the first step after which ``epochs`` passes over the images are complete."""
    return math.ceil(Fraction(str(epochs)) * len(images) / config.training.batch_size)  # 1.1 as it is written, not as a float


class ClassifierTask:
    """A classifier in training; implements ``gan.training.loop.TrainingTask``."""

    part = ""  # of the released SN, in the experiments of study.causes

    def __init__(self, config: StudyConfig, images: LabelledDataset, accelerator: Accelerator) -> None:
        self.config, self.images, self.tested = config, images, images.tested
        self.context = TrainContext.of(config, accelerator)
        shard, device = self.context.shard, self.context.device
        with agree_on_errors(accelerator):
            require_memory(config, shard.local_size * FEWEST_MAPS * config.data.image_size**2 * 2, device)
        self.test_pixels = self.context.cache_pixels(self.tested)
        self.stream = BatchStream(images, self.context.cache_pixels(images), config=config, shard=shard, device=device)
        with agree_on_errors(accelerator):
            network = build(config, images)
        self.network = self.context.to_device(network)
        adam = config.optimizer
        self.optimizer = torch.optim.Adam(self.network.parameters(), adam.lr, betas=(adam.beta1, adam.beta2), fused=True)
        self.images_per_step = config.training.batch_size
        last, whole_epochs = total_steps(config, images), range(1, math.floor(config.training.epochs) + 1)
        self.epochs: dict[int, float] = {step_after(epoch, config, images): epoch for epoch in whole_epochs}
        self.epochs[last] = config.training.epochs
        try:
            self.prober = Prober(self.network, config.probes, last)
        except ValueError as error:
            raise UserError(f"probes.layers={config.probes.layers}: {error}.") from None

    def restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.weights["classifier"])
        self.optimizer.load_state_dict(checkpoint.optimizers["classifier"])

    def begin(self) -> None:
        """Nothing: a classifier starts with random weights."""

    def snapshot(self, step: int) -> Checkpoint:
        weights, optimizers = {"classifier": self.network.state_dict()}, {"classifier": self.optimizer.state_dict()}
        return Checkpoint(step, weights, optimizers, to_yaml(self.config), self.images.fingerprint)

    def prepare(self, number: int, stopping: Callable[[], bool]) -> None:
        self.stream.prepare([number], stopping)

    def step(self, number: int) -> Metrics:
        context = self.context
        images = self._prepared(self.stream.batch(number))
        labels = self.stream.labels(number)
        masks = dropping(self.network, context.shard, seed=self.config.seed, step=number)
        with masks, self.prober.watching() if self.prober.due(number + 1) else nullcontext():
            return update_classifier(
                self.network, self.optimizer, images, labels, context.autocast(), average_gradients=context.average_gradients
            )

    def learning_rates(self) -> dict[str, float]:
        return {"lr": self.config.optimizer.lr}

    def headline(self, values: dict[str, float]) -> str:
        return f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.1%}"

    def should_evaluate(self, step: int) -> bool:
        return step in self.epochs or self.prober.due(step)

    def evaluate(self, step: int, tracker: Tracker | None, check_stop: Callable[[], None]) -> None:
        # Probes come before the test: only the process that took the step can record them, and a run that was stopped in
        # the test resumes with the test alone.
        if self.prober.due(step) and self.prober.has_watched:
            records = self.prober.records(self.context.accelerator)
            if tracker is not None:
                for record in records:
                    tracker.probe(step, record)
        if step in self.epochs:
            loss, accuracy = self._test(check_stop)
            if tracker is not None:
                tracker.log(step, {"epoch": self.epochs[step], "test_loss": loss, "test_accuracy": accuracy})

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def _test(self, check_stop: Callable[[], None]) -> tuple[float, float]:
        """Return the mean loss and the accuracy (0 to 1) on the test images, which the processes share.

        Calls ``check_stop`` before each batch. Raises TrainingDivergedError for a loss that is not finite.
        """
        context, count = self.context, len(self.tested)
        labels = torch.from_numpy(self.tested.labels.class_indices)
        sums = torch.zeros(2, dtype=torch.float64, device=context.device)  # of losses and of correct answers
        self.network.eval()
        for first in range(0, count, TEST_BATCH * context.accelerator.num_processes):
            check_stop()
            start = first + context.shard.rank * TEST_BATCH
            chosen = range(start, min(start + TEST_BATCH, count))
            # A streamed image may be damaged, and the process that reads it is not to end alone.
            with agree_on_errors(context.accelerator) if self.test_pixels is None else nullcontext():
                images = self._test_batch(chosen) if chosen else None
            if images is None:
                continue
            with context.autocast():
                logits = self.network(images)
            logits, answers = logits.to(context.dtype), labels[chosen.start : chosen.stop].to(context.device)
            sums += torch.stack([cross_entropy(logits, answers) * len(chosen), (logits.argmax(1) == answers).sum()]).double()
        self.network.train()
        loss, accuracy = (context.accelerator.reduce(sums, "sum") / count).tolist()
        if not math.isfinite(loss):
            raise TrainingDivergedError("the loss on the test images is not finite. Try a lower learning rate or another norm.")
        return loss, accuracy

    def _test_batch(self, chosen: range) -> Tensor:
        """Return the ``chosen`` test images as (B, C, S, S)."""
        if self.test_pixels is not None:
            pixels = self.test_pixels[chosen.start : chosen.stop]
        else:
            pixels = torch.stack([self.tested[index] for index in chosen]).to(self.context.device)
        return self._prepared(pixels.float() / 127.5 - 1)

    def _prepared(self, images: Tensor) -> Tensor:
        """Return ``images`` in [-1, 1] as the network takes them."""
        data = self.config.data
        return normalised(images, data.mean, data.std).to(self.context.dtype, memory_format=torch.channels_last)

    def close(self) -> None:
        self.stream.close()


def build(config: StudyConfig, images: ImageDataset) -> nn.Module:
    """Return the network that ``config`` describes, for ``images``.

    Raises UserError for images that are too small, or have another number of channels than ``data.mean``.
    """
    model = config.model
    require_channels(config.data.mean, images.channels)
    try:
        return build_classifier(
            model.name,
            model.norm,
            variant=model.variant,
            gain=model.gain,
            channels=images.channels,
            size=images.size,
            classes=len(images.labels.classes),
            seed=config.seed,
        )
    except ValueError as error:
        raise UserError(f"data.image_size={images.size}: {error}.") from None
