"""The one list of a GAN's settings: frozen dataclasses with meaning and unit beside each, and what is required of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from gan.utils import settings
from gan.utils.settings import HealthConfig, Norm, Require, RunConfig, TrainingConfig, require_numbers, requirer

MIXING_NORMS = ("batch", "mean_spectral")  # an image's output depends on the other images of its batch
LIPSCHITZ_NORMS = ("spectral", "mean_spectral")  # bound the largest singular value of each layer's weight


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    channels: int = 64  # feature maps before the image; 8 times as many at the stem
    norm: Norm = "batch"


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    channels: int = 64  # feature maps of the first layer; 8 times as many in the last
    norm: Norm = "mean_spectral"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    latent_dim: int = 128  # z ~ N(0, I)
    init_std: float = 0.02  # initial weights ~ N(0, init_std^2), biases 0
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: Literal["wgan", "wgan-gp", "sngan", "hinge"] = "sngan"
    clip: float | None = None  # wgan: D's weights are clipped to [-clip, clip] after each update; null: not
    penalty: float = 10.0  # wgan-gp: weight of the gradient penalty


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adam", "rmsprop"] = "adam"
    d_lr: float = 2e-4  # learning rate of D
    g_lr: float = 2e-4  # learning rate of G
    beta1: float = 0.5  # adam: decay of the mean gradient
    beta2: float = 0.999  # adam: decay of the mean squared gradient; rmsprop: the same (often 0.99)
    decay: Literal["none", "linear"] = "none"  # linear: learning rates fall to 0 at training.steps


@dataclass(frozen=True, kw_only=True)
class GanTrainingConfig(TrainingConfig):
    steps: int = 100_000  # generator updates
    d_steps: int = 1  # D updates per G update
    d_batches: Literal["separate", "joint"] = "separate"  # real and fake through D apart, or as one batch; only
    # for norms that mix images are these different models
    accumulation: int = 1  # micro-batches that an update is computed in, to fit a large batch into memory; the fakes for
    # D still come from one pass of G, which keeps nothing for a backward pass
    compile: bool = False  # torch.compile for both networks: worth its minutes on a GPU; not for wgan-gp
    ema_decay: float = 0.999  # of the averaged generator, warmed up as (1 + n) / (10 + n); 0: keep none


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    every: int = 1000  # generator updates; 0: none
    count: int = 64  # images in a grid
    seed: int = 0  # of the noise that every grid shows


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every: int = 0  # generator updates between two scores of the generator; 0: off
    protocol: Literal["quick", "paper", "sngan", "standard"] = "quick"  # see eval/protocols.py
    extractor: Literal["inception", "inception-pytorch-fid", "efficientnet-lite0"] = "inception"  # see eval/extractors.py
    weights: str | None = None  # file with the extractor's weights; null: the published ones
    reference: str | None = None  # real images, as NAME[:SPLIT], folder, .zip or .npz; null: those that it trains on


@dataclass(frozen=True, kw_only=True)
class GanHealthConfig(HealthConfig):
    chance_steps: int = 2000  # in a row with D no better than guessing, as records tell, before a warning; 0: never
    min_spread: float = 0.05  # of a grid's samples against real images: below, a warning that G has collapsed; 0: never


@dataclass(frozen=True, kw_only=True)
class GanConfig(RunConfig):
    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        *RunConfig.CHANGEABLE, "training.steps", "samples.every", "evaluation.every", "evaluation.protocol",
        "evaluation.extractor", "evaluation.weights", "evaluation.reference", "health.chance_steps", "health.min_spread",
    )  # fmt: skip

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
        # With a decay, the learning rate of every step depends on their number.
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
        require_numbers(
            self,
            at_least_one=(
                "model.latent_dim", "model.generator.channels", "model.discriminator.channels", "training.steps",
                "training.d_steps", "training.accumulation", "samples.count",
            ),
            not_negative=(
                "samples.seed", "samples.every", "evaluation.every", "loss.penalty", "health.chance_steps", "health.min_spread",
            ),
            positive=("optimizer.d_lr", "optimizer.g_lr", "model.init_std"),
            below_one=("optimizer.beta1", "optimizer.beta2", "training.ema_decay"),
            at_most={
                "model.latent_dim": 2**16, "model.generator.channels": 2**13, "model.discriminator.channels": 2**13,
                "training.d_steps": 1000, "samples.count": 10_000,
            },
        )  # fmt: skip
        require(math.isfinite(self.loss.penalty), "loss.penalty", "must be a finite number.")
        _check_combinations(self, require)

    def warnings(self) -> list[str]:
        return _warnings(self)


def load_config(path: Path, overrides: Sequence[str] = ()) -> GanConfig:
    """A GAN's settings: see ``gan.utils.settings.load``."""
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
    require(clip is None or 0 < clip < float("inf"), "loss.clip", "must be positive, or null for no clipping.")
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
