"""Downloads that break, stall or bring other bytes end in one line, and never leave half a file under the final name."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

import gan.utils.downloads
from eval import extractors
from gan.data.datasets import load_images
from gan.utils.downloads import download
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig
from tests.conftest import command
from tests.faults.servers import FileServer
from tests.workers import in_process, run_together

pytestmark = pytest.mark.slow
Behaviour = Callable[[str, int], str]
CONTENT = np.random.default_rng(0).bytes(3_000_000)
PIXELS = np.random.default_rng(1).integers(0, 256, (6, 28, 28), dtype=np.uint8)
COLOURS = np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
DATA_SETS = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"]


def always(behaviour: str) -> Behaviour:
    return lambda _name, _time: behaviour


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def mnist_files(pixels: np.ndarray = PIXELS) -> dict[str, bytes]:
    labels = np.arange(len(pixels), dtype=np.uint8) % 10
    parts = {"images-idx3": idx(pixels), "labels-idx1": idx(labels)}
    return {
        f"{split}-{name}-ubyte.gz": gzip.compress(content, 1) for split in ("train", "t10k") for name, content in parts.items()
    }


def cifar_files(kind: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The archive, and the attributes with its checksums."""
    rows = COLOURS.transpose(0, 3, 1, 2).reshape(6, -1)
    names = {"label_names": list("abc"), "fine_label_names": list("abc")}
    files = {"part": pickle.dumps({"data": rows, "labels": [0] * 6}), kind.meta["filename"]: pickle.dumps(names)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    checksums = {
        "tgz_md5": md5(archive.getvalue()),
        "train_list": [["part", md5(files["part"])]],
        "test_list": [],
        "meta": {**kind.meta, "md5": md5(files[kind.meta["filename"]])},
    }
    return {kind.filename: archive.getvalue()}, checksums


def svhn_files() -> dict[str, bytes]:
    file = io.BytesIO()
    savemat(file, {"X": COLOURS.transpose(1, 2, 3, 0), "y": np.ones((6, 1), np.uint8)})
    return {"train_32x32.mat": file.getvalue()}


def serve(name: str, behaviour: Behaviour, patch: Callable[[Any, str, Any], None]) -> FileServer:
    """A server of a small data set of that name; ``patch`` sets the attributes that send torchvision's there."""
    if "mnist" in name:
        kind: Any = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
        server = FileServer(mnist_files(), behaviour)
        changes: dict[str, Any] = {
            "mirrors": [f"{server.url}/"],
            "resources": [(file, md5(content)) for file, content in server.files.items()],
        }
    elif name == "svhn":
        kind, server = datasets.SVHN, FileServer(svhn_files(), behaviour)
        ((file, content),) = server.files.items()
        changes = {"split_list": {"train": [f"{server.url}/{file}", file, md5(content)]}}
    else:
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        files, changes = cifar_files(kind)
        server = FileServer(files, behaviour)
        changes["url"] = f"{server.url}/{kind.filename}"
    for attribute, value in changes.items():
        patch(kind, attribute, value)
    return server


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan.utils.downloads, "SILENCE", 0.3)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Behaviour], FileServer]:
    """Makes a server of "Inception's weights", whose cache is the folder hub/checkpoints."""

    def serve_weights(behaviour: Behaviour) -> FileServer:
        server = FileServer({"weights": CONTENT}, behaviour)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(extractors, "INCEPTION_URL", f"{server.url}/weights")
        monkeypatch.setattr(extractors, "INCEPTION_CHECKSUM", hashlib.sha256(CONTENT).hexdigest()[:8])
        return server

    return serve_weights


def test_weights_are_downloaded_once(weights: Callable[[Behaviour], FileServer], tmp_path: Path) -> None:
    with weights(always("whole")) as server:
        path = extractors._inception_weights()
        assert path.read_bytes() == CONTENT
        assert extractors._inception_weights() == path
        assert server.asked["weights"] == 1
    assert files_in(tmp_path) == [f"hub/checkpoints/{extractors.INCEPTION_FILES[0]}"]


REASONS = {
    "half": "incomplete, or not the published file",
    "stalls": "timed out",
    "wrong": "incomplete, or not the published file",
    "missing": "Not Found",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("behaviour", REASONS)
def test_weights_that_never_come_whole_are_one_line_and_leave_nothing(
    behaviour: str,
    weights: Callable[[Behaviour], FileServer],
    tiny: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with weights(always(behaviour)) as server:
        began = time.monotonic()
        assert command(tiny("training.steps=2", "evaluation.every=2", "evaluation.extractor=inception")) == 2
        assert time.monotonic() - began < 60
        assert server.asked["weights"] == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert all(part in last for part in (REASONS[behaviour], server.url, "--extractor-weights", "efficientnet-lite0"))
    assert files_in(tmp_path / "hub") == []


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_is_downloaded_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(name, always("whole"), monkeypatch.setattr) as server:
        for _ in range(2):
            images = load_images(DataConfig(name=name, path=str(tmp_path)))  # type: ignore[arg-type]
            assert np.array_equal(images.source.images, PIXELS if "mnist" in name else COLOURS)  # type: ignore[attr-defined]
        assert set(server.asked.values()) == {1}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("name", "behaviour"), [*(("mnist", behaviour) for behaviour in REASONS), *((name, "wrong") for name in DATA_SETS[1:])]
)
def test_a_data_set_that_never_comes_whole_is_told_and_leaves_nothing(
    name: str, behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serve(name, always(behaviour), monkeypatch.setattr),
        pytest.raises(UserError, match=f"could not be downloaded .*{REASONS[behaviour]}.*Put .* there yourself") as caught,
    ):
        load_images(DataConfig(name=name, path=str(tmp_path)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == []


@pytest.mark.usefixtures("impatient")
def test_a_second_mirror_serves_what_the_first_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("mnist", always("missing"), monkeypatch.setattr) as bad, FileServer(mnist_files()) as good:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{bad.url}/", f"{good.url}/"])
        assert len(load_images(DataConfig(name="mnist", path=str(tmp_path)))) == 6
        assert set(bad.asked.values()) == set(good.asked.values()) == {1}


@pytest.mark.parametrize("damage", ["half", "empty", "text", "too long"])
def test_a_file_of_mnist_that_is_not_as_long_as_its_header_says_is_made_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve("mnist", always("whole"), monkeypatch.setattr) as server:
        load_images(DataConfig(name="mnist", path=str(tmp_path)))
        file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        whole = file.read_bytes()
        damaged = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"<html>", "too long": whole + b"0"}
        file.write_bytes(damaged[damage])
        images = load_images(DataConfig(name="mnist", path=str(tmp_path)))
        assert np.array_equal(images.source.images, PIXELS)  # type: ignore[attr-defined]
        assert set(server.asked.values()) == {1}  # from the verified archive beside it
    assert f"{file}: incomplete" in capsys.readouterr().err


def load_mnist(url: str, resources: list[tuple[str, str]], root: Path) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    datasets.MNIST.mirrors, datasets.MNIST.resources = [f"{url}/"], resources
    load_images(DataConfig(name="mnist", path=str(root)))


def resources_of(server: FileServer) -> list[tuple[str, str]]:
    return [(file, md5(content)) for file, content in server.files.items()]


@pytest.mark.faults
def test_a_process_killed_while_unpacking_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    many = np.zeros((300_000, 28, 28), np.uint8)  # 235 MB: long enough to be met half way
    raw = tmp_path / "MNIST" / "raw"

    def half_written() -> bool:
        # Under a name of its own, or, were it not so, under the final one.
        sizes = [path.stat().st_size for path in raw.glob("*train-images-idx3-ubyte*") if ".gz" not in path.name]
        return any(sizes)

    with FileServer(mnist_files(many)) as server:
        resources = resources_of(server)
        assert in_process(load_mnist, server.url, resources, tmp_path, kill_when=half_written) == -9
        leftover = [path for path in raw.glob(".train-images-idx3-ubyte*") if path.name.endswith(".tmp")]
        assert leftover, "killed too late"
        assert 0 < leftover[0].stat().st_size < many.nbytes
        assert not (raw / "train-images-idx3-ubyte").exists()
        assert in_process(load_mnist, server.url, resources, tmp_path) == 0
        assert set(server.asked.values()) == {1}
    assert (raw / "train-images-idx3-ubyte").read_bytes() == idx(many)
    assert not list(raw.glob(".*"))


@pytest.mark.faults
def test_a_process_killed_while_downloading_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    noise = np.random.default_rng(3).integers(0, 256, (4000, 28, 28), dtype=np.uint8)  # does not compress
    with FileServer(mnist_files(noise), always("stalls")) as server:
        resources = resources_of(server)
        half = len(server.files[resources[0][0]]) // 4

        def half_there() -> bool:
            return any(path.stat().st_size > half for path in raw.glob(".*.gz.*.tmp.*"))

        assert in_process(load_mnist, server.url, resources, tmp_path, kill_when=half_there) == -9
        assert [path.suffix for path in raw.iterdir()] == [".partial"]
        server.behaviour = always("whole")
        assert in_process(load_mnist, server.url, resources, tmp_path) == 0
    assert (raw / "train-images-idx3-ubyte").read_bytes() == idx(noise)
    assert not list(raw.glob(".*"))


def test_the_partial_file_of_another_machine_is_left_to_it(tmp_path: Path) -> None:
    content, file = b"content", tmp_path / "weights"
    host = socket.gethostname().partition(".")[0][:50]
    at_work, old, own = (tmp_path / f".weights.{owner}.tmp" for owner in ("elsewhere.1", "elsewhere.2", f"{host}.99999999"))
    for partial in (at_work, old, own):
        partial.touch()
    os.utime(old, (0, 0))
    with FileServer({"weights": content}) as server:
        download([f"{server.url}/weights"], file, "md5", md5(content))
    assert file.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [at_work, file]


def test_processes_that_start_at_once_download_once_and_read_the_same(tmp_path: Path) -> None:
    with FileServer(mnist_files(np.zeros((20_000, 28, 28), np.uint8))) as server:
        run_together(3, load_mnist, server.url, resources_of(server), tmp_path)  # not in turn: each loads for itself
        assert set(server.asked.values()) == {1}
