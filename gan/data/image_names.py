"""Which files of a folder or zip are images, by their names."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from gan.data.decoding import ending_of, readable_formats
from gan.utils.errors import UserError

# What systems and storage servers put beside a user's files, in lower case: previews, recycle bins and views of a folder.
_SYSTEM_NAMES = frozenset(
    (
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "$recycle.bin",
        "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
    )
)  # fmt: skip
_MOST_KINDS = 5  # of skipped files that are named


@lru_cache(1)
def _image_endings() -> frozenset[str]:
    return frozenset(ending for ending, format in Image.registered_extensions().items() if format in readable_formats())


def is_image_name(name: str) -> bool:
    """Return whether the ending of ``name``, a path with slashes, is that of an image."""
    return ending_of(name.rpartition("/")[2]) in _image_endings()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this ``name`` (without a path) is hidden, or one of a system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def plain_name(name: str) -> str:
    """Return the path of a zip's entry with slashes, without empty parts, "." and "..".

    Programs of Windows write backslashes, which a zip may not hold but as separators.
    """
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def visible_files(root: Path) -> tuple[list[str], list[str]]:
    """Return the files below ``root`` that are not hidden, as paths with slashes, and a remark on links that lead nowhere.

    Linked folders are entered, but for those that lead back to a folder above them. Raises UserError for a folder that cannot
    be read.
    """
    names: list[str] = []
    left_out: list[str] = []
    pending = [("", os.path.realpath(root), frozenset[str]())]
    while pending:
        prefix, real, above = pending.pop()
        above |= {real}
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if is_hidden(entry.name):
                        continue
                    if _leads_nowhere(entry):  # with the name of an image it is a damaged one
                        (names if is_image_name(name) else left_out).append(name)
                    elif entry.is_dir():
                        inner = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
                        if inner in above:
                            left_out.append(name)
                        else:
                            pending.append((name + "/", inner, above))
                    else:
                        names.append(name)
        except OSError as error:
            where = error.filename or root / prefix
            raise UserError(f"{where}: cannot be read ({error.strerror}), so some images would be missing.") from None
    if not left_out:
        return names, []
    links = f"{len(left_out)} link{'s' if len(left_out) > 1 else ''}"
    return names, [f"{root}: {links} to nowhere or to a folder above left out: {', '.join(sorted(left_out)[:_MOST_KINDS])}"]


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 (Path.exists raises OSError for a loop)


def images_among(names: Iterable[str], where: Path) -> tuple[list[str], list[str]]:
    """Return those of the ``names`` that are images, in order, and a remark that counts the others by their ending."""
    images, others = [], Counter[str]()
    for name in names:
        if is_image_name(name):
            images.append(name)
        else:
            others[ending_of(name.rpartition("/")[2]) or "without an ending"] += 1
    if not others:
        return sorted(images), []
    kinds = [f"{count:,} {kind}" for kind, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    more = ["others"] if len(others) > _MOST_KINDS else []
    total = others.total()
    return sorted(images), [
        f"{where}: {total:,} file{'s' if total > 1 else ''} of other kinds left out: {', '.join(kinds[:_MOST_KINDS] + more)}"
    ]
