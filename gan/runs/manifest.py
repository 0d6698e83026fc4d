"""The manifest of a checkpoint's folder: its step, and the size and checksum of every file, by which the others are verified."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gan.utils.errors import UserError
from gan.utils.safe_reading import MAX_JSON, is_whole, parse_json, read_file

FORMAT = 2
MANIFEST = "checkpoint.json"
SEAL = "checkpoint.sha256"  # the manifest's checksum, as sha256sum writes it; the manifest holds those of the other files
T = TypeVar("T")
# A read that fails so says nothing about the content, and may succeed the next time.
_PASSING = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


class UnreadableError(UserError):
    """A file of a checkpoint that cannot be read at present, though it may be sound."""


def folder_of(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint of ``step``."""
    return root / f"step-{step:08d}"


def step_in_name(folder: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def seal(manifest: bytes) -> bytes:
    """Return the content of SEAL for the text of a ``manifest``."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def damaged(folder: Path, what: str) -> UserError:
    """Return the error for a checkpoint that is damaged or incomplete."""
    return UserError(f"checkpoint {folder}: {what}.")


def read_manifest(folder: Path) -> tuple[bytes, dict[str, tuple[int, str]]]:
    """Return the manifest's text, and the size and checksum of each file in it. Raises UserError where it is damaged."""
    try:
        text = read_file(folder / MANIFEST, MAX_JSON)
        manifest = parse_json(text)
        listed = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        step, version = manifest["step"], manifest["format"]
        if not is_whole(step):
            raise ValueError("step")
        sealed = (folder / SEAL).exists()
        intact = not sealed or read_file(folder / SEAL, MAX_JSON) == seal(text)
    except FileNotFoundError:
        raise damaged(folder, f"no {MANIFEST} in it, so it is not a whole checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, OSError):
            _require_readable(folder / MANIFEST, error)
        raise damaged(folder, f"{MANIFEST} is damaged") from None
    if not intact:
        raise damaged(folder, f"{MANIFEST} has been changed or damaged (its checksum differs)")
    if version not in (1, FORMAT):  # 1 had no seal
        raise damaged(folder, f"has format {version}, this version reads {FORMAT}")
    if not sealed and version != 1:
        raise damaged(folder, f"no {SEAL} in it, so it is not a whole checkpoint")
    if folder.name.startswith("step-") and folder.name != folder_of(folder.parent, step).name:
        raise damaged(folder, f"holds step {step}")
    return text, listed


def read_verified(folder: Path, only: str | None = None) -> dict[str, bytes]:
    """Return the contents of the checkpoint's files (or ``only`` one of them), verified against its manifest.

    Raises UserError where one is damaged, UnreadableError where it cannot be read at present.
    """
    text, listed = read_manifest(folder)
    if only is not None and only not in listed:
        raise damaged(folder, f"has no {only}")
    contents = {MANIFEST: text}
    for name in [only] if only else listed:
        size, checksum = listed[name]
        try:
            content = read_file(folder / Path(name).name, size)
        except OSError as error:
            _require_readable(folder / name, error)
            raise damaged(folder, f"{name} cannot be read ({error.strerror})") from None
        if len(content) != size:
            raise damaged(folder, f"{name} has {len(content)} bytes instead of {size}")
        if hashlib.sha256(content).hexdigest() != checksum:
            raise damaged(folder, f"{name} has been changed or damaged (its checksum differs)")
        contents[name] = content
    return contents


def _require_readable(path: Path, error: OSError) -> None:
    """Raise UnreadableError where the ``error`` says nothing about the content of ``path``."""
    if error.errno in _PASSING:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror}). Once it can, the same command goes on.") from None


def read_consistently(folder: Path, read: Callable[[], T]) -> T:
    """Return ``read()``, which reads the checkpoint in ``folder`` in several visits, of one content of the folder.

    A training may replace the folder or remove it meanwhile: then it is read again, and a removed one raises UserError.
    """
    while True:
        before = _manifest_bytes(folder)
        try:
            found = read()
        except (UserError, OSError):
            if _manifest_bytes(folder) == before:
                raise
            continue
        if _manifest_bytes(folder) == before:
            return found


def _manifest_bytes(folder: Path) -> bytes | None:
    try:
        return read_file(folder / MANIFEST, MAX_JSON)
    except (OSError, ValueError):
        return None
