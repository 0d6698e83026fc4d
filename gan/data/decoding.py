"""Decode an image file with Pillow, whatever its bytes are."""

import warnings
from functools import lru_cache
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from gan.utils.errors import UserError

Pixels: TypeAlias = NDArray[np.uint8]

# Larger than any image that Pillow agrees to decode: a larger file is a decompression bomb, or no image.
MAX_FILE_BYTES = 2**29


@lru_cache(1)
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow decodes itself.

    It also opens formats that it has no decoder for. For EPS it would start Ghostscript, which runs the file as a program,
    and an IPTC file may contain an image of any format, EPS included.
    """
    Image.init()  # loads all of Pillow's plugins
    return tuple(sorted(Image.OPEN.keys() - {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}))


@lru_cache(1)
def _image_endings() -> frozenset[str]:
    return frozenset(ending for ending, format in Image.registered_extensions().items() if format in _formats())


def is_image_name(name: str) -> bool:
    """Return whether ``name``, a path with slashes, is that of an image: by its ending, not hidden, not of macOS's own."""
    *folders, file = name.split("/")
    return _ending(file) in _image_endings() and not file.startswith(".") and "__MACOSX" not in folders


def _ending(file: str) -> str:
    """Return the ending of a file's name, such as ".png". (pathlib would take a second for 50,000 names.)"""
    stem, dot, ending = file.rpartition(".")
    return dot + ending.lower() if stem else ""


def require_size(size: int, where: str) -> None:
    """Raise UserError about ``where`` for a file of more than ``MAX_FILE_BYTES`` bytes."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: {size:,} bytes are no image (at most {MAX_FILE_BYTES:,}). Remove it.")


def decode(content: bytes, where: str) -> Image.Image:
    """Decode an image file's ``content``, turned upright if it says how. ``where`` names the file in errors.

    Raises UserError for content that cannot be decoded, and for an image of more than 90 million pixels (360 MB): Pillow
    warns of these as decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in a file that can be read nevertheless
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # an error by itself from twice as many pixels
            image = _open(content, Image.EXTENSION.get(_ending(where)))
            image.load()
            if image.mode == "LAB":
                raise ValueError("CIELAB colours, which Pillow does not convert")
            # For a small JPEG without EXIF and XMP, the search for an orientation would take a tenth of the time.
            plain = image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}
            return image if plain else ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UserError(f"{where}: not an image in any format that Pillow reads. Repair or remove it.") from None
    except Exception as error:  # noqa: BLE001 (arbitrary bytes can make a decoder raise anything)
        raise UserError(f"{where}: a damaged image ({error or type(error).__name__}). Repair or remove it.") from None


def _open(content: bytes, expected: str | None) -> Image.Image:
    """Open ``content`` in the format that its name promises, or else in any.

    Pillow alone would try several other formats first, which takes half of the time for a small image.
    """
    try:
        return Image.open(BytesIO(content), formats=(expected,) if expected in _formats() else _formats())
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=_formats())


def is_grey(image: Image.Image) -> bool:
    """Return whether the image's mode has no colour: one channel, with or without transparency."""
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
