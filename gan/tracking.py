"""Where a run's numbers and pictures go: metrics.jsonl, probes.jsonl and PNG always; wandb and TensorBoard when asked."""

import errno
import json
import mmap
import os
import secrets
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from gan.errors import UserError, first_line
from gan.progress import say
from gan.untrusted import is_number, open_regular, parse_json

Wandb = Literal["off", "offline", "online"]
METRICS, PROBES = "metrics.jsonl", "probes.jsonl"
# Seconds that wandb's server can cost a run at most, whatever it does; while it trains, nothing waits for it.
WANDB_START, WANDB_END = 30.0, 30.0
# Seconds after which wandb's own process, where it stands still, is killed: as though it had failed by itself.
WANDB_STILL = 25.0


def check_trackers(*, wandb: Wandb, tensorboard: bool) -> None:
    """Raises UserError when a tracker that was asked for is not installed or has no key."""
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard=true: TensorBoard is not installed. pip install 'msngan[tensorboard]', or set it to false."
        )
    if wandb != "off" and find_spec("wandb") is None:
        raise UserError(f"tracking.wandb={wandb}: wandb is not installed. pip install wandb, or set tracking.wandb=off.")
    if wandb == "online" and not _library().login(prompt=False, verify=False):
        raise UserError("tracking.wandb=online: no key for wandb. Run 'wandb login', or set tracking.wandb=offline.")


def truncate_metrics(path: Path, step: int, *, looked: bool = True) -> None:
    """Drops the lines of ``path`` after ``step``, and a last one that is not whole: they will be written again. Without
    ``looked`` also those of ``step`` itself that are no record of the training (which has "seconds")."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                later = record["step"] > step or (record["step"] == step and not looked and "seconds" not in record)
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if not line.endswith(b"\n") or later:
                break
            end += len(line)
    with path.open("r+b") as file:
        file.truncate(end)


def last_values(path: Path, *keys: str) -> dict[str, Any]:
    """The last line of a metrics file that has the first of ``keys``; empty where there is none. Reads from the end, one line
    at a time: a long run's file may be larger than the memory.

    Raises UserError for what is no file, a damaged line on the way, or one whose step and ``keys`` are not finite numbers.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    try:
        source = open_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    with source as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1  # what follows was cut off by a kill
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                values = parse_json(content[start:end])
            except ValueError:
                values = None
            wanted = isinstance(values, dict) and keys[0] in values
            if not isinstance(values, dict) or (wanted and not all(is_number(values.get(key)) for key in ("step", *keys))):
                raise UserError(f"{path}: a line is damaged. Restore the file from a copy, or remove the line.")
            if wanted:
                return values
            end = start
    return {}


class Lines:
    """A file of one JSON object a line, each with "step"; never half a line."""

    def __init__(self, path: Path, step: int, *, looked: bool = True) -> None:
        """Goes on after ``step``, as ``truncate_metrics`` leaves it."""
        truncate_metrics(path, step, looked=looked)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Finite numbers only."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        # One write of less than a page: a kill leaves the whole line or none.
        written = os.write(self._file, line)
        if written < len(line):  # a full disk has room for a part
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _library() -> Any:
    """wandb, for the first time or again."""
    # Each waits for a server that is away: its reports about itself 15 s at the program's end, its greeting 15 s at the start.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


@contextmanager
def _unless_still() -> Iterator[None]:
    """Within it, wandb's own processes are killed when they have made the caller wait for WANDB_STILL: they are a program
    apart, and can be stopped or hang. What waited for them raises then."""

    def kill() -> None:
        for process in psutil.Process().children():
            with suppress(psutil.Error):
                if process.name() == "wandb-core":
                    process.kill()

    timer = threading.Timer(WANDB_STILL, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class WandbRun:
    """A run's copy at wandb. Its server may be away, hang, refuse or break at any time: training goes on.

    What cannot be sent is kept in the run's folder, in ``wandb``, under the same identity: uploaded later, it lands in the
    same run. At most a second of it is lost where wandb's own process is killed; metrics.jsonl does not depend on it.
    """

    def __init__(self, folder: Path, mode: Wandb, **options: Any) -> None:
        """Raises UserError when it is to record offline and cannot."""
        identity = folder / "wandb-id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._options = {"name": folder.name, "id": identity.read_text().strip(), "dir": str(folder), **options}
        self._asked = mode
        self._parts: list[Path] = []  # folders of the record: a second one where the first ended early
        self._run: Any = None
        try:
            self._start(mode)
        except Exception as error:  # noqa: BLE001 (of many kinds: its own, of its process, of the network)
            if mode == "offline":
                raise UserError(f"tracking.wandb=offline: wandb could not start ({first_line(error)}). Set it to off.") from None
            self._go_offline(error)

    def _start(self, mode: Wandb) -> None:
        library = _library()
        settings = library.Settings(
            init_timeout=WANDB_START / 2,  # leaves time for its processes to start and end
            finish_timeout=WANDB_END / 2,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of its record that are lost with its process
        )
        with _unless_still():
            self._run = library.init(mode=mode, resume="allow", settings=settings, **self._options)
        self._parts.append(Path(self._run.dir).parent)
        say(f"wandb: {self._run.url}" if mode == "online" else f"wandb: offline, in {self._parts[-1]}")

    def _go_offline(self, error: Exception) -> None:
        """Records from now on without a server, and says so; not at all where that fails too."""
        self._run = None
        if len(self._parts) < 2:
            self._tear_down()
            with suppress(Exception):
                self._start("offline")
        say(
            f"warning: wandb failed ({first_line(error)}). Training goes on, recorded"
            f" {f'in {METRICS} alone' if self._run is None else 'offline, to be uploaded when it has ended'}."
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Hands ``values`` to wandb's process, which records and sends them: waits for no server."""
        while self._run is not None:
            try:
                with _unless_still():
                    self._run.log(dict(values), step=step)
            except Exception as error:  # noqa: BLE001 (its process was killed, or the disk is full)
                self._go_offline(error)
            else:
                return

    def close(self) -> None:
        """Ends the record, and the upload if it can be done in time; says how to upload later if not."""
        reason = ""
        try:
            if self._run is not None:
                with _unless_still():
                    self._run.finish()
        except Exception as error:  # noqa: BLE001 (a TimeoutError, or its process was killed)
            reason = f" ({first_line(error)})"
        self._tear_down()
        if self._parts and (reason or not self._all_sent()):
            missing = "" if self._asked == "offline" else f" Its server has not got all of this run{reason}."
            # Without the flag, what began online is left out.
            command = " ".join(["wandb sync --include-online", *(shlex.quote(str(part.resolve())) for part in self._parts)])
            say(f"wandb:{missing} To upload it: {command}")

    def _all_sent(self) -> bool:
        """Whether wandb's process met no error: it raises none for what a server refuses or garbles after the start."""
        log = self._parts[0] / "logs" / "debug-internal.log"
        online = len(self._parts) == 1 and not self._parts[0].name.startswith("offline")
        return online and log.exists() and '"level":"ERROR' not in log.read_text(errors="replace")

    def _tear_down(self) -> None:
        """Ends wandb's process, here and not at the interpreter's end, where it would print a traceback if it was killed."""
        with suppress(Exception), _unless_still():
            _library().teardown()


class Tracker:
    """Writes one run's records. Used by the main process only."""

    def __init__(
        self, folder: Path, step: int, *, settings: Mapping[str, Any], wandb: Wandb, project: str, tensorboard: bool,
        looked: bool = True,
    ) -> None:  # fmt: skip
        """Goes on in ``folder`` after ``step``; ``settings`` describe the run to wandb. See ``truncate_metrics``."""
        self.folder = folder
        self._metrics = Lines(folder / METRICS, step, looked=looked)
        truncate_metrics(folder / PROBES, step)
        self._probes: Lines | None = None
        self._wandb: WandbRun | None = None
        self._tensorboard: Any = None
        if wandb != "off":
            self._wandb = WandbRun(folder, wandb, project=project, config=dict(settings))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line with ``step`` and ``values``; finite numbers only."""
        self._metrics.append({"step": step, **values})
        if self._wandb is not None:
            self._wandb.log(step, values)
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)

    def probe(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of what is too much for curves, into a file of its own that is made with its first line."""
        if self._probes is None:
            self._probes = Lines(self.folder / PROBES, step - 1)
        self._probes.append({"step": step, **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture (H, W) or (H, W, 3) for wandb and TensorBoard; the PNG is written by who made it."""
        if self._wandb is not None:
            self._wandb.log(step, {name: _library().Image(Image.fromarray(pixels))})
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def message(self, step: int, text: str) -> None:
        """What went wrong, in words, for wandb and TensorBoard; the run's own files have the numbers."""
        if self._wandb is not None:
            self._wandb.log(step, {"message": text})
        if self._tensorboard is not None:
            self._tensorboard.add_text("message", text, step)

    def flush(self) -> None:
        """Waits until all lines are on the disk: a checkpoint must not be newer than the record that leads to it."""
        self._metrics.flush()
        if self._probes is not None:
            self._probes.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._probes is not None:
            self._probes.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
