"""The command ``sweep``, for GANs and classifiers: what each of its options does with the planned runs."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic

from gan.config import GanConfig, load_config
from gan.launch import slurm
from gan.launch.grid import PlannedRun, name_of, parse_values, plan
from gan.launch.processes import Resources, Skip, Sweep
from gan.launch.report import describe_grid, describe_progress
from gan.runs import checkpoints
from gan.runs.folder import DIVERGED, is_run, saved_config
from gan.runs.status import read_status
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.safe_reading import printable_lines
from gan.utils.settings import C, differences, keep_resolved

_ROOT = Path(__file__).resolve().parents[2]
GAN_PROGRAM = [str(_ROOT / "train.py")]


@dataclass(frozen=True)
class SweepCommand(Generic[C]):
    """What a sweep is to do with its runs. Exactly one of ``status``, ``dry_run`` and ``slurm`` may be true; none: train."""

    at_once: int | None
    processes: int  # of each run, on each node
    nodes: int
    retry: bool
    status: bool
    dry_run: bool
    slurm: bool
    submit: bool
    sbatch: Sequence[str]
    device: str | None  # of every run; None: each has GPUs of its own, where there are any

    @classmethod
    def of(cls, options: argparse.Namespace) -> "SweepCommand[C]":
        """Return the command that ``options`` describe.

        Raises UserError for options that do nothing together, and where a launcher started the sweep in several processes.
        """
        if (launched := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise UserError(f"a sweep starts its runs itself. Leave the launcher out, and give --processes {launched}.")
        needing = {"--submit": options.submit, "--nodes": options.nodes, "--sbatch": options.sbatch}
        if (given := [name for name, value in needing.items() if value]) and not options.slurm:
            raise UserError(f"{given[0]}: only with --slurm, which writes an array job. Add --slurm, or leave {given[0]} out.")
        return cls(
            at_once=options.at_once,
            processes=options.processes,
            nodes=options.nodes or 1,
            retry=options.retry,
            status=options.status,
            dry_run=options.dry_run,
            slurm=options.slurm,
            submit=options.submit,
            sbatch=options.sbatch or [],
            device=options.device,
        )

    @property
    def trains(self) -> bool:
        """Whether the runs are trained by this command."""
        return not (self.status or self.dry_run or self.slurm)

    def run(self, runs: Sequence[PlannedRun[C]], program: Sequence[str], skip: Skip[C]) -> int:
        """Do with ``runs`` what the options say, and return the exit code; see ``Sweep``."""
        program = [*program, *(["--device", self.device] if self.device else [])]
        if self.status:
            print(printable_lines(describe_progress(runs)))
        elif self.dry_run:
            print(printable_lines(describe_grid(runs, skip=partial(_tell, skip, self.retry))))
        elif self.slurm:
            print(self._write_job(runs, program, skip))
        else:
            resources = Resources.of_this_machine(self.at_once, self.processes, self.device)
            return Sweep(runs, program, skip, resources, retry=self.retry).train()
        return 0

    def _write_job(self, runs: Sequence[PlannedRun[C]], program: Sequence[str], skip: Skip[C]) -> str:
        tasks = [number for number, run in enumerate(runs) if _tell(skip, self.retry, run) is None]
        if not tasks:
            return "Every run is done, so there is nothing to submit."
        words = [run.words for run in runs]
        job = slurm.ArrayJob(program, words, tasks, self.at_once, self.nodes, self.processes, self.sbatch)
        script = slurm.write_job(job, runs[0].config.folder.parent)
        if not self.submit:
            return f"wrote {script}: {len(tasks)} tasks. Submit it with: sbatch {script}"
        return f"submitted {script} as job {slurm.submit(script)}: {len(tasks)} tasks"


def _tell(skip: Skip[C], retry: bool, run: PlannedRun[C]) -> str | None:
    return skip(run.config, retry)


def sweep(options: argparse.Namespace) -> int:
    """Run the command ``python -m gan sweep`` and return its exit code."""
    command: SweepCommand[GanConfig] = SweepCommand.of(options)
    values = parse_values(options.set)
    varied = [key for key, found in values.items() if len(found) > 1]
    paths = [cli.find_config(name) for name in options.config]
    runs = plan(paths, values, options.seeds, load_config, partial(name_of, varied=varied))
    return command.run(runs, GAN_PROGRAM, reason_to_skip)


def reason_to_skip(config: GanConfig, retry: bool) -> str | None:
    """Return why the run of ``config`` is skipped. None: it is trained, or training refuses the contents of its folder."""
    folder = config.folder
    saved = saved_config(GanConfig, folder) if is_run(folder) else None
    if saved is None or differences(keep_resolved(config, saved), saved):
        return None
    if (folder / DIVERGED).exists() and not retry:
        return f"failed before: {'; '.join(read_status(folder).warnings)}"
    status = read_status(folder, config.training.steps)
    if not status.complete:
        return None
    try:
        checkpoints.networks(checkpoints.steps(folder / "checkpoints")[-1])
    except UserError:  # damaged: training puts it aside and repeats its steps
        return None
    return "done"
