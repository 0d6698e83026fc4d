"""Settings that all runs share, and how settings are loaded, checked, compared and saved."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar

from omegaconf import OmegaConf

from gan.utils.errors import UserError
from gan.utils.safe_reading import read_file
from gan.utils.setting_fields import setting, walk
from gan.utils.yaml_settings import update_from_pair, update_from_text

MAX_BYTES = 2**16  # of a configuration file; one with all settings has 2,500
MAX_IMAGE_SIZE = 4096  # side of an image in pixels
# *_projected: the weight is overwritten by W / sigma(W) before each update, and no gradient passes through sigma.
Norm: TypeAlias = Literal["none", "batch", "spectral", "mean_spectral", "spectral_projected", "mean_spectral_projected"]
Require: TypeAlias = Callable[[bool, str, str], None]


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    dir: str = setting("runs", "folder that holds all runs", path=True, changeable=True)
    name: str = setting("unnamed", "name of the run's folder; default: the name of the configuration file", changeable=True)


# The upper limits below catch a mistyped number before it asks for all of a machine's memory or processes.
@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "folder"] = setting(
        "digits", "data set; folder: images of your own, at data.path"
    )
    path: str | None = setting(
        None,
        "folder: directory or .zip of the images; others: where the files are, or are downloaded to (null: data/NAME)",
        path=True,
        changeable=True,
    )
    split: Literal["train", "test"] = setting("train", "split of a named data set; folder and digits have only train")
    image_size: int = setting(
        32, "side of the images in pixels; a GAN needs a multiple of 8 from 32 up", at_least=1, at_most=MAX_IMAGE_SIZE
    )
    channels: int | None = setting(
        None, "1 grey, 3 colour; null: those of the data set (of a folder: 3 if any image has colour)", resolved=True
    )
    flip: bool = setting(False, "mirror each image left to right with probability 1/2")
    crop_padding: int = setting(
        0, "surround each image by this many black pixels and cut it out again at a random position; 0: off", at_least=0
    )
    memory_gb: float = setting(
        4.0, "images up to this size in GB are kept in memory as uint8; larger sets are streamed", at_least=0, changeable=True
    )
    workers: int = setting(
        2, "processes that decode images, when streaming or at the start", at_least=0, at_most=1024, changeable=True
    )
    accept_changes: bool = setting(
        False, "resume although the images have changed since; this start only, recorded in environment.json", changeable=True
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The part of ``training`` that all runs have."""

    batch_size: int = setting(
        64,
        "images per update, over all processes; of a GAN: real images per D update, and fakes per update",
        at_least=1,
        at_most=2**20,
    )
    precision: Literal["auto", "bf16", "fp32", "fp64"] = setting(
        "auto", "auto: bf16 where the hardware computes in it, else fp32; fp64 is for checks", resolved=True
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = setting(1000, "steps between two checkpoints (of a GAN: generator updates)", at_least=1, changeable=True)
    keep: int = setting(3, "number of newest checkpoints to keep", at_least=1, changeable=True)


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    max_grad_norm: float = setting(
        1e6, "stop when the L2 norm of a network's gradients exceeds this; 0: never", at_least=0, changeable=True
    )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    every: int = setting(50, "steps between two lines of metrics.jsonl", at_least=1, changeable=True)
    wandb: Literal["off", "offline", "online"] = setting("off", "copy of the metrics and samples at wandb", changeable=True)
    wandb_project: str = setting("msngan", "wandb project", changeable=True)
    tensorboard: bool = setting(False, "also write TensorBoard event files", changeable=True)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every run has, whatever it trains."""

    seed: int = setting(0, "seed of the initial weights, the order of the images and the noise", at_least=0)
    run: FolderConfig = field(default_factory=FolderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir) / self.run.name

    @property
    def micro_batches(self) -> int:
        """Number of parts in which each process computes its share of a batch."""
        return 1

    @property
    def images_per_pass(self) -> int:
        """Number of which the images in such a part of each process must be a multiple."""
        return 1

    def resolve(self) -> Self:
        """Return these settings with those filled in that depend on other settings."""
        return self

    def changeable(self) -> set[str]:
        """Return the keys that a continuation of this run may change."""
        return {key for key, about, _ in walk(self) if about.changeable}

    def check(self) -> None:
        """Raise UserError for a value out of range or an impossible combination."""
        require = requirer(self)
        for key, about, value in walk(self):
            require(not isinstance(value, str) or value.isprintable(), key, "must be readable, in one line.")
            require(not isinstance(value, str) or "${" not in value, key, "contains ${, which no configuration may.")
            if value is not None and (mistake := about.mistake(value)):
                require(False, key, mistake)
            require(not isinstance(value, int) or value < 2**63, key, "must be below 2^63.")
        _check_combinations(self, require)

    def warnings(self) -> list[str]:
        """Return one line for each combination that is allowed but doubtful, with the reason."""
        return []


C = TypeVar("C", bound=RunConfig)


def load(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Return the defaults of ``kind``, updated from the YAML file at ``path``, then from ``key=value`` pairs, and checked.

    Raises UserError for a file that cannot be read, an unknown key, a wrong type or an impossible combination.
    """
    try:
        text = read_file(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"configuration {path}: {reason}. Give a YAML file such as those in configs/.") from None
    try:
        config = update_from_text(kind(run=FolderConfig(name=path.stem)), text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for pair in overrides:
        try:
            config = update_from_pair(config, pair)
        except ValueError as error:
            said = str(error)
            raise UserError(said if said.startswith(pair.partition("=")[0]) else f"{pair!r}: {said}") from None
    config.check()
    return config


def loads(kind: type[RunConfig], path: Path) -> bool:
    """Return whether the file at ``path`` holds settings of ``kind``, and nothing else."""
    try:
        load(kind, path)
    except UserError:
        return False
    return True


def refuse_other_program(path: Path, other: type[RunConfig], command: str) -> None:
    """Raise UserError that names ``command`` where the file at ``path`` holds settings of its kind, ``other``."""
    if loads(other, path):
        raise UserError(f"{path}: settings of another program. Run it with: {command} --config {path}")


def flatten(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield pairs of dotted key and value."""
    return ((key, value) for key, _, value in walk(settings))


def set_value(config: C, key: str, value: Any) -> C:
    """Return a copy of ``config`` with one dotted key changed."""

    def change(section: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else change(getattr(section, names[0]), names[1:])
        return replace(section, **{names[0]: new})

    changed = change(config, key.split("."))
    assert isinstance(changed, type(config))
    return changed


def to_yaml(config: RunConfig) -> str:
    """Return all settings as YAML, from which ``load`` makes an equal object."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def keep_resolved(config: C, saved: C) -> C:
    """Return ``config`` with the settings that it leaves to the machine or the data as the run ``saved`` resolved them."""
    resolved, defaults = dict(flatten(saved)), dict(flatten(type(config)()))
    for key, about, value in walk(config):
        if about.resolved and value == defaults[key]:
            config = set_value(config, key, resolved[key])
    return config


def differences(config: C, saved: C) -> list[str]:
    """Return 'key: old -> new' for each setting because of which ``config`` cannot continue the run ``saved``."""
    old, changeable = dict(flatten(saved)), config.changeable()
    return [f"{key}: {old[key]} -> {value}" for key, value in flatten(config) if value != old[key] and key not in changeable]


def requirer(config: RunConfig) -> Require:
    """Return a function (condition, key, expected) that raises UserError about the setting ``key`` if the condition is false."""
    values = dict(flatten(config))

    def require(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise UserError(f"{key}={values[key]}: {expected}")

    return require


def _check_combinations(config: RunConfig, require: Require) -> None:
    name, data = config.run.name, config.data
    require(
        name not in ("", ".", "..") and not set(name) & set("/\\\0"),
        "run.name",
        "must be a folder's name, without a path (run.dir is the folder around it).",
    )
    require(data.channels in (None, 1, 3), "data.channels", "must be 1 (grey), 3 (colour) or null.")
    require(
        data.crop_padding < data.image_size,
        "data.crop_padding",
        f"must be below data.image_size={data.image_size}, or crops without any part of the image occur.",
    )
    require(
        data.split == "train" or data.name not in ("digits", "folder"),
        "data.split",
        f"{data.name} has no splits; leave data.split=train.",
    )
    require(
        data.name != "folder" or bool(data.path),
        "data.path",
        "data.name=folder needs data.path=FOLDER_OR_ZIP, a directory or a .zip of images.",
    )


def check_processes(config: RunConfig, processes: int) -> None:
    """Raise UserError when a batch cannot be shared evenly by ``processes``."""
    batch, parts, images = config.training.batch_size, config.micro_batches, config.images_per_pass
    if batch % (parts * processes * images):
        each = f" x training.accumulation={parts}" if hasattr(config.training, "accumulation") else ""
        each += f" x {images} for training.d_batches=joint_quarter, or choose joint" if images > 1 else ""
        raise UserError(
            f"training.batch_size={batch}: must be a multiple of {parts * processes * images}"
            f" ({processes} processes{each}), so that every process gets the same share."
        )
