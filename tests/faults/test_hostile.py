"""Hostile files, read in this process: refused in one line, no code run, nothing read that has no bound."""

import io
import json
import logging
import os
import shutil
import signal
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

import eval.__main__ as program
from eval.extractors import load_extractor
from eval.feature_cache import cache_folder
from eval.features import PART, extract
from eval.npz import read_arrays
from eval.statistics import load_stats
from gan.config import load_config
from gan.data import datasets, image_files
from gan.data.datasets import load_images, to_pixels
from gan.data.decoding import decode
from gan.inference.generator import load_generator
from gan.models.build import build_generator
from gan.runs import checkpoints, scores
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.safe_reading import Archive, parse_json, printable, read_file, read_records
from gan.utils.settings import MAX_BYTES, DataConfig, to_yaml
from gan.utils.tensor_files import load_tensors
from tests.faults import hostile
from tests.faults.hostile import MIB, Code, npy, npz, png, png_chunk, saved
from tests.small import SmallImages, change_settings, scale_down, small_extractor

PIXELS = png_chunk(b"IDAT", zlib.compress(bytes(32 * (32 * 3 + 1))))
GOOD = png(32, 32, PIXELS)


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """A file without an end would otherwise stop the tests for good."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading after 60 seconds"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def all_images(path: Path, channels: int | None = 3) -> torch.Tensor:
    images = load_images(DataConfig(name="folder", path=str(path), channels=channels))
    return images.decode_all(lambda items, _total, _what: items)


def folder_with(tmp_path: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder


# Images


@pytest.mark.parametrize(("ending", "side"), [*((ending, 60_000) for ending in hostile.HEADERS), ("png", 10_000)])
def test_a_header_that_claims_too_many_pixels_is_refused_in_every_format(ending: str, side: int, tmp_path: Path) -> None:
    side = min(side, 16_383) if ending == "webp" else side  # all that its header can say
    folder = folder_with(tmp_path, f"a.{ending}", hostile.HEADERS[ending](side, side))
    with pytest.raises(UserError, match=r"exceeds limit of .* pixels"):
        all_images(folder)


def test_texts_of_a_png_that_unpack_to_a_hundred_megabytes_are_left_packed() -> None:
    large, small = zlib.compress(bytes(100 * MIB)), zlib.compress(bytes(MIB - 10))
    chunks = {
        "profile": png_chunk(b"iCCP", b"x\0\0" + large),
        "text": png_chunk(b"zTXt", b"x\0\0" + large),
        "international text": png_chunk(b"iTXt", b"x\0\1\0\0\0" + large),
        "many texts": b"".join(png_chunk(b"zTXt", b"%d\0\0" % i + small) for i in range(80)),
    }
    before = peak()
    for chunk in chunks.values():
        assert decode(png(32, 32, chunk, PIXELS), "a.png").size == (32, 32)
    assert peak() - before < 90, "MiB"


def test_a_gif_of_a_million_frames_is_its_first(tmp_path: Path) -> None:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 32, 32, 0x80, 0, 0) + bytes(6)
    folder = folder_with(tmp_path, "a.gif", head + frame * 1_000_000 + b";")
    assert all_images(folder).shape == (1, 3, 32, 32)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_image_that_is_cut_off_is_refused_or_decoded(format: str) -> None:
    whole = encoded(format)
    for length in range(0, len(whole), 5):
        refused_or_decoded(whole[:length], f"a.{format.lower()}")


@given(
    st.sampled_from(
        ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "SGI", "PCX", "ICO", "JPEG2000", "DDS", "QOI", "AVIF"]
    ),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0.3, 1),
)
def test_an_image_changed_anywhere_is_refused_or_decoded(format: str, changes: list[tuple[float, int]], kept: float) -> None:
    content = bytearray(encoded(format))
    for place, value in changes:
        content[int(place**3 * len(content))] = value  # most at the start, where the headers are
    endings = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
    refused_or_decoded(bytes(content[: int(kept * len(content))]), f"a.{endings.get(format, format.lower())}")


def refused_or_decoded(content: bytes, name: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            assert to_pixels(decode(content, name), 3, 32).shape == (3, 32, 32)
        except UserError as error:
            assert str(error).startswith(f"{name}: ")
    assert not said, "a warning would be a second line"


def test_a_colour_space_that_pillow_does_not_convert_is_refused(tmp_path: Path) -> None:
    Image.new("LAB", (32, 32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: mode LAB, which Pillow does not convert"):
        all_images(tmp_path)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.iim", "a"])
def test_no_image_starts_ghostscript(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path / hostile.CANARY}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(UserError, match="not an image"):
        decode(POSTSCRIPT, name)
    assert not (tmp_path / hostile.CANARY).exists()


# Folders


def _pipe(path: Path) -> None:
    os.mkfifo(path)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_in_a_folder_of_images_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "0.png", GOOD)
    NO_FILES[kind](folder / "1.png")
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        all_images(folder)
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        load_images(DataConfig(name="folder", path=str(folder), channels=3)).source.content()


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "0.png", GOOD)
    (folder / "again").symlink_to(folder)
    assert len(all_images(folder)) == 1


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_pipe_or_device_is_read_as_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    NO_FILES[kind](path)
    for read in (lambda: read_file(path, 10), lambda: read_arrays(path, ("mu",)), lambda: Archive(path, table=10)):
        with pytest.raises(OSError):
            read()
    with pytest.raises(UserError, match="cannot be read"):
        load_stats(path)
    with pytest.raises(UserError, match=r"weights .*: cannot be read"):
        load_extractor("efficientnet-lite0", path)


# Zips


def test_a_zip_of_a_million_empty_entries_is_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile.many_entries(tmp_path / "a.zip", 10**6)
    monkeypatch.setattr(image_files, "MAX_TABLE_BYTES", 50 * 10**6)
    with pytest.raises(UserError, match=r"its table of contents has 51,000,000 bytes; at most 50,000,000 are read"):
        load_images(DataConfig(name="folder", path=str(path)))


def lying(path: Path, method: int, packed: bytes, size: int, flags: int = 0, name: bytes = b"a.png") -> Path:
    return hostile.raw_zip(path, [(name, packed, method, size, flags)])


def test_a_compressed_image_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    packed, _ = hostile.deflated_zeros(2**33)
    path = lying(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, packed, 100)
    before = peak()
    with pytest.raises(UserError, match=r"a\.png"):
        all_images(path)
    assert peak() - before < 200, "MiB"


def peak() -> int:
    """Most MiB that this process has had in memory."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 9, 93, 99])
def test_entries_whose_unpacking_has_no_bound_are_refused(method: int, tmp_path: Path) -> None:
    path = lying(tmp_path / "a.zip", method, bytes(1000), 100)
    with pytest.raises(UserError, match=rf"compressed by method {method}; only stored and deflated"):
        all_images(path)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encrypted"):
        all_images(lying(tmp_path / "a.zip", zipfile.ZIP_STORED, GOOD, len(GOOD), flags=1))


def test_a_link_in_a_zip_is_no_image(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="not an image"):
        all_images(tmp_path / "a.zip")


def test_entries_that_share_their_content_are_read_one_at_a_time(tmp_path: Path) -> None:
    # An overlapping bomb unpacks the same bytes for each of its entries. Here each is an image that must decode.
    path = hostile.raw_zip(tmp_path / "a.zip", [(b"%d.png" % i, GOOD, 0, len(GOOD), 0) for i in range(2)])
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = bytes(4)  # the place of the first
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        all_images(path)


ODD_NAMES = {
    "new line": b"a\nerror: all is well.png",
    "colours": b"\x1b[31m\x1b[2Ja.png",
    "a bell and a return": b"\a\ra.png",
    "right to left": "\u202egnp.a.png".encode(),
    "line separator": "\u2028\u0085a.png".encode(),
}


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_a_name_cannot_break_or_colour_the_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lying(tmp_path / "a.zip", 0, b"no image", 8, 0x800, ODD_NAMES[kind])

    def refuse() -> int:
        logging.getLogger("gan").info(f"reading {path}: {ODD_NAMES[kind].decode()}")
        all_images(path)
        return 0

    assert cli.run(refuse) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 2
    assert captured.splitlines()[1].startswith("error: ")
    assert not hostile.terminal_codes(captured.replace("\n", ""))


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_zip_changed_anywhere_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", GOOD)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        assert all_images(path).shape == (1, 3, 32, 32)
    except UserError as error:
        assert str(path) in str(error)


# Configurations

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
YAML = {
    "billion laughs": (LAUGHS, "anchors are not followed"),
    "merged mappings": ("a: &a {seed: 1}\nb: &b {<<: [*a, *a]}\n<<: [*b, *b]\n", "anchors are not followed"),
    "a list in itself": ("&a [*a]\n", "anchors are not followed"),
    "code": ("seed: !!python/object/apply:os.system ['touch canary']\n", "tags are not read"),
    "a function": ("seed: !!python/name:os.system\n", "tags are not read"),
    "a tag of its own": ("seed: !include /etc/passwd\n", "tags are not read"),
    "the environment": ("run: {name: '${oc.env:SECRET}'}\n", "is not looked up"),
    "the environment, escaped": ('run: {name: "\\x24{oc.env:SECRET}"}\n', "is not looked up"),
    "the environment in a key": ('"${oc.env:SECRET}": 3\n', "is not looked up"),
    "a resolver": ("seed: ${oc.decode:'1'}\n", "is not looked up"),
    "another setting": ("seed: ${training.steps}\n", "is not looked up"),
    "nested lists": ("seed: " + "[" * 20_000, "nested 21 deep"),
    "nested sections": ("".join(" " * i + "a:\n" for i in range(300)), "nested 21 deep"),
    "too large": ("# " + "x" * MAX_BYTES, "at most 65,536 are read"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "must be below 2^63"),
    "a number beyond 8 bytes": ("seed: 99999999999999999999999\n", "must be below 2^63"),
    "not a number": ("optimizer: {d_lr: .nan}\n", "must be a positive number"),
    "infinitely many": ("training: {steps: .inf}\n", "training.steps"),
    "a character beyond Unicode": ('run: {name: "\\UFFFFFFFF"}\n', "a character beyond Unicode"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "single document"),
    "terminal codes in a value": ('data: {path: "\\e[31mred"}\n', "must be readable"),
    "a new line in a name": ('run: {name: "a\\nb"}\n', "must be readable"),
}


@pytest.mark.parametrize("kind", YAML)
def test_a_hostile_configuration_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "a key")
    monkeypatch.chdir(tmp_path)
    text, words = YAML[kind]
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "x.yaml")
    assert words in str(caught.value)
    assert "a key" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("pair", ["run.name=${oc.env:HOME}", "data={path: !x 1}", "data={path: *a}", "model=" + "[" * 5000])
def test_a_setting_on_the_command_line_is_read_as_strictly(pair: str) -> None:
    with pytest.raises(UserError, match=r"looked up|tags|anchors|nested"):
        load_config(Path("configs/digits_msngan.yaml"), [pair])


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    path = Path(os.environ["MSNGAN_CACHE"]) / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape" if text.isascii() else "replace")
    try:
        load_config(path)
    except UserError as error:
        assert printable(" ".join(str(error).split("\n"))).isprintable()


# Statistics, weights and the cache

EYE = np.eye(3)
MEAN, SIGMA = npy("(3,)", data=EYE[0].tobytes()), npy("(3, 3)", data=EYE.tobytes())
ARRAYS = {
    "100 GB claimed": npy("(12_500_000_000,)".replace("_", "")),
    "more than any memory": npy("(1000000000000000000,)"),
    "a negative shape": npy("(-3,)", data=EYE[0].tobytes()),
    "a shape that overflows": npy("(4294967296, 4294967296)"),
    "a shape that is no shape": npy("('a',)"),
    "a type of a petabyte": npy("(3,)", "<U200000000000000"),
    "a type that is none": npy("(3,)", "zz"),
    "an expression": npy("(__import__('os').system('touch canary'),)"),
    "a deep expression": npy("(" * 3000),
    "fewer numbers than it says": npy("(3,)", data=EYE[0].tobytes()[:-1]),
    "no array": b"no array",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_that_lies_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no statistics file"):
        load_stats(npz(tmp_path / "x.npz", mu=ARRAYS[kind], sigma=SIGMA), made_by="inception")
    assert not (tmp_path / "canary").exists()


def test_an_array_in_fortrans_order_is_read_as_it_is(tmp_path: Path) -> None:
    sigma = np.array([[2.0, 0.5], [0.5, 1.0]])
    content = npy("(2, 2)", data=sigma.tobytes(order="F"), fortran="True")
    found = load_stats(npz(tmp_path / "x.npz", mu=npy("(2,)", data=bytes(16)), sigma=content), made_by="inception")
    assert (found.covariance == sigma).all()


def test_a_statistics_file_that_unpacks_to_100_gb_is_not_unpacked(tmp_path: Path) -> None:
    size = 100 * 2**30
    packed, _ = hostile.deflated_zeros(size)
    path = hostile.raw_zip(tmp_path / "x.npz", [(b"mu.npy", packed, 8, size, 0), (b"sigma.npy", packed[:9], 8, 9, 0)])
    before = peak()
    with pytest.raises(UserError, match="no statistics file"):
        load_stats(path, made_by="inception")
    assert peak() - before < 50, "MiB"


def test_pickled_objects_in_a_statistics_file_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no statistics file"):
        load_stats(npz(tmp_path / "x.npz", mu=hostile.pickled_npy(tmp_path), sigma=SIGMA), made_by="inception")
    assert not (tmp_path / hostile.CANARY).exists()


PROVENANCES = [
    "[" * 100_000,
    '{"extractor": ' * 60 + "1" + "}" * 60,
    "[NaN]",
    "1e999",
    "null",
    '{"images": {"image": [1, 2, "3"]}}',
]


@pytest.mark.parametrize("text", PROVENANCES, ids=range(len(PROVENANCES)))
def test_a_provenance_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=EYE[0], sigma=EYE, provenance=np.array(text))
    with pytest.raises(UserError, match="provenance is damaged"):
        load_stats(tmp_path / "x.npz", made_by="inception")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_tensors_is_not_run(zipped: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        load_tensors(saved({"a": Code(tmp_path)}, _use_new_zipfile_serialization=zipped))
    assert not (tmp_path / hostile.CANARY).exists()


def test_weights_whose_records_are_compressed_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(3)}))) as plain, zipfile.ZipFile(buffer, "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(buffer.getvalue())


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_as_they_were(zipped: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    value = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "none": None, "text": "a"}
    found = load_tensors(saved(value, _use_new_zipfile_serialization=zipped))
    assert repr(found) == repr(value)


@pytest.mark.parametrize("keys", [{1: torch.zeros(2)}, {None: torch.zeros(2)}, {"a": [torch.zeros(2)]}])
def test_weights_whose_names_are_none_are_refused(keys: dict[object, object], tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(saved(keys))
    with pytest.raises(UserError, match="no state_dict"):
        load_extractor("efficientnet-lite0", tmp_path / "w.pth")


def test_weights_larger_than_any_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "w.pth").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="at most 536,870,912 are read"):
        load_extractor("efficientnet-lite0", tmp_path / "w.pth")


PARTS: dict[str, Callable[[Path], None]] = {
    "code": lambda path: shutil.copy(npz(path.parent / "x", features=hostile.pickled_npy(path.parent), logits=MEAN), path),
    "100 GB claimed": lambda path: shutil.copy(npz(path.parent / "x", features=ARRAYS["100 GB claimed"], logits=MEAN), path),
    "a million entries": lambda path: shutil.copy(hostile.many_entries(path.parent / "x", 10**6), path),
    **NO_FILES,
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_hostile_part_of_the_cache_is_made_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    images, extractor = SmallImages(PART), small_extractor()
    whole = extract(images, extractor)
    folder = cache_folder(images.identity, extractor)
    (part,) = folder.glob("*.npz")
    part.unlink()
    PARTS[kind](part)
    caplog.set_level("INFO", "eval")
    again = extract(images, extractor)
    assert whole is not None
    assert again is not None
    assert (again.values == whole.values).all()
    if kind not in ("a link to nothing", "a link to itself"):  # of which there is nothing to be seen
        assert "is damaged and is made again" in caplog.text
    assert not part.is_symlink()
    assert not list(tmp_path.rglob(hostile.CANARY))


@pytest.mark.parametrize("kind", [*NO_FILES, "a terabyte"])
def test_hostile_pixels_in_the_cache_are_decoded_anew(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "_WORTH_CACHING", -1.0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", GOOD)
    first = all_images(tmp_path / "a.zip")
    (kept,) = (tmp_path / "cache" / "pixels").glob("[!.]*")
    kept.unlink()
    if kind == "a terabyte":
        with kept.open("wb") as file:
            file.truncate(2**40)
    else:
        NO_FILES[kind](kept)
    assert torch.equal(all_images(tmp_path / "a.zip"), first)


# Records

LINES = {
    "nested too deep to read": b"[" * 100_000,
    "nested too deep to write": b'{"step": 1, "a": ' + b"[" * 60 + b"]" * 60 + b"}",
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "a number beyond 8 bytes": b'{"step": 99999999999999999999}',
    "infinity": b'{"step": 1e999}',
    "no number": b'{"step": NaN}',
    "a list": b"[1]",
    "a text": b'"step"',
    "no step": b"{}",
    "a step before the first": b'{"step": -1}',
    "true": b'{"step": true}',
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_record_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1}\n' + LINES[kind] + b"\n")
    with pytest.raises(ValueError, match="line 2"):
        read_records(path)
    (tmp_path / scores.FILE).write_bytes(LINES[kind] + b"\n")
    with pytest.raises(UserError, match="line 1 is not a score"):
        scores.read(tmp_path)


def a_score() -> dict[str, object]:
    entry, identity = {"mean": 1.0, "std": None, "values": [1.0]}, {"extractor": "small"}
    found = {
        "fid": entry,
        "inception_score": None,
        "kid": None,
        "pooled": {"fid": 1.0, "fid_infinity": None, "precision": None, "recall": None},
    }
    floor = {**found, "source": "real", "runs": 1, "samples": 2, "reference": 3, "images": {}}
    provenance = {"extractor": identity, "reference": {"count": 3}, "generated": {}, "weights": "ema", "seed": 0}
    provenance |= {"protocol": {"runs": 1, "samples": 2}}
    known = {"step": 1, "protocol": "quick", "source": "command", "series": "a"}
    return {**known, "scores": found, "floor": floor, "provenance": provenance}


def places(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where there is something in nested dictionaries."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


@pytest.mark.parametrize("place", [place for place in places(a_score()) if place[-1] != "images"], ids=".".join)
def test_a_score_with_another_value_in_a_part_that_is_read_is_refused(place: tuple[str, ...], tmp_path: Path) -> None:
    record = a_score()
    (tmp_path / scores.FILE).write_text(json.dumps(record) + "\n")
    assert len(scores.read(tmp_path)) == 1
    inner: Any = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = ["x"]
    (tmp_path / scores.FILE).write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="line 1 is not a score"):
        scores.read(tmp_path)


def test_json_is_parsed_up_to_a_depth() -> None:
    assert parse_json("[" * 40 + "]" * 40)
    for depth in (60, 900, 10**6):
        with pytest.raises(ValueError, match="nested too deep"):
            parse_json("[" * depth + "]" * depth)


def test_a_hostile_floor_in_the_cache_is_made_again(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    scale_down(monkeypatch)
    run = shutil.copytree(finished_run, tmp_path / "run")
    words = ["score", str(run), "--protocol", "quick", "--extractor", "efficientnet-lite0", "--json"]
    floors = []
    for content in ("[" * 10**6, '{"fid": NaN}', ""):
        (run / scores.FILE).unlink(missing_ok=True)
        assert cli.run(lambda: program.main(words)) == 0
        floors.append(json.loads(capsys.readouterr().out)["floor"])
        (kept,) = (tmp_path / "cache").rglob("floor-*.json")
        kept.write_text(content)
    assert floors[0] == floors[1] == floors[2]


# Runs


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("channels: 4", "channels: 8192", 1),
        lambda text: text.replace("image_size: 32", "image_size: 4096"),
        lambda text: text.replace("latent_dim: 8", "latent_dim: 65536"),
        lambda text: text.replace("channels: 1", "channels: null"),
        lambda text: text.replace("channels: 1", "channels: 3"),
    ],
)
def test_a_configuration_that_claims_a_huge_network_takes_no_memory(change: Callable[[str], str], run: Path) -> None:
    before = peak()
    text = (run / "config.yaml").read_text()
    assert change(text) != text
    change_settings(run, change)
    with pytest.raises(UserError, match=r"weights do not fit its config\.yaml"):
        load_generator(run)
    assert peak() - before < 50, "MiB"


@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
def test_a_generator_with_any_norm_still_has_as_many_weights_as_it_claims(norm: str, tmp_path: Path) -> None:
    sizes = ["data.channels=1", "model.generator.channels=2", "model.latent_dim=1", f"model.generator.norm={norm}"]
    config = load_config(hostile.ROOT / "configs" / "digits_msngan.yaml", sizes)
    weights = {"generator": build_generator(config).state_dict()}
    checkpoints.write_weights(tmp_path / "export", 1, weights, to_yaml(config))
    assert load_generator(tmp_path / "export").sample(2).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.jsonl", "samples", "checkpoints/step-00000009", "wandb-id"])
def test_a_link_in_a_run_is_not_written_through(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.conftest import command

    victim = tmp_path / "victim"
    victim.write_text("years of work\n")
    link = run / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    words = ["--config", str(run / "config.yaml"), f"run.dir={tmp_path}", "run.name=run", "training.steps=9"]
    assert command(words) == 2
    assert f"{link}: a link" in capsys.readouterr().err
    assert victim.read_text() == "years of work\n"


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31mred", "a\nb"])
@pytest.mark.parametrize("place", ["protocol", "extractor", "weights"])
def test_a_score_under_a_name_that_cannot_be_printed_is_refused(place: str, name: str, tmp_path: Path) -> None:
    record: Any = a_score()
    inner = {"protocol": record, "extractor": record["provenance"]["extractor"], "weights": record["provenance"]}[place]
    inner[place] = name
    (tmp_path / scores.FILE).write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="line 1 is not a score"):
        scores.read(tmp_path)
