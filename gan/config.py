"""All settings of a GAN, with their meaning, unit and range, and the combinations that are refused or warned about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gan.utils import settings
from gan.utils.setting_fields import setting
from gan.utils.settings import HealthConfig, Norm, Require, RunConfig, TrainingConfig, requirer

MIXING_NORMS = ("batch", "mean_spectral")  # an image's output depends on the other images of its batch
LIPSCHITZ_NORMS = ("spectral", "mean_spectral")  # bound the largest singular value of each layer's weight


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    channels: int = setting(64, "feature maps before the image; 8 times as many at the first layer", at_least=1, at_most=2**13)
    norm: Norm = setting("batch", "norm of each hidden layer")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    channels: int = setting(64, "feature maps of the first layer; 8 times as many in the last", at_least=1, at_most=2**13)
    norm: Norm = setting("mean_spectral", "norm of each layer")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    latent_dim: int = setting(128, "dimension of the noise z ~ N(0, I)", at_least=1, at_most=2**16)
    init_std: float = setting(0.02, "initial weights ~ N(0, init_std^2), biases 0", above=0)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: Literal["wgan", "wgan-gp", "sngan", "hinge"] = setting("sngan", "loss of both networks")
    clip: float | None = setting(
        None, "wgan: clip D's weights to [-clip, clip] after each update; null: no clipping", above=0, null="no clipping"
    )
    penalty: float = setting(10.0, "wgan-gp: weight of the gradient penalty", at_least=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adam", "rmsprop"] = setting("adam", "optimizer of both networks")
    d_lr: float = setting(2e-4, "learning rate of D", above=0)
    g_lr: float = setting(2e-4, "learning rate of G", above=0)
    beta1: float = setting(0.5, "adam: decay of the mean gradient", at_least=0, below=1)
    beta2: float = setting(0.999, "adam: decay of the mean squared gradient; rmsprop: the same (often 0.99)", at_least=0, below=1)
    decay: Literal["none", "linear"] = setting("none", "linear: learning rates fall to 0 at training.steps")


@dataclass(frozen=True, kw_only=True)
class GanTrainingConfig(TrainingConfig):
    steps: int = setting(
        100_000, "generator updates; may not change on resume under optimizer.decay=linear", at_least=1, changeable=True
    )
    d_steps: int = setting(1, "D updates per G update", at_least=1, at_most=1000)
    d_batches: Literal["separate", "joint"] = setting(
        "separate",
        "real and fake images through D in two batches or in one; a different model only for norms that mix images",
    )
    # The fakes for D still come from one pass of G, which keeps nothing for a backward pass.
    accumulation: int = setting(1, "micro-batches in which an update is computed, to fit a large batch into memory", at_least=1)
    compile: bool = setting(False, "torch.compile both networks: worth its minutes on a GPU; not for wgan-gp")
    ema_decay: float = setting(
        0.999, "decay of the averaged generator, warmed up as (1 + n) / (10 + n); 0: keep none", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    every: int = setting(1000, "generator updates between two sample grids; 0: none", at_least=0, changeable=True)
    count: int = setting(64, "images in a grid", at_least=1, at_most=10_000)
    seed: int = setting(0, "seed of the noise that all grids share", at_least=0)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every: int = setting(0, "generator updates between two evaluations of the generator; 0: off", at_least=0, changeable=True)
    protocol: Literal["quick", "paper", "sngan", "standard"] = setting(
        "quick", "evaluation protocol, see eval/protocols.py", changeable=True
    )
    extractor: Literal["inception", "inception-pytorch-fid", "efficientnet-lite0"] = setting(
        "inception", "feature extractor, see eval/extractors.py", changeable=True
    )
    weights: str | None = setting(None, "file with the extractor's weights; null: the published ones", changeable=True)
    reference: str | None = setting(
        None, "real images as NAME[:SPLIT], folder, .zip or .npz; null: the training images", changeable=True
    )


@dataclass(frozen=True, kw_only=True)
class GanHealthConfig(HealthConfig):
    chance_steps: int = setting(
        2000, "warn after this many consecutive steps with D at chance; 0: never", at_least=0, changeable=True
    )
    min_spread: float = setting(
        0.05,
        "warn of mode collapse when the spread of a grid's samples, relative to real images, is below this; 0: never",
        at_least=0,
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class GanConfig(RunConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: GanTrainingConfig = field(default_factory=GanTrainingConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    health: GanHealthConfig = field(default_factory=GanHealthConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def mixes_images(self) -> bool:
        """Whether D's output for an image depends on the other images of its batch."""
        return self.model.discriminator.norm in MIXING_NORMS

    @property
    def micro_batches(self) -> int:
        return self.training.accumulation

    def changeable(self) -> set[str]:
        # Under a decay, the learning rate of every step depends on the number of steps.
        return super().changeable() - ({"training.steps"} if self.optimizer.decay == "linear" else set())

    def check(self) -> None:
        super().check()
        require = requirer(self)
        size = self.data.image_size
        require(
            size >= 32 and size % 8 == 0,
            "data.image_size",
            f"must be a multiple of 8 from 32 up (the generator doubles a grid three times). Try {max(32, (size + 4) // 8 * 8)}.",
        )
        require(math.isfinite(self.loss.penalty), "loss.penalty", "must be a finite number.")
        _check_combinations(self, require)

    def warnings(self) -> list[str]:
        return _warnings(self)


def load_config(path: Path, overrides: Sequence[str] = ()) -> GanConfig:
    """Return a GAN's settings from a YAML file and ``key=value`` pairs; see ``gan.utils.settings.load``."""
    return settings.load(GanConfig, path, overrides)


def _check_combinations(config: GanConfig, require: Require) -> None:
    batch, parts = config.training.batch_size, config.training.accumulation
    require(batch % parts == 0, "training.accumulation", f"must divide training.batch_size={batch}.")
    for player, norm in (("generator", config.model.generator.norm), ("discriminator", config.model.discriminator.norm)):
        require(
            norm not in MIXING_NORMS or batch // parts >= 2,
            "training.batch_size",
            f"model.{player}.norm={norm} takes a mean over the images of a batch, so it needs at least 2 of them"
            f" (here {batch // parts} in each of {parts}). Raise training.batch_size or choose spectral.",
        )
    require(
        not config.training.compile or config.loss.name != "wgan-gp",
        "training.compile",
        "torch.compile has no second derivative, which the gradient penalty takes. Set training.compile=false or another loss.",
    )
    clip = config.loss.clip
    require(
        clip is None or config.loss.name == "wgan",
        "loss.clip",
        f"only wgan clips weights, not {config.loss.name}; set loss.clip=null.",
    )
    require(
        config.loss.name != "wgan" or clip is not None or config.model.discriminator.norm in LIPSCHITZ_NORMS,
        "loss.name",
        f"with model.discriminator.norm={config.model.discriminator.norm} nothing bounds the critic's slope;"
        " set loss.clip=0.01, model.discriminator.norm=spectral or loss.name=wgan-gp.",
    )


def _warnings(config: GanConfig) -> list[str]:
    found = []
    norm, loss = config.model.discriminator.norm, config.loss
    if loss.name == "wgan-gp" and norm in MIXING_NORMS:
        found.append(
            f"the gradient penalty bounds each image's own gradient, but model.discriminator.norm={norm} mixes the images"
            " of a batch, so the penalty loses its meaning (Gulrajani et al. 2017, section 4). Kept for the paper's"
            " WGAN-GP (with BN) row; otherwise choose none or spectral."
        )
    if loss.clip is not None and norm in LIPSCHITZ_NORMS:
        found.append(
            f"model.discriminator.norm={norm} divides each weight by its largest singular value, so loss.clip={loss.clip}"
            " changes its shape but not its scale. One of the two is enough."
        )
    mixing = [
        f"model.{p}.norm={n}"
        for p, n in (("generator", config.model.generator.norm), ("discriminator", norm))
        if n in MIXING_NORMS
    ]
    if config.training.accumulation > 1 and mixing:
        found.append(
            f"training.accumulation={config.training.accumulation} with {' and '.join(mixing)}: statistics are those of"
            " each micro-batch, so the run differs from one with accumulation=1."
        )
    if config.training.d_batches == "joint" and not config.mixes_images:
        found.append(f"training.d_batches=joint changes nothing with model.discriminator.norm={norm}, which does not mix images.")
    return found
