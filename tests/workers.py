"""What tests run in processes of its own: several that train together, and some that are killed."""

import multiprocessing
import os
import signal
import socket
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

import gan.__main__
import gan.runs.checkpoints
import gan.utils.files
import study.__main__
import train as program
from benchmarks.steps import prepare
from eval import __main__ as scoring
from eval import features
from eval.extractors import EXTRACTORS
from eval.protocols import PROTOCOLS
from gan.config import GanConfig, load_config
from gan.data.stream import BatchStream
from gan.training.context import GanContext
from gan.training.gan_state import GanState
from gan.training.gan_step import train_step
from gan.utils import cli
from tests.small import WATCH, scale_down

# A server that has imported torch and started no thread: children start in milliseconds and fork nothing that hangs.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.workers", "gan.training.gan_task", "eval.scoring", "study.sweep", "study.tables", "sklearn.datasets"]
)


def run_together(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` in connected processes, as accelerate's launcher starts them; on the CPU, through gloo."""
    workers = start_together(processes, function, *arguments)
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * processes


def kill_together(
    processes: int, function: Callable[..., None], *arguments: Any, after: float = 300, when: Callable[[], bool] = lambda: False
) -> list[int | None]:
    """As ``run_together``, all killed by SIGKILL after some seconds, or as soon as something is so or one of them has ended.
    Returns their exit codes."""
    workers = start_together(processes, function, *arguments)
    end = time.monotonic() + after
    while all(worker.is_alive() for worker in workers) and time.monotonic() < end and not when():
        time.sleep(0.001)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


def start_together(processes: int, function: Callable[..., None], *arguments: Any) -> list[ForkServerProcess]:
    """The processes of ``run_together``, which have just begun."""
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
    return workers


def _in_environment(environment: dict[str, str], function: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def train_and_save(runs: dict[str, tuple[GanConfig, int]], out: Path) -> None:
    """Take the given number of steps of each run. Save gradients, outputs on fixed inputs and weights as ``out``/RANK.pt."""
    found = {}
    for name, (config, steps) in runs.items():
        state, stream, context = prepare(config)
        for step in range(steps):
            train_step(state, stream, step, context)
        found[name] = results_of(state, stream, context)
    torch.save(found, out / f"{context.accelerator.process_index}.pt")


def results_of(state: GanState, stream: BatchStream, context: GanContext) -> dict[str, dict[str, Tensor]]:
    generator, discriminator = state.generator, state.discriminator
    gradients = {
        f"{player}.{name}": p.grad
        for player, network in (("g", generator), ("d", discriminator))
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    weights = {**generator.state_dict(prefix="g."), **discriminator.state_dict(prefix="d.")}
    with torch.no_grad():
        assert stream.pixels is not None
        real = stream.pixels[:16].to(context.dtype) / 127.5 - 1
        z = torch.linspace(-2, 2, 16 * context.config.model.latent_dim, dtype=context.dtype).view(16, -1)
        outputs = {"images": generator.eval()(z), "scores": discriminator.eval()(real)}
    return {"gradients": gradients, "weights": weights, "outputs": outputs}


def config_of(arguments: Sequence[str]) -> GanConfig:
    return load_config(program.DEFAULT, arguments)


PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "train": lambda words: program.main(words),
    "gan": lambda words: gan.__main__.main(words),
    "eval": lambda words: scoring.main(words),
    "study": lambda words: study.__main__.main(words),
}
ENDED = 99  # exit code of a program that was to die later than it ended


def train_and_die(arguments: list[str], at: int) -> None:
    """``train.py`` with ``arguments``, killed at the ``at``-th touch of the disk, see ``run_and_die``."""
    run_and_die("train", arguments, at)


def run_and_die(name: str, words: list[str], at: int, moments: Path | None = None) -> None:
    """The program ``name`` with ``words``, killed by SIGKILL at the ``at``-th time that it touches the disk.

    Half way through the writing of a file or a line, before each sync, rename, removal and line of metrics. Exits with ENDED
    when there are fewer such moments. Into ``moments`` it writes them, one a line: the last line is where it died.
    """
    _die_at_touch(at, moments)
    _set_up(name)
    code = cli.run(lambda: PROGRAMS[name](words))
    os._exit(ENDED if code == 0 else code)


def _die_at_touch(at: int, moments: Path | None) -> None:
    count, write = 0, os.write
    record = os.open(moments, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if moments else None

    def reached(what: str, place: Any) -> bool:
        nonlocal count
        count += 1
        if record is not None:
            path = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else Path(str(place))
            write(record, f"{what} {path.parent.name}/{path.name}\n".encode())
        return count == at

    def die() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if reached(function.__name__, getattr(args[0], "filename", args[0])):  # a ZipFile's, or a path
                die()
            return function(*args, **kwargs)

        return call

    write_synced, write_bytes, open_path = gan.runs.checkpoints.write_synced, Path.write_bytes, Path.open

    def half(path: Path, *content: bytes | memoryview) -> None:
        if reached("half of", path):
            whole = b"".join(content)
            write_bytes(path, whole[: len(whole) // 2])
            die()

    def write_half(path: Path, *content: bytes | memoryview) -> None:
        half(path, *content)
        write_synced(path, *content)

    def write_half_bytes(path: Path, content: bytes) -> int:
        half(path, content)
        return write_bytes(path, content)

    class Appended:
        """A file of lines, of which one may be cut in two."""

        def __init__(self, file: IO[Any], path: Path) -> None:
            self.file, self.path = file, path

        def write(self, line: bytes) -> None:
            if reached("half a line of", self.path):
                self.file.write(line[: len(line) // 2])
                self.file.flush()
                die()
            self.file.write(line)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Appended":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def open_appended(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open_path(path, mode, *args, **kwargs)
        return Appended(file, path) if "a" in mode and path.suffix == ".jsonl" else file

    gan.runs.checkpoints.write_synced = gan.utils.files.write_synced = write_half
    Path.write_bytes, Path.open = write_half_bytes, open_appended  # type: ignore[method-assign,assignment]
    zipfile.ZipFile.writestr = deadly(zipfile.ZipFile.writestr)  # type: ignore[method-assign]
    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "write"):
        setattr(os, name, deadly(getattr(os, name)))


def _set_up(name: str) -> None:
    torch.set_num_threads(1)
    scale_down()
    if name == "eval":
        features.PART = 64  # images that are kept together: a set of some hundred has several parts


def run_to_the_end(name: str, words: list[str], errors: Path | None = None) -> None:
    """The program ``name`` with ``words``; what it says on stderr goes to the file ``errors`` if asked."""
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    _set_up(name)
    os._exit(cli.run(lambda: PROGRAMS[name](words)))


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
    signals: Sequence[int] = (signal.SIGKILL,),
) -> int:
    """The exit code of ``function`` in a process of its own, negative for a signal; killed after some seconds, or as soon as
    something is so, if asked. With other ``signals``, a tenth of a second apart, it has 30 seconds to end."""
    worker = _context.Process(target=function, args=arguments)
    worker.start()
    end = time.monotonic() + (kill_after if kill_after is not None else 300)
    while worker.is_alive() and time.monotonic() < end and not kill_when():
        worker.join(0.003)
    assert worker.pid is not None
    for number in signals:
        if worker.is_alive():
            os.kill(worker.pid, number)
            worker.join(0.1)
    worker.join(30)
    late = worker.is_alive()
    worker.kill()
    worker.join()
    assert not late, "still running 30 seconds after its signal"
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
    PROTOCOLS["watch"] = replace(WATCH, samples=640)
    quick = EXTRACTORS["efficientnet-lite0"](None, torch.device("cpu"))

    def slow(images: Tensor) -> tuple[Tensor, Tensor | None]:
        time.sleep(seconds * len(images) / 64)
        return quick.forward(images)

    EXTRACTORS["efficientnet-lite0"] = lambda weights, device: replace(quick, forward=slow)
    code = cli.run(lambda: program.main(arguments))
    if code:
        os._exit(code)
