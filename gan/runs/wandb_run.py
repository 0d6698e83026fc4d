"""Record a run at wandb. Training does not depend on wandb: its server may be away, hang, refuse or fail at any time."""

import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, Literal

from gan.utils.command_lines import command_line
from gan.utils.errors import UserError, first_line

log = logging.getLogger(__name__)

Mode = Literal["off", "offline", "online"]
START, END = 30.0, 30.0  # seconds that a run waits for wandb's server at its start and at its end; log() never waits


def library() -> Any:
    """Import and return the module wandb."""
    # With error reporting or its greeting, wandb waits up to 15 s for a server that is away.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


class WandbRun:
    """One run at wandb, under the identity in the run folder's ``wandb-id``, which a continuation shares.

    wandb keeps everything that it records in the run folder's ``wandb``, so that it can be uploaded later to the same run.
    """

    def __init__(self, folder: Path, mode: Mode, **options: Any) -> None:
        """Start recording; ``options`` are those of wandb.init. If the server does not answer, record offline.

        Raises UserError if ``mode`` is offline and wandb cannot start.
        """
        identity = folder / "wandb-id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._id, self._folder = identity.read_text().strip(), folder
        self._options = {"name": folder.name, "id": self._id, "dir": str(folder), **options}
        self._run: Any = None
        try:
            self._start(mode)
        except Exception as error:  # noqa: BLE001 (wandb, its process and the network raise errors of many kinds)
            if mode == "offline":
                raise UserError(f"tracking.wandb=offline: wandb could not start ({first_line(error)}). Set it to off.") from None
            with suppress(Exception):
                library().teardown()  # its process would refuse a second run of the same identity
            with suppress(Exception):
                self._start("offline")
            place = "in metrics.jsonl only" if self._run is None else "offline, for an upload after its end"
            log.warning(f"wandb failed ({first_line(error)}). Training continues and is recorded {place}.")

    def _start(self, mode: Mode) -> None:
        wandb = library()
        # The other half is for starting and ending wandb's own process.
        settings = wandb.Settings(
            init_timeout=START / 2,
            finish_timeout=END / 2,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of its records that a kill can lose
        )
        self._run = wandb.init(mode=mode, resume="allow", settings=settings, **self._options)
        log.info(f"wandb: {self._run.url}" if mode == "online" else f"wandb: offline, in {Path(self._run.dir).parent}")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Give ``values`` to wandb's process, which records and sends them. After an error nothing more is given."""
        if self._run is None:
            return
        try:
            self._run.log(dict(values), step=step)
        except Exception as error:  # noqa: BLE001 (wandb's process has ended, or the disk is full)
            self._run = None
            log.warning(f"wandb failed ({first_line(error)}). Training continues and is recorded in metrics.jsonl only.")

    def close(self) -> None:
        """End the recording, wait at most END seconds for the upload, and log the commands that upload what is missing."""
        reason = ""
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:  # noqa: BLE001 (a TimeoutError, or wandb's process has ended)
            reason = f" ({first_line(error)})"
        with suppress(Exception):
            library().teardown()  # at the interpreter's exit, wandb would print a traceback if its process has ended
        # wandb does not report what its server refuses after the start, so the commands are always given. Each uploads the part
        # of one process: `wandb sync` ignores the parts that follow one that a kill cut off. Without the flag, it leaves out
        # what began online.
        for part in sorted((self._folder / "wandb").glob(f"*run-*-{escape(self._id)}")):
            command = command_line("wandb", "sync", "--include-online", part.resolve())
            log.info(f"wandb: what its server does not have{reason} can be uploaded by: {command}")
