"""All settings of a GAN, with their meaning, unit and range, and the combinations that are refused or warned about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeAlias

from gan.network_config import LIPSCHITZ_NORMS, ModelConfig, check_norms
from gan.utils import settings
from gan.utils.setting_fields import LARGEST, setting
from gan.utils.settings import CheckpointConfig, HealthConfig, Require, RunConfig, TrainingConfig, requirer

Extractor: TypeAlias = Literal[
    "inception", "inception-pytorch-fid", "efficientnet-lite0", "inception-bf16", "efficientnet-lite0-bf16"
]
QUARTER = 4  # joint_quarter: one of so many real images passes through D in G's update


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: Literal["wgan", "wgan-gp", "sngan", "hinge"] = setting("sngan", "loss of both networks")
    clip: float | None = setting(
        None,
        "wgan: clip D's weights to [-clip, clip] after each update; null: no clipping",
        above=0,
        at_most=LARGEST,
        null="no clipping",
    )
    penalty: float = setting(10.0, "wgan-gp: weight of the gradient penalty", at_least=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adam", "rmsprop"] = setting("adam", "optimizer of both networks")
    d_lr: float = setting(2e-4, "learning rate of D", above=0, at_most=LARGEST)
    g_lr: float = setting(2e-4, "learning rate of G", above=0, at_most=LARGEST)
    beta1: float = setting(0.5, "adam: decay of the mean gradient", at_least=0, below=1)
    beta2: float = setting(0.999, "adam: decay of the mean squared gradient; rmsprop: the same (often 0.99)", at_least=0, below=1)
    decay: Literal["none", "linear"] = setting("none", "linear: learning rates fall to 0 at training.steps")


@dataclass(frozen=True, kw_only=True)
class GanTrainingConfig(TrainingConfig):
    steps: int = setting(
        100_000, "generator updates; may not change on resume under optimizer.decay=linear", at_least=1, changeable=True
    )
    d_steps: int = setting(1, "D updates per G update", at_least=1, at_most=1000)
    d_batches: Literal["auto", "separate", "joint", "joint_quarter", "joint_d"] = setting(
        "auto",
        "real and fake images through D in two batches or in one (joint). joint_quarter: G's update passes only every fourth real"
        " image, with four times the weight in each mean. joint_d: it passes none. auto: joint_quarter for the forms of"
        " mean_spectral (joint where 4 does not divide the micro-batch, or beside batch norm), else separate. Different models"
        " only for norms that mix images",
        resolved=True,
    )
    # The fakes for D still come from one pass of G, which keeps nothing for a backward pass.
    accumulation: int = setting(1, "micro-batches in which an update is computed, to fit a large batch into memory", at_least=1)
    initial: str | None = setting(None, "run, checkpoint or export whose weights it starts with, as far as they fit", path=True)
    compile: bool = setting(
        False, "torch.compile both networks: takes minutes to start, its gain on GPUs is not measured; not for wgan-gp"
    )
    cuda_graph: bool = setting(False, "launch each training step as one CUDA graph; one process on a GPU, not for wgan-gp")
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
    protocol: Literal["auto", "watch", "quick", "paper", "sngan", "standard"] = setting(
        "auto", "protocol, see eval/protocols.py; auto: watch, or that of the run so far", changeable=True, resolved=True
    )
    extractor: Extractor = setting("inception", "feature extractor, see eval/extractors.py", changeable=True)
    weights: str | None = setting(None, "file with the extractor's weights; null: the published ones", path=True, changeable=True)
    reference: str | None = setting(
        None, "real images as NAME[:SPLIT], folder, .zip or .npz; null: the training images", path=True, changeable=True
    )
    reference_made_by: Extractor | None = setting(
        None, "extractor behind a .npz of another program, which does not name it; null: the file names it", changeable=True
    )


@dataclass(frozen=True, kw_only=True)
class GanCheckpointConfig(CheckpointConfig):
    milestones: int = setting(
        0,
        "generator updates between two copies of the generator (its average, if there is one) that are never removed; 0: none",
        at_least=0,
        changeable=True,
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
    checkpoint: GanCheckpointConfig = field(default_factory=GanCheckpointConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    health: GanHealthConfig = field(default_factory=GanHealthConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def mixes_images(self) -> bool:
        """Whether D's output for an image depends on the other images of its batch."""
        return self.model.discriminator.mixes_images

    @property
    def micro_batches(self) -> int:
        return self.training.accumulation

    @property
    def images_per_pass(self) -> int:
        # Which images joint_quarter takes must not depend on the number of processes.
        return QUARTER if self.resolve().training.d_batches == "joint_quarter" else 1

    def resolve(self) -> Self:
        norms, config = self.model.discriminator.norms, self
        if self.evaluation.protocol == "auto":
            config = settings.set_value(config, "evaluation.protocol", "watch")
        if self.training.d_batches != "auto":
            return config
        form = "separate"
        if any(norm.startswith("mean_") for norm in norms):
            whole = "batch" in norms or self.training.batch_size // self.training.accumulation % QUARTER
            form = "joint" if whole else "joint_quarter"
        return settings.set_value(config, "training.d_batches", form)

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
    for player, network in (("generator", config.model.generator), ("discriminator", config.model.discriminator)):
        check_norms(f"model.{player}", network, require)
        require(
            not network.mixes_images or batch // parts >= 2,
            "training.batch_size",
            f"model.{player}.norm={network.norm} takes a mean over the images of a batch, so it needs at least 2 of them"
            f" (here {batch // parts} in each of {parts}). Raise training.batch_size or choose spectral.",
        )
    require(
        config.training.d_batches != "joint_quarter" or "batch" not in config.model.discriminator.norms,
        "training.d_batches",
        "joint_quarter weights means, but model.discriminator.norm=batch takes variances too. Choose joint or separate.",
    )
    require(
        not config.training.compile or config.loss.name != "wgan-gp",
        "training.compile",
        "torch.compile has no second derivative, which the gradient penalty takes. Set training.compile=false or another loss.",
    )
    require(
        not config.training.cuda_graph or config.loss.name != "wgan-gp",
        "training.cuda_graph",
        "the gradient penalty is differentiated twice, which is not captured. Set training.cuda_graph=false or another loss.",
    )
    clip = config.loss.clip
    require(
        clip is None or config.loss.name == "wgan",
        "loss.clip",
        f"only wgan clips weights, not {config.loss.name}; set loss.clip=null.",
    )
    critic = config.model.discriminator
    unbounded = config.loss.name == "wgan" and clip is None
    require(
        not unbounded or set(critic.norms) <= set(LIPSCHITZ_NORMS),
        "loss.name",
        f"with {critic.describe_norms()} as norms of D nothing bounds the critic's slope; set loss.clip=0.01,"
        " loss.name=wgan-gp, or a spectral norm in each layer.",
    )
    require(
        not (unbounded and critic.gain),
        "model.discriminator.gain",
        "a learned gain leaves the critic's slope unbounded; set gain=false, loss.clip=0.01 or loss.name=wgan-gp.",
    )


def _warnings(config: GanConfig) -> list[str]:
    found = []
    norm, loss = config.model.discriminator.norm, config.loss
    if loss.name == "wgan-gp" and config.mixes_images:
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
    players = (("generator", config.model.generator), ("discriminator", config.model.discriminator))
    mixing = [f"model.{player}.norm={network.norm}" for player, network in players if network.mixes_images]
    if config.training.accumulation > 1 and mixing:
        found.append(
            f"training.accumulation={config.training.accumulation} with {' and '.join(mixing)}: statistics are those of"
            " each micro-batch, so the run differs from one with accumulation=1."
        )
    if config.training.d_batches.startswith("joint") and not config.mixes_images:
        found.append(f"training.d_batches={config.training.d_batches} changes nothing with model.discriminator.norm={norm}.")
    if config.data.crop_padding:
        found.append(f"data.crop_padding={config.data.crop_padding}: D's real images have black edges, which G learns to draw.")
    return found
