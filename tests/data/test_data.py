"""Data sets, their formats, and the step-keyed stream."""

import io
import pickle
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gan.config import GanConfig, GanTrainingConfig
from gan.data import sources
from gan.data.datasets import ImageDataset, load_images
from gan.data.decoding import MAX_FILE_BYTES
from gan.data.stream import BatchShard, BatchStream
from gan.utils import keyed_random
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig

CPU = torch.device("cpu")


def png(pixels: np.ndarray, mode: str | None = None, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def colours(count: int, size: int = 32) -> list[np.ndarray]:
    """Images that tell which they are."""
    return [np.full((size, size, 3), (i, 255 - i, 7), np.uint8) for i in range(count)]


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> DataConfig:
    for name, content in files.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return DataConfig(name="folder", path=str(tmp_path / "images"))


def zip_of(tmp_path: Path, files: dict[str, bytes]) -> DataConfig:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return DataConfig(name="folder", path=str(tmp_path / "images.zip"))


def decoded(images: ImageDataset) -> torch.Tensor:
    return images.decode_all(lambda items, _total, _what: items)


@pytest.mark.parametrize("make", [folder_of, zip_of])
def test_class_folders_hidden_files_and_other_files(make, tmp_path: Path) -> None:
    pictures = colours(4)
    source = make(
        tmp_path,
        {
            "b/2.png": png(pictures[2]), "b/1.jpeg": png(pictures[1], format="JPEG", quality=100, subsampling=0),
            "a/0.bmp": png(pictures[0], format="BMP"), "3.WEBP": png(pictures[3], format="WEBP", lossless=True),
            "notes.txt": b"text", "a/.hidden.png": b"?", "__MACOSX/b/2.png": b"?",
        },
    )  # fmt: skip
    found = decoded(load_images(source))
    assert found.shape == (4, 3, 32, 32)
    assert [int(image[0].float().mean().round()) for image in found] == [3, 0, 1, 2]  # in the order of their paths


@pytest.mark.parametrize(
    ("name", "content", "grey"),
    [
        ("grey", png(np.full((32, 32), 100, np.uint8)), True),
        ("one bit", png(np.full((32, 32), 255, np.uint8), "1"), True),
        ("16 bit", png(np.full((32, 32), 100 * 256 + 9, np.uint16)), True),
        ("colour", png(np.full((32, 32, 3), 100, np.uint8)), False),
        ("palette", png(np.full((32, 32, 3), 100, np.uint8), "P"), False),
        ("transparent", png(np.full((32, 32, 4), 100, np.uint8)), False),
        ("cmyk", png(np.full((32, 32, 3), 100, np.uint8), "CMYK", "JPEG", quality=100), False),
    ],
)
def test_every_kind_of_pixel_becomes_grey_or_colour(name: str, content: bytes, grey: bool, tmp_path: Path) -> None:
    source = zip_of(tmp_path, {"a.png": content})
    images = load_images(source)
    assert images.channels == (1 if grey else 3)
    expected = {"one bit": 255, "transparent": 194}.get(name, 100)  # 100 at an opacity of 100 / 255, over white
    for channels in (1, 3):
        pixels = decoded(ImageDataset(images.source, size=32, channels=channels))
        assert pixels.shape == (1, channels, 32, 32)
        coarse = 60 if name == "palette" else 3  # a palette of 216 colours; what JPEG rounds
        assert (pixels.int() - expected).abs().max() <= coarse, name


def test_larger_images_are_scaled_by_the_shorter_side_and_centre_cropped(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255  # the middle third
    assert decoded(load_images(folder_of(tmp_path, {"a.png": png(wide)}))).float().mean() > 250


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("said_by", ["exif", "xmp"])
def test_orientation_of_a_photograph_is_obeyed(format: str, said_by: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.concatenate([np.zeros((16, 32, 3), np.uint8), np.full((16, 32, 3), 255, np.uint8)]))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    xmp = '<rdf:Description tiff:Orientation="3"/>'
    how: dict[str, object] = {"exif": exif}
    if said_by == "xmp":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        how = {"pnginfo": text} if format == "PNG" else {"xmp": xmp.encode()}
    buffer = io.BytesIO()
    picture.save(buffer, format, **how)
    pixels = decoded(load_images(folder_of(tmp_path, {f"a.{format.lower()}": buffer.getvalue()})))
    assert pixels[0, :, :16].min() == 255
    assert pixels[0, :, 16:].max() == 0


def test_digits_are_1797_grey_images_that_use_the_whole_range() -> None:
    images = load_images(DataConfig())
    pixels = decoded(images)
    assert pixels.shape == (1797, 1, 32, 32)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)


def test_files_that_pillow_only_writes_are_no_images(tmp_path: Path) -> None:
    others = {f"notes.{ending}": b"no image" for ending in ("pdf", "h5", "mpg", "eps", "txt", "json")}
    assert len(load_images(folder_of(tmp_path, {"a.png": png(colours(1)[0]), **others}))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_damage_anywhere_in_a_compressed_archive_is_one_line_or_an_image(format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"a.{format.lower()}", png(noise, format=format))
        start, end = 40, archive.start_dir
    whole = file.read_bytes()
    places = np.random.default_rng(1).integers(start, end, 60)
    for place in places:  # in the archive's compressed data, and in the file inside it
        for damaged in (_flip(whole, int(place)), None):
            if damaged is None:
                content = png(noise, format=format)
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(f"a.{format.lower()}", _flip(content, int(place) % len(content)))
            else:
                file.write_bytes(damaged)
            try:
                assert decoded(load_images(DataConfig(name="folder", path=str(file), channels=3))).shape == (1, 3, 32, 32)
            except UserError as error:
                assert str(file) in str(error)


def _flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


def test_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    first, second = colours(2)
    prints = []
    for number, files in enumerate([{"a.png": png(first)}, {"a.png": png(second)}, {"b.png": png(first)}]):
        (tmp_path / str(number)).mkdir()
        prints.append(load_images(zip_of(tmp_path / str(number), files)).fingerprint)
    assert len(set(prints)) == 3
    (tmp_path / "again").mkdir()
    assert load_images(zip_of(tmp_path / "again", {"a.png": png(first)})).fingerprint == prints[0]


def test_mnist_files_are_read(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([2, 28, 28], ">i4").tobytes() + pixels.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array([2], ">i4").tobytes() + bytes([3, 4]))
    images = load_images(DataConfig(name="mnist", path=str(tmp_path)))
    assert np.array_equal(images.source.images, pixels)
    assert images.labels.class_indices.tolist() == [3, 4]
    assert images.labels.classes == tuple("0123456789")
    assert decoded(images).shape == (2, 1, 32, 32)


def test_svhn_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)  # as in SVHN: the image comes last
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": pixels, "y": np.array([[1], [2], [10], [3]], np.uint8)})
    checksum = datasets.utils.calculate_md5(file)
    monkeypatch.setattr(datasets.SVHN, "split_list", {"test": ["nowhere", file.name, checksum]})
    images = load_images(DataConfig(name="svhn", split="test", path=str(tmp_path)))
    assert torch.equal(decoded(images), torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy()))
    assert images.labels.class_indices.tolist() == [1, 2, 0, 3]  # its file calls the digit 0 ten


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    base = tmp_path / kind.base_folder
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    labels = {"labels": [0, 1, 2], "fine_labels": [0, 1, 2]}
    (base / "part").write_bytes(pickle.dumps({"data": pixels.reshape(3, -1), **labels}))
    meta = {"label_names": list("abc"), "fine_label_names": list("abc")}
    (base / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(kind, "test_list", [["part", datasets.utils.calculate_md5(base / "part")]])
    monkeypatch.setattr(kind, "train_list", [])
    monkeypatch.setitem(kind.meta, "md5", datasets.utils.calculate_md5(base / kind.meta["filename"]))
    images = load_images(DataConfig(name=name, split="test", path=str(tmp_path)))
    assert torch.equal(decoded(images), torch.from_numpy(pixels))
    assert images.labels.class_indices.tolist() == [0, 1, 2]
    assert len(images.labels.classes) == int(name.removeprefix("cifar"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_without_a_network_the_error_names_the_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(UserError, match=rf"not found at {tmp_path}.*could not be downloaded.*Put .* there") as caught:
        load_images(DataConfig(name=name, path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def stream(
    source: ImageDataset, *, memory: bool, processes: int = 1, rank: int = 0, flip: bool = False, size: int = 6
) -> BatchStream:
    config = GanConfig(data=DataConfig(flip=flip, workers=1), training=GanTrainingConfig(batch_size=size))
    share = BatchShard.of(config, rank=rank, processes=processes)
    return BatchStream(source, decoded(source) if memory else None, config=config, shard=share, device=CPU)


def test_streamed_and_in_memory_batches_are_the_same_from_any_update(tmp_path: Path) -> None:
    source = load_images(zip_of(tmp_path, {f"{i}.png": png(p) for i, p in enumerate(colours(10))}))
    held = stream(source, memory=True, flip=True)
    streamed = stream(source, memory=False, flip=True)
    for update in (0, 1, 2, 3, 7, 8, 2):  # on, a jump, and back
        assert torch.equal(held.batch(update), streamed.batch(update))
    streamed.close()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_shows_every_image_once(images: int, size: int, seed: int) -> None:
    config = GanConfig(seed=seed, training=GanTrainingConfig(batch_size=size))
    source = ImageDataset(sources.ArraySource(np.zeros((images, 32, 32), np.uint8), np.zeros(images)), size=32, channels=1)
    whole = BatchStream(source, None, config=config, shard=BatchShard.of(config, rank=0, processes=1), device=CPU)
    order = np.concatenate([whole._indices(update) for update in range(-(-3 * images // size))])
    for epoch in range(3):
        assert sorted(order[epoch * images : (epoch + 1) * images]) == list(range(images))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 50))
def test_shares_of_all_processes_are_the_whole_batch(processes: int, parts: int, width: int, update: int) -> None:
    size = processes * parts * width
    whole = BatchShard(batch_size=size, micro_batches=1, rank=0, processes=1).positions(update)
    shares = [
        BatchShard(batch_size=size, micro_batches=parts, rank=r, processes=processes).positions(update) for r in range(processes)
    ]
    for part in range(parts):  # also micro-batch by micro-batch
        joined = np.concatenate([share.reshape(parts, -1)[part] for share in shares])
        assert np.array_equal(joined, whole.reshape(parts, -1)[part])


def test_flips_are_drawn_for_each_image() -> None:
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (64, 32, 1))
    source = ImageDataset(sources.ArraySource(ramp, np.zeros(len(ramp))), size=32, channels=1)
    batch = stream(source, memory=True, flip=True, size=64).batch(0)
    flipped = batch[:, 0, 0, 0] > 0
    assert 16 < int(flipped.sum()) < 48
    assert torch.equal(batch[flipped][0].flip(2), batch[~flipped][0])


def test_pixels_become_minus_one_to_one() -> None:
    source = ImageDataset(
        sources.ArraySource(np.stack([np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)]), np.zeros(2)),
        size=32,
        channels=1,
    )
    values = stream(source, memory=True, size=2).batch(0)
    assert sorted(values[:, 0, 0, 0].tolist()) == [-1.0, 1.0]


@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(1, 20), st.integers(1, 9))
def test_a_slice_of_keyed_numbers_is_the_slice_of_all(seed: int, start: int, count: int, width: int) -> None:
    whole = keyed_random.normal(seed, "test", 0, start + count, width)
    assert np.array_equal(keyed_random.normal(seed, "test", start, count, width), whole[start:])
    assert not np.array_equal(keyed_random.normal(seed, "other", start, count, width), whole[start:])


def test_keyed_numbers_have_their_distributions() -> None:
    from scipy.stats import kstest

    assert kstest(keyed_random.normal(1, "test", 0, 2000, 7).ravel(), "norm").pvalue > 0.01
    numbers = keyed_random.uniform(1, "test", 0, 20000)
    assert kstest(numbers.ravel(), "uniform").pvalue > 0.01
    assert numbers.min() > 0
    assert numbers.max() <= 1
    assert abs(np.corrcoef(keyed_random.normal(1, "test", 0, 5000, 4).T) - np.eye(4)).max() < 0.06


def test_real_cifar10_and_mnist_are_read(data_folder: Path) -> None:
    for name, channels, level in (("cifar10-test.zip", 3, 120), ("mnist-test.zip", 1, 33)):
        images = load_images(DataConfig(name="folder", path=str(data_folder / name)))
        assert (len(images), images.channels) == (10_000, channels)
        sample = torch.stack([images[i] for i in range(0, 10_000, 100)])
        assert abs(float(sample.float().mean()) - level) < 10


def test_classes_are_the_folders_that_hold_the_files(tmp_path: Path) -> None:
    for name in ("all/dog/b.png", "all/cat/a.png", "all/cat/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32)).save(tmp_path / name)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "all")
    for path in (tmp_path / "all", archive):
        labels = load_images(DataConfig(name="folder", path=str(path))).labels
        assert labels.classes == ("cat", "dog")
        assert labels.class_indices.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="no classes"):
        _ = load_images(DataConfig(name="folder", path=str(tmp_path / "all" / "cat"))).labels


@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_part_of_a_source_has_its_images_and_labels_and_another_name(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    whole = sources.ArraySource(draw.integers(0, 256, (count, 32, 32), dtype=np.uint8), draw.integers(0, 10, count))
    indices = draw.permutation(count)[: 1 + seed % count]
    part = sources.Subset(whole, indices)
    assert len(part) == len(indices)
    assert all(np.array_equal(np.asarray(part.read(i)), whole.images[index]) for i, index in enumerate(indices))
    assert part.labels().class_indices.tolist() == whole.class_indices[indices].tolist()
    names = {whole.fingerprint(), part.fingerprint(), sources.Subset(whole, indices[::-1].copy()).fingerprint()}
    assert len(names) == (3 if len(indices) > 1 else 2)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 50))
def test_labels_stay_with_their_images(count: int, size: int, update: int) -> None:
    # An image's only pixel value is its class.
    values = np.arange(count) % 10
    source = sources.ArraySource(np.broadcast_to(values[:, None, None], (count, 32, 32)).astype(np.uint8), values)
    images = ImageDataset(source, size=32, channels=1)
    config, share = (
        GanConfig(training=GanTrainingConfig(batch_size=size)),
        BatchShard(batch_size=size, micro_batches=1, rank=0, processes=1),
    )
    stream = BatchStream(images, images.decode_all(follow_not), config=config, shard=share, device=torch.device("cpu"))
    seen = ((stream.batch(update) + 1) * 127.5).round()[:, 0, 0, 0].long()
    assert torch.equal(seen, stream.labels(update))


def follow_not(items, _total: int, _what: str):
    return items


@pytest.mark.slow
def test_a_file_that_would_unpack_to_more_than_any_image_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as entry:
        for _ in range(MAX_FILE_BYTES // 2**24 + 1):
            entry.write(bytes(2**24))
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "a.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path in (tmp_path / "bomb.zip", tmp_path / "folder"):
        tracemalloc.start()
        with pytest.raises(UserError, match="are no image"):
            decoded(load_images(DataConfig(name="folder", path=str(path), channels=3)))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_an_image_whose_header_claims_3600_million_pixels_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UserError, match="damaged image"):
        decoded(load_images(DataConfig(name="folder", path=str(tmp_path), channels=3)))


def test_names_in_an_archive_that_point_outside_are_only_names(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for name in ("../../evil.png", "/absolute.png", "c:\\windows.png"):
            archive.write(tmp_path / "a.png", name)
    before = sorted(tmp_path.rglob("*"))
    assert decoded(load_images(DataConfig(name="folder", path=str(tmp_path / "odd.zip")))).shape == (3, 1, 32, 32)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/absolute.png").exists()


def test_unreadable_images_do_not_hide_the_others_where_channels_are_looked_for(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("L", (32, 32), 40 * number).save(tmp_path / f"{number}.png")
    for number in (1, 4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    data = DataConfig(name="folder", path=str(tmp_path))
    assert sources.image_channels(data, sources.open_source(data)) == 1
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.png"):
        sources.image_channels(data, sources.open_source(data))
