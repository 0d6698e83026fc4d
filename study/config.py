"""All settings of a classifier run, with meaning and unit beside each, and their checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gan.utils import settings
from gan.utils.settings import DataConfig, Norm, RunConfig, TrainingConfig, require_numbers, requirer
from study.models import ModelName, Variant


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(DataConfig):
    test_path: str | None = None  # data.name=folder: directory or .zip of test images with the same classes
    held_out: float = 0.2  # share of the images kept for testing when there is no test set (digits; folder without test_path)
    train_images: int | None = None  # number of images to use, the same ones in every run; null: all
    test_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    name: ModelName = "cnn3"
    norm: Norm = "mean_spectral"
    variant: Variant = "full"  # densenet_bc: `published` keeps BatchNorm inside the dense layers, as the counts in the paper do


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    lr: float = 0.001  # learning rate
    beta1: float = 0.9  # decay of the mean gradient
    beta2: float = 0.999  # decay of the mean squared gradient


@dataclass(frozen=True, kw_only=True)
class StudyTrainingConfig(TrainingConfig):
    epochs: float = 10.0  # passes over the training images; the test images are classified after each


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    every: int = 100  # steps between two records in probes.jsonl; 0: off. Changes no weight.
    layers: list[int] | None = None  # numbers of the weighted layers, from 1; null: the paper's eight of DenseNet-BC, else all
    bins: int = 101  # of the gradient histograms


@dataclass(frozen=True, kw_only=True)
class StudyConfig(RunConfig):
    CHANGEABLE: ClassVar[tuple[str, ...]] = (*RunConfig.CHANGEABLE, "data.test_path", "training.epochs", "probes.every",
        "probes.layers", "probes.bins")  # fmt: skip

    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    training: StudyTrainingConfig = field(default_factory=StudyTrainingConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)

    def check(self) -> None:
        super().check()
        require = requirer(self)
        require_numbers(
            self,
            at_least_one=("data.image_size", "probes.bins"),
            not_negative=("probes.every",),
            positive=("optimizer.lr", "training.epochs"),
            below_one=("optimizer.beta1", "optimizer.beta2"),
            at_most={"training.epochs": 100_000, "probes.bins": 10_000},
        )
        require(0 < self.data.held_out < 1, "data.held_out", "must be above 0 and below 1.")
        require(self.data.split == "train", "data.split", "a classifier trains on the train split and is tested on the other.")
        for key, count in (("data.train_images", self.data.train_images), ("data.test_images", self.data.test_images)):
            require(count is None or count >= 1, key, "must be at least 1, or null for all.")
        require(
            self.data.test_path is None or self.data.name == "folder",
            "data.test_path",
            f"only for data.name=folder; {self.data.name} brings its own test images.",
        )
        require(
            self.model.norm not in ("batch", "mean_spectral") or self.training.batch_size >= 2,
            "training.batch_size",
            f"model.norm={self.model.norm} takes a mean over the images of a batch, so it needs at least 2 of them.",
        )
        require(
            self.model.variant == "full" or self.model.name == "densenet_bc",
            "model.variant",
            f"only densenet_bc has a published variant, not {self.model.name}; set model.variant=full.",
        )
        require(
            self.probes.layers is None or all(number >= 1 for number in self.probes.layers),
            "probes.layers",
            "layers are numbered from 1.",
        )
        require(
            self.probes.layers is None or len(set(self.probes.layers)) == len(self.probes.layers) > 0,
            "probes.layers",
            "name each layer once, or set probes.every=0 for none.",
        )


def load_study_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Return a classifier's settings, see ``gan.utils.settings.load``."""
    return settings.load(StudyConfig, path, overrides)
