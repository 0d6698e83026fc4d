"""A sweep as one array job of Slurm: the batch script, and its submission."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gan.launch.processes import launcher
from gan.utils.errors import UserError
from gan.utils.files import make_folder, write_atomically

SCRIPT = "sweep.sbatch"
_HEAD = """#!/bin/bash
# Written by a sweep's --slurm. Each task of the array trains one run; a task that is stopped and requeued resumes it.
#SBATCH --job-name=sweep
#SBATCH --array={array}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --chdir={here}
#SBATCH --output={output}
"""
_BODY = """
threads=$((${{SLURM_CPUS_ON_NODE:-1}} / {processes}))
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}}
{several}case $SLURM_ARRAY_TASK_ID in
{cases}
esac

# TERM reaches the training 120 seconds before the time limit, or at preemption. It saves and stops by that signal.
{start}
code=$?
if [ "$code" -eq 143 ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi
exit "$code"
"""
_SEVERAL = """command -v nvidia-smi >/dev/null || export ACCELERATE_USE_CPU=1
export MAIN_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))
"""
# accelerate's launcher ends with code 1 at TERM, so the shell around it notes the signal, which Slurm sends to both.
_NOTING_TERM = """
stopped=0
trap stopped=143 TERM
{train} "$@" &
wait $!
code=$?
if [ $stopped -ne 0 ]; then wait $!; code=$stopped; fi
exit $code
"""


@dataclass(frozen=True)
class ArrayJob:
    """An array job whose task N trains run N."""

    program: Sequence[str]  # the training program, as Python's arguments
    runs: Sequence[Sequence[str]]  # arguments of the training command of each run
    tasks: Sequence[int]  # numbers of the runs that are to be trained
    at_once: int | None  # most tasks at a time; None: as many as Slurm starts
    nodes: int  # of each run
    processes: int  # of each run on each node
    options: Sequence[str]  # further options of sbatch

    def script(self, output: Path) -> str:
        """Return the batch script, whose tasks write what they print to ``output``, with Slurm's patterns in its name."""
        limit = f"%{self.at_once}" if self.at_once else ""
        words = {"array": ",".join(map(str, self.tasks)) + limit, "nodes": self.nodes, "here": Path.cwd(), "output": output}
        head = _HEAD.format(**{key: _directive(word) for key, word in words.items()})
        further = "".join(f"#SBATCH {option}\n" for option in self.options)
        cases = "\n".join(f"{number}) set -- {shlex.join(self.runs[number])} ;;" for number in self.tasks)
        several = _SEVERAL if self.nodes * self.processes > 1 else ""
        body = _BODY.format(cases=cases, several=several, start=self._start(), processes=self.processes)
        return head + further + body

    def _start(self) -> str:
        """Return the command that trains one run on all nodes of its task."""
        if self.nodes * self.processes == 1:
            return f'srun {shlex.join([sys.executable, *self.program])} "$@"'
        machines = ["--num_machines", str(self.nodes), "--machine_rank", "$SLURM_NODEID", "--main_process_ip", "$MAIN_HOST"]
        words = [*launcher(self.nodes * self.processes, "$MAIN_PORT", machines), *self.program]
        train = " ".join(word if word.startswith("$") else shlex.quote(word) for word in words)
        return f'srun --kill-on-bad-exit=1 bash -c {shlex.quote(_NOTING_TERM.format(train=train))} train "$@"'


def _directive(word: object) -> str:
    text = str(word)
    return f'"{text}"' if " " in text else text


def write_job(job: ArrayJob, folder: Path) -> Path:
    """Write the batch script into ``folder`` and return its path."""
    make_folder(folder)
    path = folder / SCRIPT
    write_atomically(path, job.script(folder.absolute() / "slurm-%A_%a.out").encode())
    return path


def submit(script: Path) -> str:
    """Submit ``script`` and return the number of its job. Raises UserError where sbatch is missing or refuses it."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"--submit: sbatch is not installed here. Submit {script} where it is.") from None
    if done.returncode:
        raise UserError(f"--submit: sbatch refused {script} ({' '.join(done.stderr.split())}). Correct it, or use --sbatch.")
    return done.stdout.strip().partition(";")[0]
