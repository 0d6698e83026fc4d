"""What tests run in processes of its own: several that train together, and some that are killed."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gan.checkpoints
import gan.files
import study.__main__
import train as program
from benchmarks.steps import prepare
from eval.extractors import EXTRACTORS
from eval.protocols import PROTOCOLS
from gan import cli
from gan.config import Config, load_config
from gan.updates import train_step
from tests.small import QUICK, scale_down

# A server that has imported torch and started no thread: children start in milliseconds and fork nothing that hangs.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.workers", "gan.training", "eval.scoring", "study.sweep", "study.tables", "sklearn.datasets"]
)


def run_together(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` in connected processes, as accelerate's launcher starts them; on the CPU, through gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    workers = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        if processes == 1:
            environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        worker = _context.Process(target=_in_environment, args=(environment, function, arguments))
        worker.start()
        workers.append(worker)
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * processes


def _in_environment(environment: dict[str, str], function: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def train_and_save(config: Config, steps: int, out: Path) -> None:
    """Runs ``steps`` steps and saves gradients, outputs on fixed inputs and weights as ``out``/RANK.pt."""
    players, stream, job = prepare(config)
    accelerator, config = job.accelerator, job.config
    for step in range(steps):
        train_step(players, stream, step, job)
    generator, discriminator = players.generator, players.discriminator
    gradients = {
        f"{player}.{name}": p.grad
        for player, network in (("g", generator), ("d", discriminator))
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    weights = {**generator.state_dict(prefix="g."), **discriminator.state_dict(prefix="d.")}
    with torch.no_grad():
        assert stream.memory is not None
        real = stream.memory[:16].to(job.dtype) / 127.5 - 1
        z = torch.linspace(-2, 2, 16 * config.model.latent_dim, dtype=job.dtype).view(16, -1)
        outputs = {"images": generator.eval()(z), "scores": discriminator.eval()(real)}
    torch.save({"gradients": gradients, "weights": weights, "outputs": outputs}, out / f"{accelerator.process_index}.pt")


def config_of(arguments: Sequence[str]) -> Config:
    return load_config(program.DEFAULT, arguments)


def train_and_die(arguments: list[str], at: int) -> None:
    """``train.py`` with ``arguments``, killed by SIGKILL at the ``at``-th time that it touches the disk.

    Half way through the writing of a file, before each sync, rename, removal and line of metrics. Exits with 99 when
    there are fewer such moments.
    """
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if reached():
                die()
            return function(*args, **kwargs)

        return call

    write_synced = gan.checkpoints.write_synced

    def write_half(path: Path, content: bytes) -> None:
        if reached():
            path.write_bytes(content[: len(content) // 2])
            die()
        write_synced(path, content)

    gan.checkpoints.write_synced = gan.files.write_synced = write_half
    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "write"):
        setattr(os, name, deadly(getattr(os, name)))
    torch.set_num_threads(1)
    scale_down()
    code = cli.run(lambda: program.main(arguments))
    os._exit(99 if code == 0 else code)


def train_to_the_end(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    scale_down()
    os._exit(cli.run(lambda: program.main(arguments)))


def train_here(arguments: list[str]) -> None:
    """``train.py`` in a process that has been set up by ``run_together``."""
    scale_down()
    assert cli.run(lambda: program.main(arguments)) == 0


def in_process(
    function: Callable[..., None],
    *arguments: Any,
    kill_after: float | None = None,
    kill_when: Callable[[], bool] = lambda: False,
) -> int:
    """The exit code of ``function`` in a process of its own, negative for a signal; killed after some seconds, or as soon as
    something is so, if asked."""
    worker = _context.Process(target=function, args=arguments)
    worker.start()
    end = time.monotonic() + (kill_after if kill_after is not None else 300)
    while worker.is_alive() and time.monotonic() < end and not kill_when():
        worker.join(0.003)
    if worker.is_alive():
        worker.kill()
        worker.join()
    assert worker.exitcode is not None
    return worker.exitcode


def study_to_the_end(words: list[str]) -> None:
    torch.set_num_threads(1)
    os._exit(cli.run(lambda: study.__main__.main(words)))


def study_here(words: list[str]) -> None:
    """``python -m study`` in a process that has been set up by ``run_together``."""
    assert cli.run(lambda: study.__main__.main(words)) == 0


def train_on_a_slow_disk(arguments: list[str], seconds: float) -> None:
    """``train.py`` where each sync and each rename takes so many ``seconds`` more."""

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, slow(getattr(os, name)))
    train_to_the_end(arguments)


def train_with_slow_scores(arguments: list[str], seconds: float) -> None:
    """``train.py`` where a score takes ten turns of so many ``seconds``, of 640 images in all."""
    torch.set_num_threads(1)
    scale_down()
    PROTOCOLS["quick"] = replace(QUICK, samples=640)
    quick = EXTRACTORS["efficientnet-lite0"](None, torch.device("cpu"))

    def slow(images: Tensor) -> tuple[Tensor, Tensor | None]:
        time.sleep(seconds * len(images) / 64)
        return quick.forward(images)

    EXTRACTORS["efficientnet-lite0"] = lambda weights, device: replace(quick, forward=slow)
    code = cli.run(lambda: program.main(arguments))
    if code:
        os._exit(code)
