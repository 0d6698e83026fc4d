"""The one list of settings: frozen dataclasses with meaning and unit beside each; load, check, compare and save them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gan.errors import UserError

Norm: TypeAlias = Literal["none", "batch", "spectral", "mean_spectral"]
MIXING_NORMS = ("batch", "mean_spectral")  # an image's output depends on the other images of its batch
LIPSCHITZ_NORMS = ("spectral", "mean_spectral")  # bound the largest singular value of each layer's weight


@dataclass(frozen=True, kw_only=True)
class Run:
    dir: str = "runs"  # the folder that holds all runs
    name: str = "unnamed"  # the run's own folder in it; where not set, the name of the configuration file


@dataclass(frozen=True, kw_only=True)
class Data:
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "folder"] = "digits"
    path: str | None = None  # folder: the images' directory or .zip; others: where files are or go (null: data/NAME)
    split: Literal["train", "test"] = "train"  # of the named data sets; `folder` and `digits` have only one
    image_size: int = 32  # side in pixels: a multiple of 8 from 32 up
    channels: int | None = None  # 1 grey, 3 colour; null: as the data set is (of a folder: as its first image is)
    flip: bool = False  # mirror each image left to right with probability 1/2
    memory_gb: float = 4.0  # images up to this size are held in memory as uint8, larger sets are streamed
    workers: int = 2  # processes that decode images while streaming


@dataclass(frozen=True, kw_only=True)
class Generator:
    channels: int = 64  # feature maps before the image; 8 times as many at the stem
    norm: Norm = "batch"


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    channels: int = 64  # feature maps of the first layer; 8 times as many in the last
    norm: Norm = "mean_spectral"


@dataclass(frozen=True, kw_only=True)
class Model:
    latent_dim: int = 128  # z ~ N(0, I)
    init_std: float = 0.02  # initial weights ~ N(0, init_std^2), biases 0
    generator: Generator = field(default_factory=Generator)
    discriminator: Discriminator = field(default_factory=Discriminator)


@dataclass(frozen=True, kw_only=True)
class Loss:
    name: Literal["wgan", "wgan-gp", "sngan", "hinge"] = "sngan"
    clip: float | None = None  # wgan: D's weights are clipped to [-clip, clip] after each update; null: not
    penalty: float = 10.0  # wgan-gp: weight of the gradient penalty


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    name: Literal["adam", "rmsprop"] = "adam"
    d_lr: float = 2e-4  # learning rate of D
    g_lr: float = 2e-4  # learning rate of G
    beta1: float = 0.5  # adam: decay of the mean gradient
    beta2: float = 0.999  # adam: decay of the mean squared gradient; rmsprop: the same (often 0.99)
    decay: Literal["none", "linear"] = "none"  # linear: learning rates fall to 0 at training.steps


@dataclass(frozen=True, kw_only=True)
class Training:
    steps: int = 100_000  # generator updates
    batch_size: int = 64  # real images per D update (and fakes per update), over all processes
    d_steps: int = 1  # D updates per G update
    d_batches: Literal["separate", "joint"] = "separate"  # real and fake through D apart, or as one batch; only
    # for norms that mix images are these different models
    accumulation: int = 1  # micro-batches that an update is computed in, to fit a large batch into memory; the fakes for
    # D still come from one pass of G, which keeps nothing for a backward pass
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"  # auto: bf16 where the hardware computes in it, else
    # fp32; fp64 is for checks
    compile: bool = False  # torch.compile for both networks: worth its minutes on a GPU; not for wgan-gp
    ema_decay: float = 0.999  # of the averaged generator, warmed up as (1 + n) / (10 + n); 0: keep none


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every: int = 1000  # generator updates
    keep: int = 3  # newest ones


@dataclass(frozen=True, kw_only=True)
class Samples:
    every: int = 1000  # generator updates; 0: none
    count: int = 64  # images in a grid
    seed: int = 0  # of the noise that every grid shows


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    every: int = 0  # generator updates between two scores of the generator; 0: off
    protocol: Literal["quick", "paper", "sngan", "standard"] = "quick"  # see eval/protocols.py
    extractor: Literal["inception", "inception-pytorch-fid", "efficientnet-lite0"] = "inception"  # see eval/extractors.py
    weights: str | None = None  # file with the extractor's weights; null: the published ones
    reference: str | None = None  # real images, as NAME[:SPLIT], folder, .zip or .npz; null: those that it trains on


@dataclass(frozen=True, kw_only=True)
class Tracking:
    every: int = 50  # generator updates between two lines of metrics.jsonl
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "msngan"
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0  # of the initial weights, the order of images and the noise
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    samples: Samples = field(default_factory=Samples)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir) / self.run.name

    @property
    def mixes_images(self) -> bool:
        """Whether D's output for an image depends on the other images of its batch."""
        return self.model.discriminator.norm in MIXING_NORMS


# What may differ between a run and its continuation: none of these changes a weight.
CHANGEABLE = (
    "run.dir", "run.name", "data.path", "data.memory_gb", "data.workers", "training.steps", "checkpoint.every",
    "checkpoint.keep", "samples.every", "evaluation.every", "evaluation.protocol", "evaluation.extractor", "evaluation.weights",
    "evaluation.reference", "tracking.every", "tracking.wandb", "tracking.wandb_project", "tracking.tensorboard",
)  # fmt: skip
# What `null` or `auto` leaves to the machine or the data: a continuation keeps what the run resolved it to.
RESOLVED = {"data.channels": None, "training.precision": "auto"}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The defaults, changed by the YAML file at ``path``, changed by ``key=value`` pairs; checked.

    Raises UserError for a file that cannot be read, an unknown key, a wrong type or an impossible combination.
    """
    settings = OmegaConf.structured(Config(run=Run(name=path.stem)))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"configuration {path}: {reason}. Give a YAML file such as configs/digits_msngan.yaml.") from None
    settings = _merge(settings, text, str(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: expected key=value, such as training.steps=300 (a file goes after --config).")
        settings = _merge(settings, override, override, dotted=True)
    try:
        config = OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    assert isinstance(config, Config)
    check(config)
    return config


def _merge(settings: Any, text: str, source: str, *, dotted: bool = False) -> Any:
    try:
        update = OmegaConf.from_dotlist([text]) if dotted else OmegaConf.create(text or "{}")
        return OmegaConf.merge(settings, update)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    """What OmegaConf or YAML says, without its internals; names the setting where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    if isinstance(error, yaml.YAMLError):
        return "not YAML: " + ", ".join(lines)
    message = lines[0] if lines else type(error).__name__
    for suffix in (f" not in '{name}'" for name in _section_names()):
        message = message.replace(suffix, " is not a setting")
    return f"{key}: {message}" if key and "is not a setting" not in message else message


def _section_names() -> list[str]:
    return [Config.__name__, *(type(getattr(Config(), f.name)).__name__ for f in fields(Config)), "Generator", "Discriminator"]


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def set_value(config: Config, key: str, value: Any) -> Config:
    """A copy of ``config`` with one dotted key changed."""

    def change(section: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else change(getattr(section, names[0]), names[1:])
        return replace(section, **{names[0]: new})

    changed = change(config, key.split("."))
    assert isinstance(changed, Config)
    return changed


def to_yaml(config: Config) -> str:
    """All settings as YAML, from which ``load_config`` makes an equal Config."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def keep_resolved(config: Config, saved: Config) -> Config:
    """``config`` with what it leaves open (RESOLVED) taken from the run that it continues."""
    requested, resolved = dict(flatten(config)), dict(flatten(saved))
    for key, left_open in RESOLVED.items():
        if requested[key] == left_open:
            config = set_value(config, key, resolved[key])
    return config


def differences(config: Config, saved: Config) -> list[str]:
    """One entry for each setting that forbids that ``config`` continues the run ``saved``: 'key: old -> new'."""
    old = dict(flatten(saved))
    changeable = set(CHANGEABLE)
    if config.optimizer.decay == "linear":
        changeable.discard("training.steps")  # the learning rate of every step depends on it
    return [f"{key}: {old[key]} -> {value}" for key, value in flatten(config) if value != old[key] and key not in changeable]


def check(config: Config) -> None:
    """Raises UserError for a value out of range or an impossible combination."""

    def require(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise UserError(f"{key}={dict(flatten(config))[key]}: {expected}")

    size = config.data.image_size
    require(
        size >= 32 and size % 8 == 0,
        "data.image_size",
        f"must be a multiple of 8 from 32 up (the generator doubles a grid three times). Try {max(32, round(size / 8) * 8)}.",
    )
    for key in (
        "model.latent_dim", "model.generator.channels", "model.discriminator.channels", "training.steps",
        "training.batch_size", "training.d_steps", "training.accumulation", "checkpoint.every", "checkpoint.keep",
        "samples.count", "tracking.every",
    ):  # fmt: skip
        require(dict(flatten(config))[key] >= 1, key, "must be at least 1.")
    for key in ("seed", "samples.seed", "samples.every", "evaluation.every", "data.workers", "data.memory_gb", "loss.penalty"):
        require(dict(flatten(config))[key] >= 0, key, "must not be negative.")
    for key in ("seed", "samples.seed"):
        require(dict(flatten(config))[key] < 2**63, key, "must be below 2^63.")
    for key in ("optimizer.d_lr", "optimizer.g_lr", "model.init_std"):
        require(0 < dict(flatten(config))[key] < float("inf"), key, "must be a positive number.")
    for key in ("optimizer.beta1", "optimizer.beta2", "training.ema_decay"):
        require(0 <= dict(flatten(config))[key] < 1, key, "must be at least 0 and below 1.")
    name = config.run.name
    require(
        name not in ("", ".", "..") and "/" not in name and "\\" not in name and "\0" not in name,
        "run.name",
        "must be a folder's name, without a path (run.dir is the folder around it).",
    )
    require(config.data.channels in (None, 1, 3), "data.channels", "must be 1 (grey), 3 (colour) or null.")
    require(
        config.data.split == "train" or config.data.name not in ("digits", "folder"),
        "data.split",
        f"{config.data.name} has no splits; leave data.split=train.",
    )
    require(
        config.data.name != "folder" or bool(config.data.path),
        "data.path",
        "data.name=folder needs data.path=FOLDER_OR_ZIP, a directory or a .zip of images.",
    )
    _check_combinations(config, require)


def _check_combinations(config: Config, require: Any) -> None:
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
    require(clip is None or clip > 0, "loss.clip", "must be positive, or null for no clipping.")
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


def check_processes(config: Config, processes: int) -> None:
    """Raises UserError when a batch cannot be shared evenly by ``processes``."""
    batch, parts = config.training.batch_size, config.training.accumulation
    if batch % (parts * processes):
        raise UserError(
            f"training.batch_size={batch}: must be a multiple of {parts * processes}"
            f" ({processes} processes x training.accumulation={parts}), so that every process gets the same share."
        )


def warnings(config: Config) -> list[str]:
    """What is allowed but doubtful, and why; one line each."""
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
