"""Declare a setting once: its default, meaning, unit, range and whether it may change on resume, in a dataclass field."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

LARGEST = 1e38  # of a number that torch takes in float32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known about one setting besides its type and default. Bounds do not apply to null."""

    meaning: str  # with the unit, and what null and 0 mean
    at_least: float | None = None
    above: float | None = None  # exclusive, and the value must be finite
    below: float | None = None  # exclusive
    at_most: float | None = None
    null: str = ""  # what null stands for, where an error message should mention it
    path: bool = False  # a file or folder, where a leading ~ stands for the home folder
    changeable: bool = False  # may differ between a run and its continuation, because it changes no weight
    resolved: bool = False  # the default leaves the value to the machine or the data; a continuation keeps the run's value

    def range(self) -> str:
        """Return the bounds in words, such as "at least 0 and below 1"; "" where there are none."""
        if self.above == 0 and self.below is None:
            lowest = "a positive number"
        elif self.above is not None:
            lowest = f"above {self.above}"
        else:
            lowest = "" if self.at_least is None else f"at least {self.at_least}"
        highest = f"below {self.below}" if self.below is not None else ""
        highest = f"at most {self.at_most:,}" if self.at_most is not None else highest
        return " and ".join(part for part in (lowest, highest) if part)

    def mistake(self, value: Any) -> str | None:
        """Return what is expected where ``value`` is out of range, None where it is in range."""
        lower = replace(self, at_most=None)  # a value that is too small is not told about the upper limit
        at_least = self.at_least is None or value >= self.at_least
        above = self.above is None or self.above < value < float("inf")
        if not (at_least and above and (self.below is None or value < self.below)):
            text = "not be negative" if self.at_least == 0 and self.below is None else f"be {lower.range()}"
            return f"must {text}{f', or null for {self.null}' if self.null else ''}."
        if self.at_most is not None and value > self.at_most:
            return f"must be at most {self.at_most:,}."
        return None


def setting(default: Any, meaning: str, **details: Any) -> Any:
    """Return a dataclass field with ``default``; ``meaning`` and ``details`` are those of Setting."""
    return field(default=default, metadata={"setting": Setting(meaning=meaning, **details)})


def walk(settings: Any, prefix: str = "") -> Iterator[tuple[str, Setting, Any]]:
    """Yield the dotted key, Setting and value of each setting."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item.metadata["setting"], value


class SettingDescription(NamedTuple):
    """One row of a settings reference."""

    key: str
    type: str  # such as "int", "float or null", "none | batch"
    default: Any
    meaning: str
    range: str  # such as "at least 1"; "" where every value of the type is allowed
    changeable: bool  # may differ between a run and its continuation


def describe_settings(kind: type[Any]) -> list[SettingDescription]:
    """Return the description of each setting of ``kind``, in the order in which they are declared."""
    rows, defaults = [], kind()
    for key, about, default in walk(defaults):
        *sections, name = key.split(".")
        type_name = _type_name(get_type_hints(type(reduce(getattr, sections, defaults)))[name])
        rows.append(SettingDescription(key, type_name, default, about.meaning, about.range(), about.changeable))
    return rows


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {_type_name(*get_args(kind))}"
    inner = [part for part in get_args(kind) if part is not type(None)]
    return f"{_type_name(inner[0])} or null" if inner else str(kind.__name__)
