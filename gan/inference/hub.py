"""Exports on the Hugging Face Hub: download one into the hub's cache, push one."""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError, of httpx or httpx2 by the hub's version
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gan.runs.manifest import MANIFEST
from gan.utils.errors import UserError, first_line

log = logging.getLogger(__name__)
_ADDRESS = re.compile("hf:(/{1,2}|$)")  # a Path has made one slash of two, or none at the end
_MAX_BYTES = 2**31  # of all files of a generator
_LOGIN = "Run `hf auth login`, or set HF_TOKEN"


def is_address(path: str | Path) -> bool:
    """Return whether ``path`` is hf://OWNER/NAME, also as a Path."""
    return _ADDRESS.match(str(path)) is not None


def check_name(name: str) -> str:
    """Return ``name``. Raises UserError where it is not OWNER/NAME as the hub allows it."""
    try:
        validate_repo_id(name)
        if "/" not in name:
            raise ValueError
    except ValueError:
        raise UserError(f"{name!r}: expected OWNER/NAME on the hub, of letters, digits and single . _ -.") from None
    return name


def download(address: str | Path, files: Sequence[str]) -> Path:
    """Return the folder of the hub's cache with those of ``files`` that the repository hf://OWNER/NAME[@REVISION] has.

    No other file is downloaded. Without a network it is the revision of the last download.

    Raises UserError where there is no such repository or no generator in it, where its files are too large, and where neither
    the hub can be reached nor the cache has it.
    """
    name, _, revision = _ADDRESS.sub("", str(address), count=1).partition("@")
    address = f"hf://{name}{'@' + revision if revision else ''}"
    check_name(name)
    if (revision and not re.fullmatch(r"\w[\w./-]*", revision)) or ".." in revision:
        raise UserError(f"{address}: {revision!r} is neither a branch, a tag nor a commit.")
    unreached = ""
    with _one_line(address):
        try:
            found = HfApi().get_paths_info(name, list(files), revision=revision or None)
            sizes = {entry.path: getattr(entry, "size", 0) for entry in found}
            _check_files(address, sizes, sum(sizes.values()))
        except (OSError, HTTPError) as error:  # snapshot_download takes the cache then, or raises it again
            unreached = first_line(error)
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    if unreached:
        log.info(f"{address}: taken from the hub's cache ({unreached})")
    _check_files(address, [file.name for file in folder.iterdir()])
    return folder


def _check_files(address: str, names: Collection[str], size: int = 0) -> None:
    if MANIFEST not in names:
        raise UserError(f"{address}: holds no generator of msngan (no {MANIFEST}).")
    if size > _MAX_BYTES:
        raise UserError(f"{address}: has {size:,} bytes of a generator; at most {_MAX_BYTES:,} are downloaded.")


def is_cached(folder: Path) -> bool:
    """Return whether ``folder`` is a snapshot in the hub's cache, which is for reading only."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def check_token() -> None:
    """Raise UserError where there is no token of the hub to send anything with."""
    if get_token() is None:
        raise UserError(f"no token of the hub found, so nothing was sent. {_LOGIN} to a token that may write.")


def push(folder: Path, name: str, *, public: bool, replaced: Collection[str]) -> str:
    """Send the files of the export in ``folder`` to the repository OWNER/NAME in one commit; return the address of its page.

    A repository that is new is private unless ``public``. Those files of ``replaced`` that an earlier push left and this one
    does not have are removed.

    Raises UserError without a token, for a repository that holds something else, and for what the hub refuses.
    """
    check_token()
    api, own = HfApi(), sorted(folder.iterdir())
    with _one_line(name):
        url = api.create_repo(name, private=not public, exist_ok=True)
        there = set(api.list_repo_files(name))
        if there - {".gitattributes", "README.md"} and MANIFEST not in there:
            raise UserError(f"{name}: holds files that are no generator of msngan. Nothing was sent. Choose another name.")
        gone = sorted(there & set(replaced) - {file.name for file in own})
        operations = [CommitOperationAdd(file.name, file) for file in own] + [CommitOperationDelete(old) for old in gone]
        api.create_commit(name, operations, commit_message="Upload a generator of msngan")
    return str(url)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Raise the errors of the hub's library as UserErrors that begin with ``what``."""
    try:
        yield
    except UserError:
        raise
    except RevisionNotFoundError:
        raise UserError(f"{what}: the repository has no such revision.") from None
    except RepositoryNotFoundError:  # the hub tells a private one from none only to those who may read it
        raise UserError(f"{what}: no such repository on {constants.ENDPOINT}, or a private one. {_LOGIN} if it is.") from None
    except LocalEntryNotFoundError as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"{what}: not in the hub's cache, and {constants.ENDPOINT} cannot be reached ({reason}).") from None
    except HfHubHTTPError as error:
        reason = error.server_message or first_line(error)
        raise UserError(f"{what}: refused by {constants.ENDPOINT} ({error.response.status_code}: {reason}).") from None
    except (HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise UserError(f"{what}: failed at {constants.ENDPOINT} ({' '.join(str(error).split())}).") from None
