"""Merge YAML text and ``key=value`` pairs into OmegaConf settings, with errors of one line."""

from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gan.utils.errors import UserError

_MAX_DEPTH = 20  # nested sections and lists


def merge(settings: Any, text: str, source: str, names: set[str], *, dotted: bool = False) -> Any:
    """Return the OmegaConf ``settings`` updated from YAML ``text``, or from one ``key=value`` pair if ``dotted``.

    ``names`` are the names of the settings' classes, which are left out of messages. Raises UserError, which begins with
    ``source``, for text that is not plain YAML, an unknown key and a wrong type.
    """
    try:
        _require_plain(text.partition("=")[2] if dotted else text)
        update = OmegaConf.from_dotlist([text]) if dotted else OmegaConf.create(text or "{}")
        if OmegaConf.select(update, "tracking.wandb") is False:  # YAML reads the word off as false
            update.tracking.wandb = "off"
        return OmegaConf.merge(settings, update)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {one_line(error, names)}") from None


def _require_plain(text: str) -> None:
    """Raise ValueError for YAML with anchors, tags or interpolation.

    A few bytes of anchors can expand to billions of values, and OmegaConf's ${...} can read secrets from the environment,
    which a run would then write to its config.yaml.
    """
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


def one_line(error: Exception, names: set[str]) -> str:
    """Return the message of OmegaConf or YAML without their internals; it begins with the setting's key where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    if isinstance(error, yaml.YAMLError):
        return "not YAML: " + ", ".join(lines)
    message = lines[0] if lines else type(error).__name__
    for suffix in (f" not in '{name}'" for name in names):
        message = message.replace(suffix, " is not a setting")
    return f"{key}: {message}" if key and "is not a setting" not in message else message


def section_names(settings: Any) -> set[str]:
    """Return the class names of ``settings`` and of all its sections, which OmegaConf puts into its messages."""
    inner = (getattr(settings, f.name) for f in fields(settings))
    return {type(settings).__name__}.union(*(section_names(section) for section in inner if is_dataclass(section)))
