"""Train a grid of classifiers, one after another. Complete runs are skipped; a run that fails does not stop the others."""

import itertools
import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
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

SWEPT = ("model.norm", "optimizer.lr", "seed", "run.name")


def sweep_configs(
    paths: Sequence[Path], norms: Sequence[str], rates: Sequence[float], seeds: Sequence[int], overrides: Sequence[str]
) -> list[StudyConfig]:
    """Return the settings of every combination. Seeds vary slowest, so that a stopped sweep has complete tables of fewer seeds.

    Raises UserError as ``load_study_config``, for an override of a key that the sweep sets, and when two runs would share a
    folder.
    """
    for override in overrides:
        if override.partition("=")[0] in SWEPT:
            raise UserError(f"{override}: a sweep sets {', '.join(SWEPT)} itself. Use --norms, --rates, --seeds or run.dir.")
    configs = []
    for seed, path, norm, rate in itertools.product(seeds, paths, norms, rates):
        name = f"run.name={path.stem}_{norm}_lr{rate:g}_seed{seed}"
        own = [f"model.norm={norm}", f"optimizer.lr={rate!r}", f"seed={seed}", name]
        configs.append(load_study_config(path, [*overrides, *own]))
    for folder, count in Counter(config.folder for config in configs).items():
        if count > 1:
            raise UserError(f"{folder}: {count} runs of the sweep would write to it. Give each value and configuration once.")
    return configs


def sweep(configs: Sequence[StudyConfig], accelerator: Accelerator, *, retry: bool = False) -> int:
    """Train every run of ``configs`` that is not complete; with ``retry``, also those that diverged before.

    Returns the exit code: 0, 128 and the number of the signal that stopped it, 2 where each failed run is the user's mistake,
    else 1. Diverged runs are results, not failures.
    """
    mistakes: list[bool] = []  # of each failed run, whether its error was the user's mistake
    for number, config in enumerate(configs, 1):
        try:
            reason = on_main(accelerator, partial(_reason_to_skip, config, retry))
            if accelerator.is_main_process:
                log.info(f"run {number} of {len(configs)}: {config.folder}{f' ({reason})' if reason else ''}")
            if reason is None and (signal := train(config, accelerator)):
                return 128 + signal
        except TrainingDivergedError as error:
            if accelerator.is_main_process:
                log.info(f"{config.folder}: {error}")
        except SystemExit:  # raised on the other processes for a mistake that the main process reports
            mistakes.append(True)
        except Exception as error:
            # A process that fails alone must stop the sweep: the others may be waiting for it. A disk or permission error
            # would stop every further run too.
            alone = accelerator.num_processes > 1 and not isinstance(error, AgreedError)
            if alone or cli.is_users(error):
                raise
            mistakes.append(isinstance(error, UserError))
            if not mistakes[-1]:
                traceback.print_exc()
            failure = str(error) if mistakes[-1] else f"{type(error).__name__}: {error}"
            log.error(f"{config.folder} failed, the sweep continues: {failure}")
    return (2 if all(mistakes) else 1) if mistakes else 0


def readable(folders: Sequence[Path]) -> list[ClassifierRun]:
    """Return the runs in ``folders`` that can be read. Damaged ones are left out: ``sweep`` has reported them."""
    found = []
    for folder in folders:
        with suppress(UserError):
            run = read_run(folder)
            _ = (run.tests, run.failure, run.images)
            found.append(run)
    return found


def _reason_to_skip(config: StudyConfig, retry: bool) -> str | None:
    """Return why the run of ``config`` is skipped. None: it is trained, or training refuses the contents of its folder."""
    if not is_run(config.folder):
        return None
    run = read_run(config.folder)
    if differences(keep_resolved(config, run.config), run.config):
        return None
    if not retry and (error := run.failure) is not None:
        return f"failed before: {error}"
    if run.failure is not None or not run.complete or run.config.training.epochs < config.training.epochs:
        return None
    # A run that was killed between its last test and its last checkpoint has no trained weights yet.
    return "done" if folder_of(config.folder / "checkpoints", run.tests[-1]["step"]).is_dir() else None
