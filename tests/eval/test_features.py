"""Extraction: the same features however it is interrupted, shared or cached."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval import features as module
from eval.feature_cache import FeatureCache, cache_folder
from eval.features import PART, extract
from eval.image_sets import NativeImages, StoredImages, parse_spec
from gan.data.datasets import load_images
from gan.data.image_files import FolderSource
from gan.data.sources import open_source
from gan.utils.distributed import connected
from gan.utils.errors import UserError
from gan.utils.files import cache_root
from gan.utils.locks import FileLock
from tests.small import SmallImages, small_extractor
from tests.workers import run_together

COUNT = 2 * PART + 100


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))


def direct(images: SmallImages) -> tuple[np.ndarray, np.ndarray | None]:
    return small_extractor()(images.pixels)


def test_features_are_those_of_the_images_in_their_order() -> None:
    images = SmallImages(COUNT)
    found = extract(images, small_extractor())
    assert found is not None
    np.testing.assert_allclose(found.values, direct(images)[0], rtol=1e-6)
    np.testing.assert_allclose(found.logits, direct(images)[1], rtol=1e-4, atol=1e-4)


def test_an_interrupted_extraction_goes_on_where_it_was() -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(SmallImages(COUNT, stop_at=PART + 70), small_extractor())
    again = SmallImages(COUNT)
    found = extract(again, small_extractor())
    assert found is not None
    assert again.reads == COUNT - PART
    undisturbed = extract(again, small_extractor(), use_cache=False)
    assert undisturbed is not None
    assert (found.values == undisturbed.values).all()


def test_the_cache_is_found_by_content_and_extractor() -> None:
    extract(SmallImages(PART), small_extractor())
    same, other = SmallImages(PART), SmallImages(PART, seed=1)
    extract(same, small_extractor())
    assert same.reads == 0
    extract(other, small_extractor())
    assert other.reads == PART
    extract(same, small_extractor("another network"))
    assert same.reads == PART


def test_more_images_of_the_same_set_take_only_the_rest() -> None:
    images = SmallImages(COUNT)
    extract(images, small_extractor(), count=PART)
    extract(images, small_extractor(), count=2 * PART)
    assert images.reads == 2 * PART


def test_a_forgotten_set_is_extracted_again() -> None:
    images = SmallImages(PART)
    extract(images, small_extractor())
    FeatureCache(images.identity, small_extractor()).remove()
    extract(images, small_extractor())
    assert images.reads == 2 * PART


def test_a_process_that_waited_for_the_removal_of_the_folder_locks_a_new_one() -> None:
    cache = FeatureCache(SmallImages(PART, seed=9).identity, small_extractor())
    waits, entered = threading.Event(), threading.Event()

    def extract_then() -> None:
        waits.set()
        with cache.lock():
            assert not FileLock(cache.folder / ".lock").acquire(wait=False), "another process could enter"
            entered.set()

    with cache.lock():
        thread = threading.Thread(target=extract_then)
        thread.start()
        waits.wait(10)
        time.sleep(0.2)
        assert not entered.is_set()
        shutil.rmtree(cache.folder)
    thread.join(10)
    assert entered.is_set()


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "another shape"])
def test_a_damaged_part_is_noticed_and_made_again(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    images, extractor = SmallImages(COUNT), small_extractor()
    whole = extract(images, extractor)
    part = sorted(cache_folder(images.identity, extractor).glob("*.npz"))[1]
    content = bytearray(part.read_bytes())
    if damage == "cut off":
        part.write_bytes(content[:-9])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "empty":
        part.write_bytes(b"")
    else:
        np.savez(part, features=np.zeros((3, 12), np.float32), logits=np.zeros((3, 4), np.float32))
    images.reads = 0
    caplog.set_level("INFO", "eval")
    again = extract(images, extractor)
    assert whole is not None
    assert again is not None
    assert (again.values == whole.values).all()
    assert images.reads == PART
    assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MSNGAN_CACHE"):
        extract(SmallImages(3), small_extractor())


def test_the_content_of_a_folder_counts_and_not_its_name(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (32, 32), (value, index, 0)).save(tmp_path / name / f"{index}.bmp")
    a, b, c = (StoredImages(load_images(parse_spec(str(tmp_path / name), size=32, channels=3))).identity for name in "abc")
    assert a == b
    assert (tmp_path / "a/0.bmp").stat().st_size == (tmp_path / "c/0.bmp").stat().st_size, "told apart by content, not size"
    assert a["content"] != c["content"]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("how", ["mended", "removed"])
@pytest.mark.parametrize("packed", [False, True])
def test_features_of_the_other_images_are_kept_when_a_damaged_file_is_mended(
    packed: bool, how: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 4)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / f"{index:02d}.bmp")
    whole = (folder / "09.bmp").read_bytes()

    def images() -> StoredImages | NativeImages:
        path = shutil.make_archive(str(tmp_path / "images"), "zip", folder) if packed else str(folder)
        spec = parse_spec(path, size=32, channels=3)
        return NativeImages(open_source(spec), path) if native else StoredImages(load_images(spec))

    (folder / "09.bmp").write_bytes(whole[:500])
    with pytest.raises(UserError, match=r"09\.bmp: a damaged image"):
        extract(images(), small_extractor())
    (folder / "09.bmp").unlink() if how == "removed" else (folder / "09.bmp").write_bytes(whole)
    opened, read = images(), []
    whole_read = type(opened).read
    monkeypatch.setattr(
        type(opened), "read", lambda self, start, count: read.append((start, count)) or whole_read(self, start, count)
    )
    found = extract(opened, small_extractor())
    assert read == [(8, 4 if how == "mended" else 3)]
    again = extract(opened, small_extractor(), use_cache=False)
    assert found is not None
    assert again is not None
    assert (found.values == again.values).all()


def test_features_of_images_that_are_decoded_otherwise_are_extracted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    images = StoredImages(load_images(parse_spec(str(tmp_path), size=32, channels=3)))
    samples = SmallImages(1)  # of a generator, which are not decoded
    before = [cache_folder(some.identity, small_extractor()) for some in (images, samples)]
    monkeypatch.setattr("eval.feature_cache.DECODING", -1)
    after = [cache_folder(some.identity, small_extractor()) for some in (images, samples)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def _extract_together(out: Path) -> None:
    with connected() as accelerator:
        found = extract(SmallImages(PART + 200), small_extractor(), accelerator=accelerator, use_cache=False)
        if found is None:
            assert not accelerator.is_main_process
        else:
            assert found.logits is not None
            torch.save([torch.from_numpy(found.values), torch.from_numpy(found.logits)], out / f"{accelerator.num_processes}.pt")


@pytest.mark.slow
def test_several_processes_give_the_features_of_one_to_the_bit(tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        run_together(processes, _extract_together, tmp_path)
    one, *others = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2, 3))
    for other in others:
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_second_process_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import fcntl
    import threading

    images, extractor = SmallImages(10), small_extractor()
    folder = cache_folder(images.identity, extractor)
    folder.mkdir(parents=True)
    caplog.set_level("INFO", "eval")
    with (folder / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        assert extract(images, extractor) is not None
    assert "waiting" in caplog.text


def test_a_batch_holds_as_many_images_as_the_generator_makes_at_once() -> None:
    from gan.inference.sampling import CHUNK

    assert module.BATCH == CHUNK


def test_the_files_of_a_folder_are_read_for_its_name_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        Image.new("RGB", (32, 32), (index * 40, 0, 0)).save(tmp_path / f"{index}.png")
    reads: list[str] = []
    read = FolderSource._read_file
    monkeypatch.setattr(FolderSource, "_read_file", lambda self, name: reads.append(name) or read(self, name))

    def identity() -> dict[str, Any]:
        reads.clear()
        return StoredImages(load_images(parse_spec(str(tmp_path), size=32, channels=3))).identity

    first = identity()
    assert len(reads) == 3
    assert identity() == first and not reads
    Image.new("RGB", (32, 32), (1, 0, 0)).save(tmp_path / "0.png")
    assert identity() != first and len(reads) == 3
    (cached,) = {path for path in (cache_root() / "content").iterdir() if first["content"] in path.read_text()}
    cached.write_text("damaged")
    assert len(identity()["content"]) == 64


def test_a_folder_with_the_name_of_a_data_set_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_spec("digits").name == "digits" and not caplog.text
    (tmp_path / "digits").mkdir()
    assert parse_spec("digits").name == "digits"
    assert "Give ./digits for the one here" in caplog.text
    assert parse_spec("./digits").path == "./digits"
