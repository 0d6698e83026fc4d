"""Decode an image file with Pillow, whatever its bytes are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gan.data.metadata import turn_upright, without_metadata
from gan.data.pixel_modes import PNG_BITS, UnknownRangeError, is_grey, to_eight_bits
from gan.utils.errors import UserError
from gan.utils.safe_reading import read_file

Pixels: TypeAlias = NDArray[np.uint8]

# Larger than any image that Pillow agrees to decode: a larger file is a decompression bomb, or no image.
MAX_FILE_BYTES = 2**29
_UNCERTAIN = ("CUR", "ICNS", "ICO")  # formats of which Pillow knows the mode only after decoding


@lru_cache(1)
def readable_formats() -> tuple[str, ...]:
    """Return the formats that Pillow decodes itself.

    It also opens formats that it has no decoder for. For EPS it would start Ghostscript, which runs the file as a program,
    and an IPTC file may contain an image of any format, EPS included.
    """
    Image.init()  # loads all of Pillow's plugins
    return tuple(sorted(Image.OPEN.keys() - {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}))


def ending_of(file: str) -> str:
    """Return the ending of a file's name, such as ".png". (pathlib would take a second for 50,000 names.)"""
    stem, dot, ending = file.rpartition(".")
    return dot + ending.lower() if stem else ""


def require_size(size: int, where: str) -> None:
    """Raise UserError about ``where`` for a file of more than ``MAX_FILE_BYTES`` bytes."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: {size:,} bytes are no image (at most {MAX_FILE_BYTES:,}). Remove it.")


def decode(content: bytes, where: str) -> Image.Image:
    """Decode an image file's ``content`` to 8-bit grey ("L") or colour ("RGB"), upright, over white if it is transparent.

    ``where`` names the file in errors. Metadata that cannot be read is ignored.

    Raises UserError for content that cannot be decoded, for a mode whose range is unknown, and for an image of more than
    90 million pixels (360 MB): Pillow warns of these as decompression bombs.
    """
    try:
        with _strict_warnings():
            image = _load(content, where)
            turn = turn_upright(image)
            image = to_eight_bits(image)
            return image if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        raise UserError(f"{where}: not an image in any format that Pillow reads. Repair or remove it.") from None
    except UnknownRangeError as error:
        raise UserError(f"{where}: {error}, or remove it.") from None
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # noqa: BLE001 (arbitrary bytes can make a decoder raise anything)
        raise UserError(f"{where}: a damaged image ({str(error) or type(error).__name__}). Repair or remove it.") from None


def decode_file(path: Path) -> Image.Image:
    """Decode the image file at ``path`` as ``decode``. Raises UserError as it does, and for a file that cannot be read."""
    try:
        return decode(read_file(path, MAX_FILE_BYTES), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def has_grey_mode(content: bytes, where: str) -> bool:
    """Return whether an image file's header states a mode without colour. Raises UserError as ``decode``."""
    with suppress(Exception), _strict_warnings():  # of metadata, or of damage that `decode` names
        image = _open(content, where)
        if image.format not in _UNCERTAIN:
            return is_grey(image)
    return decode(content, where).mode == "L"


@contextmanager
def _strict_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings of oddities in a file that can be read, but raise that of a decompression bomb."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # an error by itself from twice as many pixels
        yield


def _load(content: bytes, where: str) -> Image.Image:
    """Decode ``content``, without its metadata if that prevents it. Raises what Pillow raises."""
    try:
        image = _opened(content, where)
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        pixels = without_metadata(content)
        if pixels is None or pixels == content:
            raise
        try:
            image = _opened(pixels, where)
            image.load()
        except Exception:  # noqa: BLE001 (as in `decode`)
            raise error from None
    return image


def _opened(content: bytes, where: str) -> Image.Image:
    """Open ``content``, and note the bits of a PNG."""
    image = _open(content, where)
    if image.format == "PNG":
        image.info[PNG_BITS] = content[24]  # of its first chunk
    return image


def _open(content: bytes, where: str) -> Image.Image:
    """Open ``content`` in the format that its name promises, or else in any.

    Pillow alone would try several other formats first, which takes half of the time for a small image.
    """
    expected = Image.EXTENSION.get(ending_of(where))
    try:
        return Image.open(BytesIO(content), formats=(expected,) if expected in readable_formats() else readable_formats())
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=readable_formats())
