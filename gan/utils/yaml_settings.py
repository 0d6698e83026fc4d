"""Settings from YAML text and from ``key=value`` pairs: plain YAML only, and each value as its setting's type reads it.

YAML's own guesses are not taken, which turn 0001 into 1, 12e3 into a number, off into false and 12:30 into 750: a text is
what is written, quoted or not, and a number is a decimal number.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from gan.utils.errors import first_line
from gan.utils.files import expand_home
from gan.utils.setting_fields import Setting, walk

T = TypeVar("T")
_MAX_DEPTH = 20  # nested sections and lists
_MAX_DIGITS = 100  # of a whole number; Python reads at most 4,300
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")


def update_from_text(settings: T, text: str) -> T:
    """Return ``settings`` (a dataclass of sections) updated from the YAML ``text`` of a configuration file.

    Raises ValueError for text that is not plain YAML, an unknown key, a value of the wrong type, and another program's file.
    """
    root = _parse(text)
    if root is None or _is_null(root):
        return settings
    if not isinstance(root, MappingNode):
        raise ValueError(f"{_kind(root)}, where sections and settings are expected, such as training: {{batch_size: 64}}.")
    unknown = [".".join(path) for path in _unknown(settings, root)]
    if len(unknown) > max(1, _count(root) - len(unknown)):
        named = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        raise ValueError(f"the configuration of another program: most of its keys are no settings here ({named[:200]}).")
    return _updated(settings, root, "", settings)


def update_from_pair(settings: T, pair: str) -> T:
    """Return ``settings`` updated from one ``key=value`` pair with a dotted key. Raises ValueError as ``update_from_text``."""
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise ValueError("expected key=value, such as seed=1 (a file goes after --config).")
    *sections, name = key.split(".")
    path: list[Any] = [settings]
    for section in sections:
        inside = {item.name for item in fields(path[-1])} if is_dataclass(path[-1]) else ()
        path.append(getattr(path[-1], section) if section in inside else None)
    if not is_dataclass(path[-1]) or name not in {item.name for item in fields(path[-1])}:
        raise ValueError(_not_a_setting(key, settings))
    hint, inner = get_type_hints(type(path[-1]))[name], getattr(path[-1], name)
    if is_dataclass(inner) or any(get_origin(part) is list for part in (hint, *get_args(hint))):
        node = _parse(text) or ScalarNode("", "")
        if is_dataclass(inner) and not isinstance(node, MappingNode):
            settings_inside = ", ".join(f"{key}.{item.name}" for item in fields(inner))
            raise ValueError(f"{key}={text[:80]}: {key} is a section. Set one of {settings_inside}.")
    elif str in (hint, *get_args(hint)):  # here # and quotation marks have no meaning of their own
        node = ScalarNode("", text, style=None if text == "null" else "'")
    else:
        node = ScalarNode("", text.strip())
    value = _value(path[-1], name, node, key, settings)
    for section, name_inside in zip(reversed(path), reversed(key.split(".")), strict=True):
        value = replace(section, **{name_inside: value})
    changed: T = value
    return changed


def read_settings(text: str) -> dict[str, str]:
    """Return the settings in YAML ``text`` by dotted key, as written, of any kind of run: nothing is checked.

    Raises ValueError for text that is not plain YAML of settings.
    """
    root = _parse(text)
    if not isinstance(root, MappingNode):
        raise ValueError("not a configuration.")
    return dict(_texts(root, ""))


def _texts(mapping: MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
    for key, node in _entries(mapping):
        if isinstance(node, MappingNode):
            yield from _texts(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(node)


def _text(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return f"[{', '.join(map(_text, node.value))}]"
    return node.value if isinstance(node, ScalarNode) else "{...}"


def _parse(text: str) -> Node | None:
    """Return the root of plain YAML without anchors, tags and ${...}; None for an empty text. Raises ValueError for others.

    A few bytes of anchors can expand to billions of values, and programs that know ${...} read secrets from the environment
    with it, which a run would then write to its config.yaml.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"*{event.anchor}: anchors are not followed. Write the value itself.")
            if isinstance(event, yaml.ScalarEvent):
                _refuse_lookup(event.value)
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(f"{tag}: tags are not read. Write the value itself.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested {depth} deep, which no setting is.")
        root: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except OverflowError:
        raise ValueError("not YAML: a character beyond Unicode.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        words = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
        raise ValueError(f"not YAML{place}: {', '.join(words) or first_line(error)}.") from None
    return root


def _refuse_lookup(text: str) -> None:
    if "${" in text:
        raise ValueError(f"{text[:80]}: ${{...}} is not looked up. Write the value itself.")


def _entries(mapping: MappingNode) -> Iterator[tuple[str, Node]]:
    seen = set()
    for key, node in mapping.value:
        if not isinstance(key, ScalarNode):
            raise ValueError(f"{_kind(key)} in place of a setting's name.")
        if key.value in seen:
            raise ValueError(f"{key.value} is given twice. Give it once.")
        seen.add(key.value)
        yield key.value, node


def _unknown(settings: Any, mapping: MappingNode) -> Iterator[tuple[str, ...]]:
    """Yield the path of each key that is no setting."""
    names = {item.name for item in fields(settings)}
    for key, node in _entries(mapping):
        if key not in names:
            yield (key,)
        elif is_dataclass(inner := getattr(settings, key)) and isinstance(node, MappingNode):
            yield from ((key, *rest) for rest in _unknown(inner, node))


def _count(mapping: MappingNode) -> int:
    return sum(_count(node) if isinstance(node, MappingNode) else 1 for _, node in mapping.value)


def _updated(section: T, mapping: MappingNode, prefix: str, root: Any) -> T:
    names = {item.name for item in fields(section)}  # type: ignore[arg-type]
    values = {}
    for key, node in _entries(mapping):
        if key not in names:
            raise ValueError(_not_a_setting(f"{prefix}{key}", root))
        values[key] = _value(section, key, node, f"{prefix}{key}", root)
    return replace(section, **values)  # type: ignore[type-var]


def _value(section: Any, name: str, node: Node, key: str, root: Any) -> Any:
    """Return what ``node`` means for the field ``name`` of ``section``, whose dotted key is ``key``."""
    old = getattr(section, name)
    if is_dataclass(old):
        if _is_null(node):  # a section whose lines are all commented out
            return old
        if not isinstance(node, MappingNode):
            raise ValueError(f"{key}: {_kind(node)}, where a section of settings is expected ({key}: {{...}}).")
        return _updated(old, node, f"{key}.", root)
    about = next(item.metadata["setting"] for item in fields(section) if item.name == name)
    return _converted(key, get_type_hints(type(section))[name], node, about)


def _converted(key: str, hint: Any, node: Node, about: Setting) -> Any:
    if type(None) in get_args(hint):
        if _is_null(node):
            return None
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is list:
        if not isinstance(node, SequenceNode):
            raise ValueError(f"{key}: {_kind(node)}, where a list is expected, such as {key}=[1,2].")
        (inner,) = get_args(hint)
        return [_converted(key, inner, item, about) for item in node.value]
    if not isinstance(node, ScalarNode):
        raise ValueError(f"{key}: {_kind(node)}, where {_expected(hint)} is expected.")
    text = node.value
    _refuse_lookup(text)
    if hint is int and len(text) > _MAX_DIGITS:
        raise ValueError(f"{key}={text[:20]}...: must be below 2^63.")
    value = _read(hint, text)
    if value is None or value == "":
        raise ValueError(f"{key}={text[:80]}: expected {_expected(hint)}.{_hint(hint, text)}")
    return expand_home(value) if about.path else value


def _read(hint: Any, text: str) -> Any:
    """Return ``text`` as a value of the type ``hint``; None where it is no such value."""
    if hint is str:
        return text
    if hint is bool:
        lower = text.lower()
        return lower in _TRUE if lower in (*_TRUE, *_FALSE) else None
    if hint is int:
        return int(text) if _WHOLE.fullmatch(text) else None
    if hint is float:
        number = float(text.replace(".inf", "inf").replace(".nan", "nan")) if _DECIMAL.fullmatch(text) else None
        return None if number in (float("inf"), float("-inf")) and "inf" not in text else number  # as 1e400
    return text if text in get_args(hint) else None


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[hint]


def _hint(hint: Any, text: str) -> str:
    """Return " Write ..." where a whole number is given in another notation, such as 1e3 or 1_000."""
    number = _read(float, text.replace("_", "")) if hint is int else None
    return f" Write {int(number)}." if number is not None and number.is_integer() and abs(number) < 1e15 else ""


def _not_a_setting(key: str, root: Any) -> str:
    """Return the message about an unknown ``key``, with the settings that may be meant."""
    known = [name for name, _, _ in walk(root)]
    if key in known:  # with a dot, in a file
        return f"{key} is written in a file as {': {'.join(key.split('.'))}: ...{'}' * key.count('.')}."
    last = key.rpartition(".")[2]
    near = (
        [name for name in known if name.endswith(f".{key}")]
        or [name for name in known if name.rpartition(".")[2] == last]
        or difflib.get_close_matches(key, known, 3, 0.8)
        or [name for name in known if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.7]
    )
    sections = [item.name for item in fields(root) if is_dataclass(getattr(root, item.name))]
    advice = f"Did you mean {' or '.join(near[:4])}?" if near else f"Sections are {', '.join(sections)}."
    return f"{key[:80]} is not a setting. {advice}"


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in _NULLS


def _kind(node: Node) -> str:
    """Return what ``node`` is, in words."""
    if isinstance(node, ScalarNode):
        return f"{node.value[:80]!r}"
    return "a list" if isinstance(node, SequenceNode) else "a section"
