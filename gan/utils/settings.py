"""What the settings of all runs have in common: their sections, and how they are loaded, checked, compared and saved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gan.utils.errors import UserError
from gan.utils.safe_reading import read_file

MAX_BYTES = 2**16  # of a configuration; a run's own, with all settings, has 2,500
_MAX_DEPTH = 20  # of its sections and lists
Norm: TypeAlias = Literal["none", "batch", "spectral", "mean_spectral"]
Require: TypeAlias = Callable[[bool, str, str], None]


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    dir: str = "runs"  # the folder that holds all runs
    name: str = "unnamed"  # the run's own folder in it; where not set, the name of the configuration file


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "folder"] = "digits"
    path: str | None = None  # folder: the images' directory or .zip; others: where files are or go (null: data/NAME)
    split: Literal["train", "test"] = "train"  # of the named data sets; `folder` and `digits` have only one
    image_size: int = 32  # side in pixels; a GAN needs a multiple of 8 from 32 up
    channels: int | None = None  # 1 grey, 3 colour; null: as the data set is (of a folder: as its first image is)
    flip: bool = False  # mirror each image left to right with probability 1/2
    memory_gb: float = 4.0  # images up to this size are held in memory as uint8, larger sets are streamed
    workers: int = 2  # processes that decode images: while streaming, and at the start where there are many


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The part of `training` that all runs have."""

    batch_size: int = 64  # images per update (of a GAN: real ones per D update, and fakes per update), over all processes
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"  # auto: bf16 where the hardware computes in it, else
    # fp32; fp64 is for checks


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 1000  # steps (of a GAN: generator updates)
    keep: int = 3  # newest ones


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    max_grad_norm: float = 1e6  # L2 norm of a network's gradients above which a run is stopped as exploding; 0: never


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    every: int = 50  # steps between two lines of metrics.jsonl
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "msngan"
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever it trains."""

    # What may differ between a run and its continuation: none of these changes a weight.
    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        "run.dir", "run.name", "data.path", "data.memory_gb", "data.workers", "checkpoint.every", "checkpoint.keep",
        "health.max_grad_norm", "tracking.every", "tracking.wandb", "tracking.wandb_project", "tracking.tensorboard",
    )  # fmt: skip
    # What `null` or `auto` leaves to the machine or the data: a continuation keeps what the run resolved it to.
    RESOLVED: ClassVar[Mapping[str, Any]] = {"data.channels": None, "training.precision": "auto"}

    seed: int = 0  # of the initial weights, the order of images and the noise
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
        """What each process's share of a batch is computed in."""
        return 1

    def changeable(self) -> set[str]:
        """Keys that a continuation of this run may change."""
        return set(self.CHANGEABLE)

    def check(self) -> None:
        """Raises UserError for a value out of range or an impossible combination."""
        check_common(self, requirer(self))

    def warnings(self) -> list[str]:
        """What is allowed but doubtful, and why; one line each."""
        return []


C = TypeVar("C", bound=RunConfig)


def load(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The defaults of a ``kind`` of run, changed by the YAML file at ``path``, changed by ``key=value`` pairs; checked.

    Raises UserError for a file that cannot be read, an unknown key, a wrong type or an impossible combination.
    """
    settings = OmegaConf.structured(kind(run=FolderConfig(name=path.stem)))
    try:
        text = read_file(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"configuration {path}: {reason}. Give a YAML file such as those in configs/.") from None
    sections = _section_names(kind())
    settings = _merge(settings, text, str(path), sections)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: expected key=value, such as seed=1 (a file goes after --config).")
        settings = _merge(settings, override, override, sections, dotted=True)
    try:
        config = OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error, sections)}") from None
    assert isinstance(config, kind)
    config.check()
    return config


def _merge(settings: Any, text: str, source: str, sections: set[str], *, dotted: bool = False) -> Any:
    try:
        _require_plain(text.partition("=")[2] if dotted else text)
        update = OmegaConf.from_dotlist([text]) if dotted else OmegaConf.create(text or "{}")
        if OmegaConf.select(update, "tracking.wandb") is False:  # YAML's reading of the word off
            update.tracking.wandb = "off"
        return OmegaConf.merge(settings, update)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_one_line(error, sections)}") from None


def _require_plain(text: str) -> None:
    """Raises ValueError for YAML that means more than it says: few bytes of anchors can stand for billions of values, and
    OmegaConf's ${...} for the environment's secrets, which a run would then write down."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"*{event.anchor}: anchors are not followed. Write the value itself.")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ValueError(f"{event.value[:80]}: ${{...}} is not looked up. Write the value itself.")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"{tag}: tags are not read. Write the value itself.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested {depth} deep, which no setting is.")


def _one_line(error: Exception, sections: set[str]) -> str:
    """What OmegaConf or YAML says, without its internals; names the setting where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    if isinstance(error, yaml.YAMLError):
        return "not YAML: " + ", ".join(lines)
    message = lines[0] if lines else type(error).__name__
    for suffix in (f" not in '{name}'" for name in sections):
        message = message.replace(suffix, " is not a setting")
    return f"{key}: {message}" if key and "is not a setting" not in message else message


def _section_names(settings: Any) -> set[str]:
    """Names of the classes of ``settings`` and all its sections, which OmegaConf puts into its messages."""
    inner = (getattr(settings, f.name) for f in fields(settings))
    return {type(settings).__name__}.union(*(_section_names(section) for section in inner if is_dataclass(section)))


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def set_value(config: C, key: str, value: Any) -> C:
    """A copy of ``config`` with one dotted key changed."""

    def change(section: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else change(getattr(section, names[0]), names[1:])
        return replace(section, **{names[0]: new})

    changed = change(config, key.split("."))
    assert isinstance(changed, type(config))
    return changed


def to_yaml(config: RunConfig) -> str:
    """All settings as YAML, from which ``load`` makes an equal object."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def keep_resolved(config: C, saved: C) -> C:
    """``config`` with what it leaves open (RESOLVED) taken from the run that it continues."""
    requested, resolved = dict(flatten(config)), dict(flatten(saved))
    for key, left_open in config.RESOLVED.items():
        if requested[key] == left_open:
            config = set_value(config, key, resolved[key])
    return config


def differences(config: C, saved: C) -> list[str]:
    """One entry for each setting that forbids that ``config`` continues the run ``saved``: 'key: old -> new'."""
    old, changeable = dict(flatten(saved)), config.changeable()
    return [f"{key}: {old[key]} -> {value}" for key, value in flatten(config) if value != old[key] and key not in changeable]


def requirer(config: RunConfig) -> Require:
    """A function (condition, key, what was expected) that raises UserError about the setting ``key`` where it does not hold."""
    values = dict(flatten(config))

    def require(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise UserError(f"{key}={values[key]}: {expected}")

    return require


def require_numbers(
    config: RunConfig, *, at_least_one: Sequence[str] = (), not_negative: Sequence[str] = (), positive: Sequence[str] = (),
    below_one: Sequence[str] = (), at_most: Mapping[str, int] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Raises UserError for a setting that is not in its range; ``below_one`` means at least 0 and below 1."""
    require, values = requirer(config), dict(flatten(config))
    for key in at_least_one:
        require(values[key] >= 1, key, "must be at least 1.")
    for key in not_negative:
        require(values[key] >= 0, key, "must not be negative.")
    for key in positive:
        require(0 < values[key] < float("inf"), key, "must be a positive number.")
    for key in below_one:
        require(0 <= values[key] < 1, key, "must be at least 0 and below 1.")
    for key, limit in at_most.items():
        require(values[key] <= limit, key, f"must be at most {limit:,}.")


def check_common(config: RunConfig, require: Require) -> None:
    """What is required of every run."""
    for key, value in flatten(config):
        require(not isinstance(value, str) or value.isprintable(), key, "must be readable, in one line.")
    require_numbers(
        config,
        at_least_one=("training.batch_size", "checkpoint.every", "checkpoint.keep", "tracking.every"),
        not_negative=("seed", "data.workers", "data.memory_gb", "health.max_grad_norm"),
        # Beyond these a mistyped number would ask for all of a machine's memory or processes, or for an image of terabytes.
        at_most={"training.batch_size": 2**20, "data.image_size": 4096, "data.workers": 1024},
    )
    for key, value in flatten(config):
        require(not isinstance(value, int) or value < 2**63, key, "must be below 2^63.")
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


def check_processes(config: RunConfig, processes: int) -> None:
    """Raises UserError when a batch cannot be shared evenly by ``processes``."""
    batch, parts = config.training.batch_size, config.micro_batches
    if batch % (parts * processes):
        each = f" x training.accumulation={parts}" if hasattr(config.training, "accumulation") else ""
        raise UserError(
            f"training.batch_size={batch}: must be a multiple of {parts * processes}"
            f" ({processes} processes{each}), so that every process gets the same share."
        )
