"""All settings of a classifier, with their meaning, unit and range, and the combinations that are refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from gan.config import GanConfig
from gan.utils import settings
from gan.utils.errors import UserError
from gan.utils.setting_fields import LARGEST, setting
from gan.utils.settings import DataConfig, Norm, RunConfig, TrainingConfig, requirer

ModelName: TypeAlias = Literal["cnn3", "vgg7", "densenet_bc"]
Variant: TypeAlias = Literal["full", "published", "released"]
NORM_NAMES = {
    "none": "none", "batch": "BN", "spectral": "SN", "mean_spectral": "MSN",
    "spectral_projected": "SN, projected", "mean_spectral_projected": "MSN, projected",
}  # fmt: skip
NORMS = ("batch", "spectral", "mean_spectral")  # those of the paper
MODEL_NAMES = {  # in the order of the paper's tables
    "cnn3": "3-layer CNN",
    "vgg7": "VGG-7",
    "densenet_bc": "DenseNet-BC",
    "densenet_bc, published": "DenseNet-BC (BN inside the dense layers)",
    "cnn3, released": "3-layer CNN (as released)",
    "vgg7, released": "VGG-7 (as released)",
    "densenet_bc, released": "DenseNet-BC (as released)",
}


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(DataConfig):
    test_path: str | None = setting(
        None, "folder: directory or .zip of the test images, of the same classes", path=True, changeable=True
    )
    held_out: float = setting(
        0.2, "share of the images kept for testing where there are no others (digits; folder without test_path)",
        above=0, below=1,
    )  # fmt: skip
    train_images: int | None = setting(
        None, "train on this many images, drawn once and the same for every run; null: all", at_least=1, null="all"
    )
    mean: list[float] | None = setting(
        None, "subtract this from pixels of 0 to 1, one number or one per channel, then divide by std; null: scale to [-1, 1]"
    )
    std: list[float] | None = setting(None, "divide by this, one number or one per channel; given with mean")
    test_images: int | None = setting(None, "test on this many images; null: all", at_least=1, null="all")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    name: ModelName = setting("cnn3", "architecture")
    norm: Norm = setting("mean_spectral", "norm of each layer")
    variant: Variant = setting(
        "full",
        "densenet_bc: published keeps BatchNorm inside the dense layers, as the paper's parameter counts do."
        " released: the details of the authors' code (activations, dropout, last layer), see docs/study.md",
    )
    gain: bool = setting(
        False, "MSN: multiply the centred output of each channel by a learned factor, as the paper's released code does"
    )


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    lr: float = setting(0.001, "learning rate", above=0, at_most=LARGEST)
    beta1: float = setting(0.9, "decay of the mean gradient", at_least=0, below=1)
    beta2: float = setting(0.999, "decay of the mean squared gradient", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class StudyTrainingConfig(TrainingConfig):
    epochs: float = setting(
        10.0, "passes over the training images; the test images are classified after each", above=0, at_most=100_000,
        changeable=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    every: int = setting(100, "steps between two records in probes.jsonl; 0: off", at_least=0, changeable=True)
    layers: list[int] | None = setting(
        None, "numbers of the weighted layers, from 1; null: the paper's eight of DenseNet-BC, else all", changeable=True
    )
    bins: int = setting(101, "bins of the gradient histograms", at_least=1, at_most=10_000, changeable=True)


@dataclass(frozen=True, kw_only=True)
class StudyConfig(RunConfig):
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    training: StudyTrainingConfig = field(default_factory=StudyTrainingConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)

    def check(self) -> None:
        super().check()
        require = requirer(self)
        require(self.data.split == "train", "data.split", "a classifier trains on the train split and is tested on the other.")
        mean, std = self.data.mean, self.data.std
        require((mean is None) == (std is None), "data.std", f"data.mean={mean} and data.std are given together, or neither.")
        require(
            mean is None or std is None or (len(mean) == len(std) in (1, 3) and all(map(math.isfinite, mean))),
            "data.mean",
            f"give one number or one for each of 3 channels, as many as in data.std={std}.",
        )
        require(std is None or all(0 < value < math.inf for value in std), "data.std", "each number must be positive and finite.")
        require(
            self.data.test_path is None or self.data.name == "folder",
            "data.test_path",
            f"only for data.name=folder; {self.data.name} brings its own test images.",
        )
        require(
            self.model.norm not in ("batch", "mean_spectral", "mean_spectral_projected") or self.training.batch_size >= 2,
            "training.batch_size",
            f"model.norm={self.model.norm} takes a mean over the images of a batch, so it needs at least 2 of them.",
        )
        require(
            self.model.variant != "published" or self.model.name == "densenet_bc",
            "model.variant",
            f"only densenet_bc has a published variant, not {self.model.name}; set model.variant=full.",
        )
        require(
            self.probes.layers is None or len(set(self.probes.layers)) == len(self.probes.layers) > 0,
            "probes.layers",
            "name each layer once, or set probes.every=0 for none.",
        )


def load_study_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Return a classifier's settings, see ``gan.utils.settings.load``."""
    try:
        return settings.load(StudyConfig, path, overrides)
    except UserError:
        if not settings.loads(StudyConfig, path):
            settings.refuse_other_program(path, GanConfig, "python train.py")
        raise
