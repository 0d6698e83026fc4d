"""Many runs of classifiers, one after another: what is done is skipped, what breaks is reported and ends no other."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from gan.errors import TrainingDivergedError, UserError
from gan.processes import on_main
from gan.progress import say
from gan.runs import is_run
from study.classifier import train
from study.config import Study, load_study
from study.results import FAILED, note_failure, read_run


@dataclass(frozen=True)
class Grid:
    """What a sweep goes through: every combination."""

    configs: Sequence[Path]
    norms: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    overrides: Sequence[str]

    def runs(self) -> Iterator[Study]:
        """Settings of each run, seeds outermost: a sweep that is stopped has whole tables of fewer seeds.

        Raises UserError as ``load_study``.
        """
        for seed in self.seeds:
            for path in self.configs:
                for norm in self.norms:
                    for rate in self.rates:
                        name = f"run.name={path.stem}_{norm}_lr{rate:g}_seed{seed}"
                        own = [f"model.norm={norm}", f"optimizer.lr={rate!r}", f"seed={seed}", name]
                        yield load_study(path, [*self.overrides, *own])


@dataclass
class Outcome:
    """How a sweep ended."""

    signal: int = 0  # that stopped it
    broken: int = 0  # runs that failed, not those whose numbers diverged
    mistaken: int = 0  # of these, by a user's mistake


def sweep(grid: Grid, accelerator: Accelerator, *, retry: bool = False) -> Outcome:
    """Trains every run of ``grid`` that is not done. ``retry`` tries those again whose numbers were not finite."""
    runs = list(grid.runs())
    outcome = Outcome()
    for number, config in enumerate(runs, 1):
        reason = on_main(accelerator, partial(_done, config, retry))
        if accelerator.is_main_process:
            say(f"run {number} of {len(runs)}: {config.folder}{f' ({reason})' if reason else ''}")
        if reason is not None:
            continue
        failure, mistake = None, False
        try:
            outcome.signal = train(config, accelerator)
        except TrainingDivergedError as error:
            if accelerator.is_main_process:
                note_failure(config.folder, str(error))
                say(f"{config.folder}: {error}")
        except UserError as error:
            failure, mistake = str(error), True
        except SystemExit:  # how a process ends whose main one has met a mistake
            mistake = True
        except Exception as error:
            if accelerator.num_processes > 1:
                raise  # the others may be waiting anywhere
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        if failure is not None:
            say(f"error: {config.folder} is broken, the sweep goes on: {failure}")
        outcome.broken += failure is not None or mistake
        outcome.mistaken += mistake
        if outcome.signal:
            break
    return outcome


def _done(config: Study, retry: bool) -> str | None:
    """Why the run of ``config`` needs no training; None where it does. Removes the note of a failure that is to be retried."""
    if not is_run(config.folder):
        return None
    result = read_run(config.folder)
    if (error := result.failure) is not None:
        if not retry:
            return f"failed before: {error}"
        (config.folder / FAILED).unlink()
    if result.complete and result.config.training.epochs >= config.training.epochs:
        return "done"
    return None
