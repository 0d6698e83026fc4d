"""An image file without its metadata, and the orientation that the metadata states."""

from PIL import Image

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Chunks that pixels depend on, and EXIF, which states the orientation.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_XMP = b"XML:com.adobe.xmp\0\0"  # start of a PNG text chunk with XMP that is not compressed
_MAX_XMP = 2**20  # bytes
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn ``image`` as its EXIF or XMP states; None if they state nothing or cannot be read.

    ImageOps.exif_transpose fails where any entry of the EXIF is invalid, since it writes the EXIF anew.
    """
    # For a small JPEG without EXIF and XMP, the search for an orientation would take a tenth of the time.
    if image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}:
        return None
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (arbitrary bytes can make the parser raise anything)
        return None


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG or JPEG file with the pixels alone, and its EXIF; None for other files."""
    if content.startswith(_PNG):
        return _png_pixels(content)
    return _jpeg_pixels(content) if content.startswith(_JPEG) else None


def _png_pixels(content: bytes) -> bytes:
    """Keep the chunks of a PNG that its pixels and its orientation depend on.

    A chunk is the length of its data (4 bytes, most significant first), its name, the data and a checksum.
    """
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        name, data = content[start + 4 : start + 8], content[start + 8 : end - 4]
        if name in _PNG_CHUNKS or (name == b"iTXt" and data.startswith(_XMP) and len(data) < _MAX_XMP):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _jpeg_pixels(content: bytes) -> bytes:
    """Remove comments and application segments from the header of a JPEG, but EXIF and Adobe's colour transform.

    A segment is 0xff, its kind, and its length (2 bytes, with themselves). The scan (0xda) ends the header.
    """
    kept, start = [_JPEG], len(_JPEG)
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] not in (b"\xda", b""):
        kind, end = content[start + 1], start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        segment = content[start + 4 : end]
        exif = kind == 0xE1 and segment.startswith(b"Exif\0\0")
        adobe = kind == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12
        if exif or adobe or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])
