"""Group runs that differ only by their seed, so that their results can be averaged."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gan.utils.errors import UserError
from gan.utils.settings import RunConfig, flatten

log = logging.getLogger(__name__)

R = TypeVar("R")
# The length of training may change on resume, but results after different lengths are never averaged.
_LENGTHS = {"training.steps", "training.epochs"}


@dataclass(frozen=True)
class SeedGroup(Generic[R]):
    """Runs with the same settings and different seeds."""

    settings: dict[str, Any]  # by dotted key: what the runs share, without the seed and what changes no weight
    runs: list[R]  # in the order given


def group_by_seed(
    runs: Iterable[R],
    config_of: Callable[[R], RunConfig],
    name_of: Callable[[R], object],
    further: Callable[[R], dict[str, Any]] = lambda run: {},
    progress_of: Callable[[R], Any] | None = None,
) -> list[SeedGroup[R]]:
    """Return the groups of ``runs`` that differ only by seed, name and settings that change no weight.

    ``further`` gives facts beside the settings that the runs of a group must share, such as their images.

    Two runs of a group with the same seed are one training, which must not count twice. Of them, the one with the larger
    ``progress_of`` is taken, else the first one, and a warning names both. Raises UserError for them where ``progress_of`` is
    None.
    """
    groups: dict[str, SeedGroup[R]] = {}
    for run in runs:
        config = config_of(run)
        ignored = (config.changeable() | {"seed"}) - _LENGTHS
        settings = {key: value for key, value in flatten(config) if key not in ignored} | further(run)
        group = groups.setdefault(repr(settings), SeedGroup(settings, []))
        same = next((other for other in group.runs if config_of(other).seed == config.seed), None)
        if same is None:
            group.runs.append(run)
            continue
        both = f"{name_of(same)} and {name_of(run)} are the same training (equal settings, seed {config.seed})"
        if progress_of is None:
            raise UserError(f"{both}. Give one.")
        if progress_of(run) > progress_of(same):
            group.runs[group.runs.index(same)] = run
            same = run
        log.warning(f"{both}: it counts once, as {name_of(same)}.")
    return list(groups.values())


def differing_settings(settings: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return those of ``settings`` that at least one of ``others`` has with another value."""
    others = list(others)
    return {key: value for key, value in settings.items() if any(other[key] != value for other in others)}
