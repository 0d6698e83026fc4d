"""Image files of every mode, with any metadata, become 8-bit grey or colour pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gan.data import decoding
from gan.data.datasets import to_pixels
from gan.data.decoding import decode, has_grey_mode, readable_formats
from gan.utils.errors import UserError

Image.init()
MODES = [*Image.MODES, "I;16L", "I;16B"]
FORMATS = sorted(Image.SAVE.keys() & set(readable_formats()))
SIZE = (16, 16)
RAMP = np.tile(np.arange(256), (16, 1))  # 16 rows of all greys


def picture(mode: str) -> Image.Image:
    """Return an image of ``mode`` with random values in the whole range of the mode."""
    draw = np.random.default_rng(len(mode))
    if mode == "F":
        return Image.fromarray(draw.random(SIZE, np.float32))
    if mode == "I":
        return Image.fromarray(draw.integers(0, 65536, SIZE, np.int32))
    if mode in ("P", "PA"):
        image = Image.fromarray(draw.integers(0, 256, (*SIZE, 3), np.uint8)).quantize(16)
        return image if mode == "P" else image.convert("PA")
    if mode == "1":
        return Image.fromarray(draw.integers(0, 256, SIZE, np.uint8)).convert("1")
    channels = len(Image.getmodebands(mode) * "x") * (2 if mode.startswith("I;16") else 1)
    content = draw.integers(0, 256, SIZE[0] * SIZE[1] * channels, np.uint8)
    if mode in ("RGBa", "La"):  # a colour multiplied by alpha is at most alpha
        content = np.sort(content.reshape(-1, channels), axis=1).ravel()
    return Image.frombytes(mode, SIZE, content.tobytes())


def by_hand(image: Image.Image) -> NDArray[np.float64]:
    """Return the values of ``image`` from 0 to 255, over white: (H, W) or (H, W, 3), computed without Pillow's conversions."""
    values = np.asarray(image).astype(np.float64)
    mode, transparent = image.mode, image.info.get("transparency")
    if mode == "1":
        values = values * 255
    if mode == "I" or mode.startswith("I;16"):
        values = values / 257
    if mode in ("P", "PA"):
        indices = np.asarray(image)[..., 0] if mode == "PA" else np.asarray(image)
        table = np.array(image.getpalette("RGBA"), np.float64).reshape(-1, 4)
        table = np.concatenate([table, np.zeros((256 - len(table), 4))])
        if isinstance(transparent, bytes):
            table[: len(transparent), 3] = list(transparent)
        elif transparent is not None:
            table[transparent, 3] = 0
        values = table[indices]
        if mode == "PA":
            values[..., 3] = np.asarray(image)[..., 1]
        return over_white(values[..., :3], values[..., 3:])
    if mode in ("LA", "RGBA"):
        colour = values[..., :-1]
        return over_white(colour[..., 0] if mode == "LA" else colour, values[..., -1] if mode == "LA" else values[..., -1:])
    if mode in ("La", "RGBa"):
        return values[..., 0] + 255 - values[..., -1] if mode == "La" else values[..., :-1] + 255 - values[..., -1:]
    if mode == "CMYK":
        return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    if mode == "YCbCr":
        y, cb, cr = values[..., 0], values[..., 1] - 128, values[..., 2] - 128
        return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)
    return values[..., :3] if mode == "RGBX" else values


def over_white(colour: NDArray[np.float64], alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    return (colour * alpha + 255 * (255 - alpha)) / 255


@pytest.mark.parametrize("format", [pytest.param(f, marks=[pytest.mark.slow] if f == "ICNS" else []) for f in FORMATS])
def test_every_mode_and_format_that_pillow_writes_has_pillows_pixels_scaled_by_hand(format: str) -> None:
    written = 0
    for mode in MODES:
        file = io.BytesIO()
        try:
            picture(mode).save(file, format)
        except (OSError, ValueError, KeyError, SystemError):  # Pillow writes no such file
            continue
        written += 1
        content = file.getvalue()
        stored = Image.open(io.BytesIO(content))
        stored.load()
        if stored.mode in ("F", "LAB"):
            with pytest.raises(UserError, match=r"whose range is unknown|does not convert"):
                decode(content, f"{mode}.bin")
            continue
        expected = by_hand(stored)
        found = decode(content, f"{mode}.bin")
        assert found.mode == ("L" if expected.ndim == 2 else "RGB"), mode
        assert has_grey_mode(content, f"{mode}.bin") == (expected.ndim == 2), mode
        assert np.abs(np.asarray(found) - expected).max() <= 2, mode
        assert np.array_equal(to_pixels(found, 3)[0], np.asarray(found.convert("RGB"))[..., 0])
    assert written, "Pillow writes no mode in this format"


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tiff(values: NDArray[np.generic], *tags: tuple[int, int]) -> bytes:
    """Return a grey TIFF of one strip, with the pairs (number, value) among its ``tags``; SampleFormat and so on as given."""
    known = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.dtype.itemsize, 259: 1, 262: 1, 277: 1}
    content = values.tobytes()
    known |= {278: values.shape[0], 279: len(content), **dict(tags)}
    known[273] = 8 + 2 + 12 * (len(known) + 1) + 4
    entries = b"".join(struct.pack("<HHII", number, 4, 1, known[number]) for number in sorted(known))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(known)) + entries + bytes(4) + content


DEEP = {
    "png of 16 bits": lambda: encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "PNG"),
    "tiff of 16 bits": lambda: tiff((RAMP * 257).astype("<u2")),
    "tiff of 16 bits where white is 0": lambda: tiff((65535 - RAMP * 257).astype("<u2"), (262, 0)),
    "tiff of 32 bits": lambda: tiff((RAMP * 257).astype("<u4")),
    "tiff of 32 bits with a sign": lambda: tiff((RAMP * 257).astype("<i4"), (339, 2)),
    "pgm of 10 bits": lambda: b"P5 256 16 1023\n" + np.rint(RAMP * (1023 / 255)).astype(">u2").tobytes(),
    "pgm of 16 bits": lambda: b"P5 256 16 65535\n" + (RAMP * 257).astype(">u2").tobytes(),
    "plain pgm of 12 bits": lambda: b"P2 256 16 4095\n" + b" ".join(b"%d" % v for v in np.rint(RAMP.ravel() * (4095 / 255))),
    "jpeg 2000 of 16 bits": lambda: encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "JPEG2000", irreversible=False),
    "im of 16 bits": lambda: encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "IM"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_keeps_every_level_of_eight_bits(kind: str) -> None:
    pixels = to_pixels(decode(DEEP[kind](), "a.bin"), 1)[0].astype(int)
    assert np.abs(pixels - RAMP).max() <= 1
    assert pixels[0, 0] == 0
    assert pixels[0, 255] == 255


def test_tiff_of_twelve_bits_is_scaled_by_its_own_range() -> None:
    values = np.rint(RAMP * (4095 / 255)).astype(np.uint32).reshape(16, -1, 2)  # two values share three bytes
    first, second = values[..., 0], values[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    content = tiff(packed.reshape(16, -1), (256, 256), (258, 12))
    assert np.abs(np.asarray(decode(content, "a.tif")).astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiff(np.full((8, 8), 0.5, "<f4"), (339, 3)), "floating-point numbers"),
        (encoded(Image.fromarray(np.full((8, 8), 200, np.float32)), "TIFF"), "floating-point numbers"),
        (b"PF 8 8\n-1.0\n" + np.full((8, 8, 3), 0.5, "<f4").tobytes(), "not an image in any format"),
        (b"Pf 8 8\n-1.0\n" + np.full((8, 8), 0.5, "<f4").tobytes(), "floating-point numbers"),
        (tiff(np.full((8, 8), 2**31 - 1, "<i4"), (339, 2)), "32-bit integers from 2147483647"),
        (tiff(np.full((8, 8), -1, "<i4"), (339, 2)), "32-bit integers from -1"),
        (tiff(np.full((8, 8), 200, "<i4"), (339, 2)), "32-bit integers of at most 200"),  # of 8 bits, or dark ones of 16
        (tiff(np.full((8, 8), 200, "<i2"), (339, 2)), "signed integers"),
        (tiff(np.full((8, 8), 200, np.uint8), (339, 2)), "signed integers"),
    ],
)
def test_a_range_that_the_file_does_not_state_is_refused(content: bytes, found: str) -> None:
    with pytest.raises(UserError, match=found) as caught:
        decode(content, "a.bin")
    assert "remove it." in str(caught.value)


def hidden(kind: str) -> bytes:
    """Return a square of one colour, transparent but for the middle, whose colours differ between two calls with one name."""
    seen = np.zeros((32, 32), bool)
    seen[8:24, 8:24] = True
    colours = np.random.default_rng(hidden.calls).integers(0, 255, (32, 32, 3), np.uint8)  # type: ignore[attr-defined]
    colours[seen] = (200, 30, 60)
    hidden.calls += 1  # type: ignore[attr-defined]
    alpha = Image.fromarray((seen * 255).astype(np.uint8))
    image = Image.fromarray(colours)
    if kind in ("LA", "La"):
        image = image.convert("L")
    image.putalpha(alpha)
    if kind in ("La", "RGBa"):
        return encoded(image, "TIFF")
    if kind == "webp":
        return encoded(image, "WEBP", lossless=True, exact=True)
    if kind in ("PA", "palette", "gif"):
        indices = np.where(seen, 1, 0).astype(np.uint8)
        flat = Image.fromarray(indices).convert("P")
        flat.putpalette([*colours[0, 0].tolist(), 200, 30, 60])
        return encoded(flat, "GIF" if kind == "gif" else "PNG", transparency=0)
    if kind == "colour key":
        key = tuple(colours[0, 0].tolist())
        flat_colours = np.where(seen[..., None], (200, 30, 60), key).astype(np.uint8)
        return encoded(Image.fromarray(flat_colours), "PNG", transparency=key)
    if kind == "grey key":
        level = int(colours[0, 0, 0]) % 100
        return encoded(Image.fromarray(np.where(seen, 150, level).astype(np.uint8)), "PNG", transparency=level)
    if kind == "deep grey key":
        level = 500 + int(colours[0, 0, 0])
        return deep_grey(np.where(seen, 150 * 257, level), level)
    return encoded(image, "PNG")


hidden.calls = 0  # type: ignore[attr-defined]


def deep_grey(values: NDArray[np.generic], key: int) -> bytes:
    header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "kind", ["RGBA", "LA", "La", "RGBa", "webp", "palette", "gif", "colour key", "grey key", "deep grey key"]
)
def test_what_is_transparent_is_white_whatever_colours_it_hides(kind: str) -> None:
    pixels = [to_pixels(decode(hidden(kind), "a.bin"), 3) for _ in range(3)]
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0], pixels[2])
    assert (pixels[0][:, :8] == 255).all()
    assert (pixels[0][:, 8:24, 8:24] < 255).all()


def test_half_transparent_black_over_white_is_half_grey() -> None:
    content = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "PNG")  # 20 %
    assert (np.asarray(decode(content, "a.png")) == 204).all()


def test_an_opaque_image_with_an_alpha_channel_keeps_its_pixels() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = Image.fromarray(colours)
    image.putalpha(255)
    assert np.array_equal(np.asarray(decode(encoded(image, "PNG"), "a.png")), colours)


def test_a_palette_becomes_grey_as_pillow_makes_it() -> None:
    image = picture("P")
    assert np.array_equal(to_pixels(decode(encoded(image, "PNG"), "a.png"), 1)[0], np.asarray(image.convert("L")))


def test_memory_that_runs_out_is_not_damage_and_an_error_without_words_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((MemoryError(), MemoryError), (OSError(), UserError)):

        def fail(_content: bytes, _where: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(decoding, "_open", fail)
        with pytest.raises(expected) as caught:
            decode(b"", "a.png")
    assert "a damaged image (OSError)" in str(caught.value)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_level_of_few_bits_is_put_over_white(bits: int) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    row = b"\0" + bytes([(1 << 8 - bits) | (2 << 8 - 2 * bits)])
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*pair)
        for pair in ((b"IHDR", header), (b"tRNS", struct.pack(">H", 1)), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    )
    assert np.asarray(decode(content, "a.png")).tolist() == [[255, 2 * 255 // (2**bits - 1)]]


def test_a_dark_transparent_colour_of_16_bits_is_not_taken_for_a_bright_one() -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 100, 100, 100, 25700, 25700, 25700)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*pair)
        for pair in (
            (b"IHDR", header),
            (b"tRNS", struct.pack(">3H", 100, 100, 100)),
            (b"IDAT", zlib.compress(row)),
            (b"IEND", b""),
        )
    )
    assert np.asarray(decode(content, "a.png")).tolist() == [[[255] * 3, [100] * 3]]


@pytest.mark.parametrize("bits", [4, 16])
def test_transparency_is_kept_where_metadata_has_to_be_left_out(bits: int) -> None:
    if bits == 4:
        image, transparent = Image.new("P", (2, 2), 3), bytes([255, 255, 255, 0])
        image.putpalette([40] * 3 + [50] * 3 + [60] * 3 + [70] * 3)
        plain = encoded(image, "PNG", bits=4, transparency=transparent)
    else:
        plain = sixteen_bit_png((0x1234, 0x5678, 0x9ABC))
    position = plain.index(b"IDAT") - 4
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2**27))  # larger than Pillow reads
    long = plain[:position] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + plain[position:]
    pixels = [np.asarray(decode(content, "a.png").convert("RGB")) for content in (plain, long)]
    assert (pixels[0] == 255).all(), "transparent pixels are white"
    assert np.array_equal(*pixels)


def sixteen_bit_png(colour: tuple[int, int, int]) -> bytes:
    """Return a PNG of 2x2 pixels of a colour, which is transparent."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    values = struct.pack(">3H", *colour)
    rows = 2 * (b"\0" + 2 * values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", values) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
