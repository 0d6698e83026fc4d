"""A run's copy at wandb, whose server and whose own process may fail at any time."""

import logging
import os
import secrets
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, Literal

import psutil

from gan.utils.errors import UserError, first_line
from gan.utils.safe_reading import open_regular

log = logging.getLogger(__name__)

Mode = Literal["off", "offline", "online"]
# Seconds that wandb's server can cost a run at most, whatever it does; while it trains, nothing waits for it.
START, END = 30.0, 30.0
# Seconds after which wandb's own process, where it stands still, is killed: as though it had failed by itself.
STILL = 25.0


def library() -> Any:
    """wandb, for the first time or again."""
    # Each waits for a server that is away: its reports about itself 15 s at the program's end, its greeting 15 s at the start.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


@contextmanager
def _unless_still() -> Iterator[None]:
    """Within it, wandb's own processes are killed when they have made the caller wait for STILL: they are a program
    apart, and can be stopped or hang. What waited for them raises then."""

    def kill() -> None:
        for process in psutil.Process().children():
            with suppress(psutil.Error):
                if process.name() == "wandb-core":
                    process.kill()

    timer = threading.Timer(STILL, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class WandbRun:
    """A run's copy at wandb. Its server may be away, hang, refuse or break at any time: training goes on.

    What cannot be sent is kept in the run's folder, in ``wandb``, under the same identity: uploaded later, with what earlier
    processes have left there, it lands in the same run. At most a second of it is lost where wandb's own process is killed;
    metrics.jsonl does not depend on it.
    """

    def __init__(self, folder: Path, mode: Mode, **options: Any) -> None:
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

    def _start(self, mode: Mode) -> None:
        wandb = library()
        settings = wandb.Settings(
            init_timeout=START / 2,  # leaves time for its processes to start and end
            finish_timeout=END / 2,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of its record that are lost with its process
        )
        with _unless_still():
            self._run = wandb.init(mode=mode, resume="allow", settings=settings, **self._options)
        self._parts.append(Path(self._run.dir).parent)
        log.info(f"wandb: {self._run.url}" if mode == "online" else f"wandb: offline, in {self._parts[-1]}")

    def _go_offline(self, error: Exception) -> None:
        """Records from now on without a server, and says so; not at all where that fails too."""
        self._run = None
        if len(self._parts) < 2:
            self._tear_down()
            with suppress(Exception):
                self._start("offline")
        log.warning(
            f"wandb failed ({first_line(error)}). Training goes on, recorded"
            f" {'in its own files alone' if self._run is None else 'offline, to be uploaded when it has ended'}."
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
        if sent := not reason and self._all_sent():
            with suppress(OSError):  # the disk is full: uploaded again, it would be the same
                _marker(self._parts[0]).touch()
        waiting = self._waiting()
        missing = f" Its server has not got all of this run{reason}."
        if sent:
            missing = " What was recorded before a kill may not be at its server."
        elif self._asked == "offline":
            missing = ""
        if waiting:
            # Without the flag, what began online is left out.
            command = " ".join(["wandb sync --include-online", *(shlex.quote(str(part.resolve())) for part in waiting)])
            log.info(f"wandb:{missing} To upload it: {command}")
        elif self._parts and not sent:  # its process was killed in the first second
            log.info(f"wandb:{missing} Nothing of it can be uploaded later; the run's own files have all.")

    def _waiting(self) -> list[Path]:
        """The parts of the run's record that may not be uploaded yet, also those of processes that were killed."""
        parts = (Path(self._options["dir"]) / "wandb").glob(f"*run-*-{escape(self._options['id'])}")
        return sorted(part for part in parts if not _marker(part).exists() and _begins_whole(part))

    def _all_sent(self) -> bool:
        """Whether wandb's process met no error: it raises none for what a server refuses or garbles after the start."""
        if len(self._parts) != 1 or self._parts[0].name.startswith("offline"):
            return False
        log = self._parts[0] / "logs" / "debug-internal.log"
        return log.exists() and '"level":"ERROR' not in log.read_text(errors="replace")

    def _tear_down(self) -> None:
        """Ends wandb's process, here and not at the interpreter's end, where it would print a traceback if it was killed."""
        with suppress(Exception), _unless_still():
            library().teardown()


def _file(part: Path) -> Path:
    """Of a part of wandb's record, what it uploads from."""
    return part / f"run-{part.name.rpartition('-')[2]}.wandb"


def _marker(part: Path) -> Path:
    """The file that tells, as `wandb sync` leaves it, that a part is uploaded."""
    return _file(part).with_suffix(".wandb.synced")


def _begins_whole(part: Path) -> bool:
    """Whether a part holds the entry that tells its run, which a kill in the first second can cut off. `wandb sync` reads no
    more of such a part, nor of any part named with it.

    It is a log in LevelDB's format: after 7 bytes, each entry has a checksum (4 bytes), its length (2) and its type (1).
    """
    try:
        with open_regular(_file(part)) as file:
            content = file.read(2**17)
    except OSError:
        return False
    if content[:4] != b":W&B":
        return len(content) > 7  # of another wandb, which may know what it is
    end = 7
    for _ in range(2):  # its version, the run
        end += 7 + int.from_bytes(content[end + 4 : end + 6], "little")
    return end <= len(content)
