"""An archive's images are decoded once, and never taken for others."""

import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from gan.data import datasets
from gan.data.datasets import load_images
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip of five images whose reading counts as long, and a cache of its own."""
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "_WORTH_CACHING", -1.0)
    return archive_of(tmp_path / "images.zip", 0)


def archive_of(path: Path, first: int) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for index in range(5):
            content = BytesIO()
            Image.new("RGB", (32, 32), (first + index, 10, 20)).save(content, "PNG")
            file.writestr(f"{index}.png", content.getvalue())
    return path


def decoded(path: Path, **settings: object) -> tuple[Tensor, int]:
    """All images of an archive, and how many of them had to be decoded."""
    read: list[int] = []

    def follow(items: Iterator[int], _total: int, _what: str) -> Iterator[int]:
        for item in items:
            read.append(item)
            yield item

    images = load_images(DataConfig(name="folder", path=str(path), **settings))  # type: ignore[arg-type]
    return images.decode_all(follow), len(read)


def test_an_archive_is_decoded_once(archive: Path, tmp_path: Path) -> None:
    first, count = decoded(archive)
    again, none = decoded(archive)
    assert (count, none) == (5, 0)
    assert torch.equal(first, again)
    moved = archive.rename(tmp_path / "other.zip")
    assert decoded(moved)[1] == 0  # the content counts, not the name


def test_other_content_size_or_channels_are_decoded_anew(archive: Path) -> None:
    decoded(archive)
    assert decoded(archive, image_size=40)[1] == 5
    assert decoded(archive, channels=1)[1] == 5
    archive_of(archive, 100)
    changed, count = decoded(archive)
    assert count == 5
    assert changed[0, 0, 0, 0] == 100


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], lambda b: b""])
def test_damaged_pixels_in_the_cache_are_noticed(archive: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    first, _ = decoded(archive)
    (kept,) = (tmp_path / "cache" / "pixels").glob("[!.]*")
    kept.write_bytes(damage(kept.read_bytes()))
    again, count = decoded(archive)
    assert count == 5
    assert torch.equal(first, again)


def test_a_cache_that_cannot_be_written_only_costs_time(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where the folder should be")
    assert [decoded(archive)[1] for _ in range(2)] == [5, 5]


def test_workers_decode_the_same_and_tell_a_mistake_as_one_process_does(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, "_WORTH_WORKERS", 1)
    monkeypatch.setattr(datasets, "_BATCH", 2)
    monkeypatch.setattr(datasets, "_WORTH_CACHING", 1e9)
    state = torch.get_rng_state()
    images = load_images(DataConfig(name="folder", path=str(archive)))
    alone, together = (images.decode_all(lambda items, _total, _what: items, workers) for workers in (0, 2))
    assert torch.equal(alone, together)
    assert alone[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(torch.get_rng_state(), state)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("3b.png", "no image")
    broken = load_images(DataConfig(name="folder", path=str(archive)))
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"3b.png: not an image"):
            broken.decode_all(lambda items, _total, _what: items, workers)
