"""Many runs of classifiers, one after another: what is done is skipped, what breaks is reported and ends no other."""

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from gan.runs.checkpoints import folder_of
from gan.runs.folder import is_run
from gan.utils import cli
from gan.utils.distributed import AgreedError, on_main
from gan.utils.errors import TrainingDivergedError, UserError
from gan.utils.settings import differences, keep_resolved
from study.classifier_task import train
from study.config import StudyConfig, load_study_config
from study.results import ClassifierRun, read_run

log = logging.getLogger(__name__)

OWN = ("model.norm", "optimizer.lr", "seed", "run.name")


@dataclass(frozen=True)
class Grid:
    """What a sweep goes through: every combination."""

    configs: Sequence[Path]
    norms: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    overrides: Sequence[str]

    def runs(self) -> list[StudyConfig]:
        """Settings of each run, seeds outermost: a sweep that is stopped has whole tables of fewer seeds.

        Raises UserError as ``load_study_config``, for an override of what the grid itself sets, and where two runs would
        share a folder.
        """
        for override in self.overrides:
            if override.partition("=")[0] in OWN:
                raise UserError(f"{override}: a sweep sets {', '.join(OWN)} itself. Use --norms, --rates, --seeds or run.dir.")
        found = []
        for seed in self.seeds:
            for path in self.configs:
                for norm in self.norms:
                    for rate in self.rates:
                        name = f"run.name={path.stem}_{norm}_lr{rate:g}_seed{seed}"
                        own = [f"model.norm={norm}", f"optimizer.lr={rate!r}", f"seed={seed}", name]
                        found.append(load_study_config(path, [*self.overrides, *own]))
        for folder, count in Counter(config.folder for config in found).items():
            if count > 1:
                raise UserError(f"{folder}: {count} runs of the sweep would be in it. Name each value and configuration once.")
        return found


@dataclass
class Outcome:
    """How a sweep ended."""

    signal: int = 0  # that stopped it
    broken: int = 0  # runs that failed, not those whose numbers diverged
    mistaken: int = 0  # of these, by a user's mistake


def sweep(grid: Grid, accelerator: Accelerator, *, retry: bool = False) -> Outcome:
    """Trains every run of ``grid`` that is not done. ``retry`` tries those again whose numbers were not finite."""
    runs, outcome = grid.runs(), Outcome()
    main = accelerator.is_main_process
    for number, config in enumerate(runs, 1):
        failure, mistake = None, False
        try:
            reason = on_main(accelerator, partial(_done, config, retry))
            if main:
                log.info(f"run {number} of {len(runs)}: {config.folder}{f' ({reason})' if reason else ''}")
            if reason is None:
                outcome.signal = train(config, accelerator)
        except TrainingDivergedError as error:
            if main:
                log.info(f"{config.folder}: {error}")
        except SystemExit:  # how a process ends whose main one has met a mistake that all have agreed on
            mistake = True
        except Exception as error:
            # Alone with its trouble, a process of several must not go on: the others may be waiting for it anywhere. And what
            # a disk or a permission refuses, it would refuse to every run.
            alone = accelerator.num_processes > 1 and not isinstance(error, AgreedError)
            if alone or cli.is_users(error):
                raise
            mistake = isinstance(error, UserError)
            if not mistake:
                traceback.print_exc()
            failure = str(error) if mistake else f"{type(error).__name__}: {error}"
        if failure is not None:
            log.error(f"{config.folder} is broken, the sweep goes on: {failure}")
        outcome.broken += failure is not None or mistake
        outcome.mistaken += mistake
        if outcome.signal:
            break
    return outcome


def readable(folders: Sequence[Path]) -> list[ClassifierRun]:
    """The runs that have been started in ``folders``, but for those that cannot be read, which were reported."""
    found = []
    for folder in folders:
        with suppress(UserError):
            result = read_run(folder)
            _ = (result.tests, result.failure, result.images)
            found.append(result)
    return found


def _done(config: StudyConfig, retry: bool) -> str | None:
    """Why the run of ``config`` needs no training; None where it does, or where its folder holds something else, which
    training will refuse."""
    if not is_run(config.folder):
        return None
    result = read_run(config.folder)
    if differences(keep_resolved(config, result.config), result.config):
        return None
    if not retry and (error := result.failure) is not None:
        return f"failed before: {error}"
    if result.failure is not None or not result.complete or result.config.training.epochs < config.training.epochs:
        return None
    # A run that was killed between its last test and its last checkpoint still lacks what it has learned.
    return "done" if folder_of(config.folder / "checkpoints", result.tests[-1]["step"]).is_dir() else None
