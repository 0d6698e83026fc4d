"""Metadata are not pixels: an image whose metadata cannot be read is decoded all the same."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gan.data.decoding import decode
from gan.utils.errors import UserError
from tests.data.test_decoding import chunk, encoded


def exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """Return EXIF with the entries (tag, type, count, 4 bytes of value or offset) and ``tail``, which follows them."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + tail


def long(value: int) -> bytes:
    return struct.pack("<I", value)


TURNED = (0x0112, 3, 1, long(3))  # upside down
WHITE_BELOW = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 16)[:, None].repeat(32, 1)).convert("RGB")
BAD_EXIF: dict[str, bytes] = {
    "a resolution in words": exif(TURNED, (0x011A, 2, 4, b"300\0")),
    "a negative denominator": exif(TURNED, (0x9204, 10, 1, long(38)), tail=struct.pack("<ii", 5, -3)),
    "a division by zero": exif(TURNED, (0x011A, 10, 1, long(38)), tail=struct.pack("<ii", -1, 0)),
    "a type that does not exist": exif(TURNED, (0x010F, 77, 3, b"abcd")),
    "an offset beyond the end": exif(TURNED, (0x8769, 4, 1, long(2**31))),
    "text where an offset is expected": exif(TURNED, (0x8825, 2, 3, b"ab\0\0")),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", BAD_EXIF)
def test_a_bad_entry_of_the_exif_leaves_the_pixels_and_the_orientation(kind: str, format: str) -> None:
    pixels = np.asarray(decode(encoded(WHITE_BELOW, format, exif=BAD_EXIF[kind]), "a.bin"))
    assert pixels[:15].min() > 250
    assert pixels[17:].max() < 5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("content", [b"Exif\0\0", b"Exif\0\0nonsense" * 9, exif(TURNED)[:17]])
def test_an_exif_that_is_nonsense_leaves_the_pixels(content: bytes, format: str) -> None:
    pixels = np.asarray(decode(encoded(WHITE_BELOW, format, exif=content), "a.bin"))
    assert pixels[:15].max() < 5
    assert pixels[17:].min() > 250


def in_png(name: bytes, data: bytes) -> bytes:
    content = encoded(WHITE_BELOW, "PNG", exif=exif(TURNED))
    return content[:33] + chunk(name, data) + content[33:]


def in_jpeg(kind: int, data: bytes) -> bytes:
    content = encoded(WHITE_BELOW, "JPEG", exif=exif(TURNED))
    return content[:2] + bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data + content[2:]


LONG = zlib.compress(b"metadata" * 2**19)  # 4 MB
BAD_METADATA: dict[str, Callable[[], bytes]] = {
    "long compressed text": lambda: in_png(b"zTXt", b"Comment\0\0" + LONG),
    "long international text": lambda: in_png(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "a long colour profile": lambda: in_png(b"iCCP", b"profile\0\0" + LONG),
    "a resolution cut short": lambda: in_png(b"pHYs", b"\0\1"),
    "a gamma cut short": lambda: in_png(b"gAMA", b"\0\1"),
    "a wrong checksum of a text": lambda: in_png(b"tEXt", b"Comment\0text").replace(b"Comment\0text", b"Comment\0test"),
    "jfif cut short": lambda: in_jpeg(0xE0, b"JFIF\0"),
    "adobe cut short": lambda: in_jpeg(0xEE, b"Adobe"),
    "photoshop cut short": lambda: in_jpeg(0xED, b"Photoshop 3.0\0008BIM\4"),
    "a wrong index of several pictures": lambda: in_jpeg(0xE2, b"MPF\0II*\0nonsense"),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_bad_metadata_leaves_the_pixels_and_the_orientation(kind: str) -> None:
    pixels = np.asarray(decode(BAD_METADATA[kind](), "a.bin"))
    assert pixels[:15].min() > 250
    assert pixels[17:].max() < 5


def test_a_text_does_not_hide_damaged_pixels() -> None:
    content = in_png(b"zTXt", b"Comment\0\0" + LONG)
    with pytest.raises(UserError, match="damaged image"):
        decode(content[:-60], "a.png")


def test_metadata_written_by_pillow_is_no_reason_to_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "text", zip=True)
    monkeypatch.setattr("gan.data.decoding.without_metadata", pytest.fail)
    assert decode(encoded(WHITE_BELOW, "PNG", pnginfo=text, dpi=(72, 72)), "a.png").size == (32, 32)
