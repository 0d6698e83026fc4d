"""What fuzzing draws: values for every setting there is, read from the dataclasses themselves, and damages to files."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hypothesis import strategies as st

from gan.config import GanConfig
from gan.utils.settings import flatten
from study.config import StudyConfig

Kind = type[GanConfig] | type[StudyConfig]
Values = dict[str, Any]  # by dotted key

# What keeps a run within a second. Where a wild value would be allowed and last, the run is stopped by the test.
SMALL: Mapping[str, tuple[Any, ...]] = {
    "training.steps": (2,),
    "training.epochs": (0.5, 1.0, 2),
    "training.batch_size": (4, 8, 16),
    "training.accumulation": (1, 1, 1, 2),
    "training.d_steps": (1, 2, 3),
    "model.generator.channels": (1, 2, 4),
    "model.discriminator.channels": (1, 2, 4),
    "model.latent_dim": (1, 3, 8),
    "model.init_std": (0.02, 1e-30, 5.0),
    "model.name": ("cnn3", "vgg7"),  # DenseNet-BC takes seconds
    "data.name": ("digits", "folder", "folder", "folder"),  # the others would be downloaded
    "data.split": ("train",),  # the other's are of those that would be downloaded
    "data.image_size": (32, 40),
    "data.channels": (None, 1, 3),
    "data.memory_gb": (4.0, 0.0),
    "data.workers": (0, 1),
    "data.held_out": (0.2, 0.5),
    "data.train_images": (None, 1, 7),
    "data.test_images": (None, 1, 3),
    "samples.count": (1, 4),
    "probes.layers": (None, [1], [2, 1]),
    "probes.bins": (1, 11),
    "tracking.wandb": ("off",),  # others start processes, or ask for a network
    "optimizer.d_lr": (2e-4, 1e-30, 0.1),
    "optimizer.g_lr": (2e-4, 1e-30, 0.1),
    "optimizer.lr": (1e-3, 1e-30, 0.1),
}
HUGE = 10**30
# Numbers are tiny, negative or larger than any limit: what lies between costs gigabytes and is for a test of its own.
WILD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, HUGE, -HUGE, 0.0, -0.0, 0.5, -0.5, 1e-320, 1e30, 1e38, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "nan", ".nan", ".inf", "-.inf", "1e400", "1e30", "0x10", "0b1", "1_0",
    "010", "08", "1:30", "+1", "2.", "1.5", "~", "null", "yes", "off", "true", "???", "2024-01-01", "!!binary aGk=",
    "!!python/name:os.system", "${seed}", "${run.name}", "${run}", "${nothing}", "${oc.env:HOME}", "${", "$", "\\${seed}", "*a",
    "&a 1", "<<", "- 1", "[", "{", "}", "%", "@", "`", "#", ": ", "'", '"', "\\", "a b", "-a", "--help", "é", "日本",
    "\u202e", "\u2028", "\x85", "\x1b[2J", "\n", "a\nb", "\r", "\t", "\0", "\ufeff", "\ud800", "x" * 300, "é" * 200,
    "9" * 5000, [], [1], [[]], [None], ["a"], {}, {"a": 1}, {"name": "x"}, ["a", {"b": [1, {}]}],
)  # fmt: skip
# Neither a configuration nor images: devices without an end, folders, what no program may read.
PLACES = ("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/dev", ".", "..", "runs", "~", "~/x",
    "a/b", "none.zip", "none.npz", "none.pth", "-", "a" * 300, "a/" * 2000)  # fmt: skip
_PATHS = ("run.dir", "run.name", "data.path", "data.test_path", "evaluation.weights", "evaluation.reference")


def hints(kind: type, prefix: str = "") -> dict[str, Any]:
    """The type of each setting of ``kind``, by dotted key."""
    found: dict[str, Any] = {}
    types = get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(types[item.name]):
            found |= hints(types[item.name], f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = types[item.name]
    return found


def sections(kind: type) -> list[str]:
    """Dotted names of the sections of ``kind``."""
    folders = (Path(key.replace(".", "/")).parents for key in hints(kind))
    return sorted({str(folder).replace("/", ".") for parents in folders for folder in parents if folder.name})


def valid(key: str, hint: Any, default: Any) -> st.SearchStrategy[Any]:
    """Values of a setting that are allowed by themselves, and of which a run is short."""
    if key in SMALL:
        return st.sampled_from(SMALL[key])
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is bool:
        return st.booleans()
    if get_origin(hint) in (Union, UnionType):
        return st.just(default)
    return st.sampled_from([default, 1, 2] if hint is int else [default])


def wild(key: str) -> st.SearchStrategy[Any]:
    """Anything, for a setting or a section."""
    text = st.text(st.characters(exclude_characters="/~$"), max_size=12)  # of a path: it stays in its folder
    found = st.one_of(st.sampled_from(WILD), st.floats(-2, 2), st.integers(-9, 3), text)
    return st.one_of(found, st.sampled_from(PLACES)) if key in _PATHS else found


@st.composite
def settings_of(draw: st.DrawFn, kind: Kind, fixed: Mapping[str, Any]) -> tuple[Values, Values]:
    """Settings of ``kind`` that are allowed, ``fixed`` ones among them, and none to three that may be anything."""
    types, defaults = hints(kind), dict(flatten(kind()))
    keys = draw(st.lists(st.sampled_from(sorted(types)), unique=True, max_size=9))
    # All that decide how long a run takes are given, whatever is drawn.
    calm = {key: draw(valid(key, types[key], defaults[key])) for key in sorted({*keys, *SMALL} & types.keys())}
    calm |= {key: value for key, value in fixed.items() if key in types}
    if calm["data.name"] != "folder":
        calm = {key: value for key, value in calm.items() if key not in ("data.path", "data.test_path")}
    if calm.get("loss.name") == "wgan":
        calm.setdefault("loss.clip", 0.01)
    chosen = draw(st.lists(st.sampled_from([*sorted(types), *sections(kind)]), unique=True, max_size=3))
    return calm, {key: draw(wild(key)) for key in chosen}


def as_yaml(values: Values) -> str:
    """A configuration file's text. A value for a whole section comes in place of what was drawn inside it."""
    tree: dict[str, Any] = {}
    for key, value in sorted(values.items(), reverse=True):
        *outer, name = key.split(".")
        inner = tree
        for section in outer:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return str(yaml.safe_dump(tree))


def as_words(values: Values) -> list[str]:
    """The same as ``key=value`` words of a command line, where NUL cannot stand."""
    words = []
    for key, value in values.items():
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**9)
        words.append(f"{key}={text.removesuffix(chr(10)).removesuffix('...').rstrip(chr(10)).replace(chr(0), '')}")
    return words
