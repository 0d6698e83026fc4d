"""Training a classifier: its steps, its tests, its probes."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan.data.datasets import ImageDataset
from gan.data.stream import BatchShard, BatchStream
from gan.runs.checkpoints import Checkpoint
from gan.runs.folder import writing_to
from gan.runs.loggers import Tracker
from gan.training.context import Metrics, TrainContext
from gan.training.loop import run_training
from gan.utils.distributed import on_main
from gan.utils.errors import TrainingDivergedError, UserError
from gan.utils.settings import to_yaml
from study.config import StudyConfig
from study.data import LabelledDataset, training_images
from study.models import build_classifier, find_gradients, loss_of
from study.probes import Prober
from study.results import FAILED, note_failure

TEST_BATCH = 250  # images classified at a time: too few to matter for the result, which is of each image alone


def train(config: StudyConfig, accelerator: Accelerator) -> int:
    """Trains for ``config.training.epochs``, going on from the newest checkpoint. Returns and raises as ``run_training``.

    That its numbers were not finite is noted in its folder, until it is trained again.
    """

    def begin(config: StudyConfig, images: LabelledDataset, accelerator: Accelerator) -> ClassifierTask:
        on_main(accelerator, lambda: _forget_failure(config.folder))  # not before its folder is held and known to be one
        return ClassifierTask(config, images, accelerator)

    try:
        return run_training(config, accelerator, lambda: training_images(config.data), total_steps, begin)
    except TrainingDivergedError as error:
        if accelerator.is_main_process:
            note_failure(config.folder, str(error))
        raise


def _forget_failure(folder: Path) -> None:
    with writing_to(folder):
        (folder / FAILED).unlink(missing_ok=True)


def total_steps(config: StudyConfig, images: LabelledDataset) -> int:
    """Steps of the whole run."""
    return step_after(config.training.epochs, config, images)


def step_after(epochs: float, config: StudyConfig, images: LabelledDataset) -> int:
    """The first step after which ``epochs`` passes over the images are done."""
    return math.ceil(epochs * len(images) / config.training.batch_size)


class ClassifierTask:
    """One classifier at work; see ``gan.training.loop.TrainingTask``."""

    def __init__(self, config: StudyConfig, images: LabelledDataset, accelerator: Accelerator) -> None:
        share = BatchShard.of(config, rank=accelerator.process_index, processes=accelerator.num_processes)
        self.config, self.images = config, images
        self.job = TrainContext(config, accelerator, share)
        self.tested = images.tested
        self.test_pixels = self.job.cache_pixels(self.tested)
        self.stream = BatchStream(images, self.job.cache_pixels(images), config=config, share=share, device=self.job.device)
        self.network = self.job.to_device(build(config, images))
        settings = config.optimizer
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), settings.lr, betas=(settings.beta1, settings.beta2), fused=True
        )
        self.total = total_steps(config, images)
        self.images_per_step = config.training.batch_size
        self.epochs: dict[int, float] = {
            step_after(epoch, config, images): epoch for epoch in range(1, math.floor(config.training.epochs) + 1)
        }
        self.epochs[self.total] = config.training.epochs
        try:
            self.prober = Prober(self.network, config.probes, self.total)
        except ValueError as error:
            raise UserError(f"probes.layers={config.probes.layers}: {error}.") from None

    def restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.weights["classifier"])
        self.optimizer.load_state_dict(checkpoint.optimizers["classifier"])

    def snapshot(self, step: int) -> Checkpoint:
        weights, optimizers = {"classifier": self.network.state_dict()}, {"classifier": self.optimizer.state_dict()}
        return Checkpoint(step, weights, optimizers, to_yaml(self.config), self.images.fingerprint)

    def step(self, number: int) -> Metrics:
        if self.prober.due(number + 1):
            with self.prober.watching():
                return self._update(number)
        return self._update(number)

    def _update(self, number: int) -> Metrics:
        job = self.job
        images = self.stream.batch(number).to(job.dtype, memory_format=torch.channels_last)
        labels = self.stream.labels(number)
        loss, logits = find_gradients(self.network, images, labels, job.autocast())
        norm = job.average_gradients(self.network)
        self.optimizer.step()
        correct = (logits.argmax(1) == labels).to(job.dtype).mean()
        return {"loss": loss, "accuracy": correct, "grad_norm": norm}

    def learning_rates(self) -> dict[str, float]:
        return {"lr": self.config.optimizer.lr}

    def headline(self, values: dict[str, float]) -> str:
        return f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.1%}"

    def should_evaluate(self, step: int) -> bool:
        return step in self.epochs or self.prober.due(step)

    def evaluate(self, step: int, tracker: Tracker | None, check_stop: Callable[[], None]) -> None:
        # First, since only the process that took the step can: a run that was stopped in the test goes on with that alone.
        if self.prober.due(step) and self.prober.has_watched:
            records = self.prober.records(self.job.accelerator)
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
        """Mean loss and share of correct answers on the test images, each process taking its part of them.

        Calls ``check_stop`` before each turn of them.
        """
        job, count = self.job, len(self.tested)
        labels = torch.from_numpy(self.tested.labels.numbers)
        sums = torch.zeros(2, dtype=torch.float64, device=job.device)
        self.network.eval()
        for turn in range(0, count, TEST_BATCH * job.accelerator.num_processes):
            check_stop()
            start = turn + job.shard.rank * TEST_BATCH
            chosen = range(start, min(start + TEST_BATCH, count))
            if not chosen:
                continue
            with job.autocast():
                logits = self.network(self._test_batch(chosen))
            logits, answers = logits.to(job.dtype), labels[chosen.start : chosen.stop].to(job.device)
            sums += torch.stack([loss_of(logits, answers) * len(chosen), (logits.argmax(1) == answers).sum()]).double()
        self.network.train()
        loss, correct = (job.accelerator.reduce(sums, "sum") / count).tolist()
        if not math.isfinite(loss):
            raise TrainingDivergedError("the loss on the test images is not finite. Try a lower learning rate or another norm.")
        return loss, correct

    def _test_batch(self, chosen: range) -> Tensor:
        if self.test_pixels is not None:
            pixels = self.test_pixels[chosen.start : chosen.stop]
        else:
            pixels = torch.stack([self.tested[index] for index in chosen]).to(self.job.device)
        return (pixels.float() / 127.5 - 1).to(self.job.dtype, memory_format=torch.channels_last)

    def close(self) -> None:
        self.stream.close()


def build(config: StudyConfig, images: ImageDataset) -> nn.Module:
    """The network that ``config`` describes, for ``images``. Raises UserError for images that are too small."""
    model = config.model
    try:
        return build_classifier(
            model.name,
            model.norm,
            variant=model.variant,
            channels=images.channels,
            size=images.size,
            classes=len(images.labels.classes),
            seed=config.seed,
        )
    except ValueError as error:
        raise UserError(f"data.image_size={images.size}: {error}.") from None
