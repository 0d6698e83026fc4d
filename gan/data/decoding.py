"""An image file's bytes as pixels, by Pillow; a file may claim anything and be anything."""

import warnings
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from gan.utils.errors import UserError

# Larger than any image that Pillow agrees to decode: what claims more is a bomb, or no image.
MAX_FILE_BYTES = 2**29


@lru_cache(1)
def _formats() -> tuple[str, ...]:
    """What Pillow decodes itself. It also opens formats that it has no decoder for; for EPS it would start Ghostscript, which
    runs the file as a program, and an IPTC file may hold one of any format, such as EPS."""
    Image.init()  # loads all of Pillow's plugins
    return tuple(sorted(Image.OPEN.keys() - {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}))


@lru_cache(1)
def _image_endings() -> frozenset[str]:
    return frozenset(ending for ending, format in Image.registered_extensions().items() if format in _formats())


def is_image_name(name: str) -> bool:
    """Of a file's path with slashes. By text alone: pathlib would take a second for 50,000 names."""
    *folders, file = name.split("/")
    return _ending(file) in _image_endings() and not file.startswith(".") and "__MACOSX" not in folders


def _ending(file: str) -> str:
    stem, dot, ending = file.rpartition(".")
    return dot + ending.lower() if stem else ""


def require_size(size: int, where: str) -> None:
    """Raises UserError about ``where`` for a file of more bytes than an image has."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: {size:,} bytes are no image (at most {MAX_FILE_BYTES:,}). Remove it.")


def decode(content: bytes, where: str) -> Image.Image:
    """The image in the file ``content``. Raises UserError about ``where`` for one that Pillow warns of, as larger than any it
    would expect (90 million pixels, 360 MB), and what cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in a file that can be read all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # it takes twice as many pixels to be an error
            image = _open(content, Image.EXTENSION.get(_ending(where)))
            image.load()
            if image.mode == "LAB":
                raise ValueError("CIELAB colours, which Pillow does not convert")
            # Of a small JPEG, a tenth of the time goes into looking for an orientation where there can be none.
            plain = image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}
            return image if plain else ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UserError(f"{where}: not an image in any format that Pillow reads. Mend or remove it.") from None
    except Exception as error:  # noqa: BLE001 (a decoder meets any bytes, and trips over them in any way)
        raise UserError(f"{where}: a damaged image ({error or type(error).__name__}). Mend or remove it.") from None


def _open(content: bytes, expected: str | None) -> Image.Image:
    """The image in ``content``: of the format that its name promises, or of any. Pillow alone would try several others first,
    which takes half of the time for a small image."""
    try:
        return Image.open(BytesIO(content), formats=(expected,) if expected in _formats() else _formats())
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=_formats())


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
