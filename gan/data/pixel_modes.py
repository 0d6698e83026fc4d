"""Images of any of Pillow's modes as 8-bit grey or colour, each scaled by the range of its own mode."""

import numpy as np
from PIL import Image

PNG_BITS = "msngan_png_bits"  # entry of an image's info: bits a channel of the PNG that it was read from
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_GREY = ("1", "L", "LA", "La")  # 8 bits or fewer, with or without transparency
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
# Formats that state how 16 bits are used; FITS and McIDAS hold measurements in any range.
_MEASUREMENTS = ("FITS", "MCIDAS")


class UnknownRangeError(ValueError):
    """The values of an image have a range that its file does not state."""


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a loaded ``image`` in mode "L" if its mode is grey, else in "RGB", composited over a white background.

    Grey of 16 bits keeps its 8 most significant bits, as Pillow does for colour. Mode "I" (32-bit integers) holds values
    from 0 to 65535. Raises UnknownRangeError for a mode whose range is unknown, and values out of that range.
    """
    if is_deep_grey(image):
        image = _reduce_depth(image)
    elif _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise UnknownRangeError(_unknown("signed integers"))
    if image.mode not in _GREY + _COLOUR:
        raise UnknownRangeError(f"mode {image.mode}, which Pillow does not convert. Save it as 8-bit RGB")
    if image.mode == "P" and image.palette is None:  # as in an ICNS, of which only Pillow's core knows the palette
        image = image.convert("RGBA")
    target = "L" if is_grey(image) else "RGB"
    if image.has_transparency_data:
        return _over_background(image, target)
    return image if image.mode == target else image.convert(target)


def is_grey(image: Image.Image) -> bool:
    """Return whether the image's mode has no colour: one channel, with or without transparency."""
    return image.mode in _GREY or is_deep_grey(image)


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether the image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _unknown(found: str) -> str:
    return f"{found}, whose range is unknown. Save it with 8 bits, or with 16 bits from 0 to 65535"


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Return an image of mode "I" or "I;16" in mode "L", or "LA" if one of its values stands for transparency."""
    if image.mode == "F":
        raise UnknownRangeError(_unknown("floating-point numbers"))
    if image.format in _MEASUREMENTS or (image.mode == "I" and _tiff_tag(image, _BITS) == 16):
        raise UnknownRangeError(_unknown("measurements or signed integers"))
    values = np.asarray(image).astype(np.int64)
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if lowest < 0 or highest > 65535:
        raise UnknownRangeError(_unknown(f"32-bit integers from {lowest} to {highest}"))
    # A PGM and a PNG state their range. A file of 32-bit integers that uses only 0..255 may be of 8 bits or a dark one of 16.
    if image.mode == "I" and image.format not in ("PNG", "PPM") and 0 < highest <= 255:
        raise UnknownRangeError(_unknown(f"32-bit integers of at most {highest}"))
    if _tiff_tag(image, _BITS) == 12:
        values = values << 4 | values >> 8
    if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values  # Pillow inverts these for up to 8 bits only
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """Return the first value of a ``tag`` of a TIFF; None for other formats and missing tags."""
    value = getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value


def _over_background(image: Image.Image, target: str) -> Image.Image:
    """Composite an image with an alpha channel, a transparent palette or a transparent colour over the background."""
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha, which Pillow converts in this one way
        image = image.convert(image.mode.upper())
    colour, bits = image.info.get("transparency"), image.info.get(PNG_BITS)
    if isinstance(colour, tuple) and bits == 16:  # Pillow keeps the upper 8 of the pixels
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif isinstance(colour, int) and bits in (2, 4) and image.mode == "L":  # Pillow scales the pixels alone
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    layers = image.convert("LA" if target == "L" else "RGBA")
    flat = Image.new(target, image.size, "white")
    flat.paste(layers.convert(target), mask=layers.getchannel("A"))
    return flat
