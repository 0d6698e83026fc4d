"""Hostile files, met by the real commands: exit code 2, one line, no code run, nothing written, and memory within a bound."""

import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.faults import hostile
from tests.faults.hostile import Code, command, npy, npz, png, png_chunk, safetensors_file, saved, seal, seal_text

pytestmark = pytest.mark.faults

MOST = 1000  # MiB that a command may have in memory while it refuses a file; with a harmless one it needs 550 to 800
Attack = Callable[[Path], list[str]]  # makes a hostile file in a world, and says which command meets it

SCORE = ["--extractor", "efficientnet-lite0"]


@pytest.fixture
def world(tmp_path: Path, finished_run: Path) -> Path:
    """A folder with a run and some images."""
    world = tmp_path / "world"
    shutil.copytree(finished_run, world / "runs" / "run")
    (world / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (index, 2, 3)).save(world / "images" / f"{index}.png")
    return world


def train_on(path: Path) -> list[str]:
    """Training on a folder or zip that is not there yet."""
    runs = path.parent / "runs"
    return ["train.py", *TINY, f"run.dir={runs}", "run.name=new", "training.steps=2", "data.name=folder", f"data.path={path}"]


def go_on(world: Path) -> list[str]:
    run = world / "runs" / "run"
    return ["train.py", "--config", str(run / "config.yaml"), f"run.dir={run.parent}", "run.name=run", "training.steps=9"]


def sample(world: Path) -> list[str]:
    return ["gan", "sample", str(world / "runs" / "run"), "--out", str(world / "a.png")]


def compare(path: Path) -> list[str]:
    """Statistics or images against images."""
    return ["eval", "images", str(path), str(path.parent / "images"), "--made-by", "efficientnet-lite0", *SCORE]


def image(name: str, content: bytes) -> Attack:
    def make(world: Path) -> list[str]:
        (world / "images" / name).write_bytes(content)
        return train_on(world / "images")

    return make


def in_zip(*entries: tuple[bytes, bytes, int, int, int]) -> Attack:
    return lambda world: train_on(hostile.raw_zip(world / "a.zip", entries))


def zeros_in_zip(claimed: int) -> Attack:
    return lambda world: in_zip((b"a.png", hostile.deflated_zeros(2**34)[0], 8, claimed, 0))(world)


def checkpoint(name: str, content: Callable[[Path], bytes], words: Callable[[Path], list[str]] = go_on) -> Attack:
    """Puts a file into all checkpoints of the run, with right checksums."""

    def make(world: Path) -> list[str]:
        for folder in (world / "runs" / "run" / "checkpoints").iterdir():
            (folder / name).write_bytes(content(world))
            seal(folder)
        return words(world)

    return make


def manifest(text: Callable[[str], str]) -> Attack:
    def make(world: Path) -> list[str]:
        for folder in (world / "runs" / "run" / "checkpoints").iterdir():
            seal_text(folder, text((folder / "checkpoint.json").read_text()))
        return go_on(world)

    return make


def configuration(text: str) -> Attack:
    def make(world: Path) -> list[str]:
        (world / "x.yaml").write_text(text)
        return ["train.py", "--config", str(world / "x.yaml")]

    return make


def weights(content: Callable[[Path], bytes]) -> Attack:
    def make(world: Path) -> list[str]:
        (world / "w.pth").write_bytes(content(world))
        return [*compare(world / "images"), "--weights", str(world / "w.pth")]

    return make


def record(name: str, line: bytes, words: Callable[[Path], list[str]]) -> Attack:
    def make(world: Path) -> list[str]:
        (world / "runs" / "run" / name).write_bytes(line)
        return words(world)

    return make


def table2(world: Path) -> list[str]:
    return ["eval", "table2", str(world / "runs" / "run"), "--out", str(world / "table")]


def packed_bomb(world: Path) -> list[str]:
    size = 100 * 2**30
    packed, _ = hostile.deflated_zeros(size)
    return compare(hostile.raw_zip(world / "x.npz", [(b"mu.npy", packed, 8, size, 0), (b"sigma.npy", packed, 8, size, 0)]))


def pipe(world: Path) -> list[str]:
    os.mkfifo(world / "images" / "9.png")
    return train_on(world / "images")


def device(world: Path) -> list[str]:
    (world / "images" / "9.png").symlink_to("/dev/zero")
    return train_on(world / "images")


def endless(world: Path) -> list[str]:
    for folder in (world / "runs" / "run" / "checkpoints").iterdir():
        (folder / "optimizers.pt").unlink()
        (folder / "optimizers.pt").symlink_to("/dev/zero")
    return go_on(world)


def link(world: Path) -> list[str]:
    (world / "runs" / "run" / "metrics.jsonl").unlink()
    (world / "runs" / "run" / "metrics.jsonl").symlink_to(world / "images" / "0.png")
    return go_on(world)


def animation(world: Path) -> list[str]:
    for index, content in enumerate((hostile.HEADERS["png"](60_000, 60_000), b"no image")):
        (world / "runs" / "run" / "samples" / f"step-{index:08d}.png").write_bytes(content)
    return ["gan", "sample", str(world / "runs" / "run"), "--animate", "--out", str(world / "a.gif")]


PIXELS = png_chunk(b"IDAT", zlib.compress(bytes(32 * (32 * 3 + 1))))
GOOD = png(32, 32, PIXELS)
EYE = np.eye(1280)
MEAN, SIGMA = npy("(1280,)", data=bytes(1280 * 8)), npy("(1280, 1280)", data=EYE.tobytes())
BOMB_YAML = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
HEADER = b'{"layers.0.0.weight":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}%s}'
ANOTHER = safetensors_file(HEADER % (4, 0, 16, b""), bytes(16))
NONE_LEFT = "no usable checkpoint"

# What is done, and words of the line that must come.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "60,000 x 60,000": (image("9.png", hostile.HEADERS["png"](60_000, 60_000)), "exceeds limit"),
    "a pipe among the images": (pipe, "a pipe or a device"),
    "a device among the images": (device, "a pipe or a device"),
    "ten million entries": (lambda world: train_on(hostile.many_entries(world / "a.zip", 10**7)), "table of contents"),
    "an entry that unpacks to 16 GB and claims 100 bytes": (zeros_in_zip(100), "a.zip: a.png"),
    "an entry that unpacks to 16 GB": (zeros_in_zip(2**34), "are no image"),
    "a name with terminal codes": (in_zip((b"\x1b[31m\nerror: x\r.png", b"?", 0, 1, 0)), "not an image"),
    "a path outside": (in_zip((b"../../evil.png", b"?", 0, 1, 0)), "not an image"),
    "code in optimizers.pt": (checkpoint("optimizers.pt", lambda world: saved({"generator": Code(world)})), NONE_LEFT),
    "a device for optimizers.pt": (endless, NONE_LEFT),
    "other values in optimizers.pt": (checkpoint("optimizers.pt", lambda _: saved({"generator": 1})), "does not fit"),
    "a safetensors header of 2^60 bytes": (
        checkpoint("ema.safetensors", lambda _: safetensors_file(b"{}", length=2**60)), NONE_LEFT),
    "safetensors beyond the file": (
        checkpoint("ema.safetensors", lambda _: safetensors_file(HEADER % (2**40, 0, 2**42, b""))), NONE_LEFT),
    "safetensors of another network": (
        checkpoint("generator.safetensors", lambda _: ANOTHER), "does not fit"),
    "safetensors of another network, sampled": (
        checkpoint("ema.safetensors", lambda _: ANOTHER, sample), "do not fit"),
    "a manifest that names files outside": (
        manifest(lambda text: text.replace('"ema.safetensors"', '"../../../../images/0.png"')), NONE_LEFT),
    "a manifest of a file of an exabyte": (
        manifest(lambda text: re.sub(r'"bytes": \d+', '"bytes": 1' + "0" * 18, text)), NONE_LEFT),
    "a manifest nested too deep": (manifest(lambda _: "[" * 10**6), NONE_LEFT),
    "a configuration of a huge network": (
        checkpoint("config.yaml", lambda world: (world / "runs/run/config.yaml").read_bytes().replace(
            b"channels: 4", b"channels: 8192"), sample), "weights do not fit"),
    "a configuration with a tag, sampled": (
        checkpoint("config.yaml", lambda _: b"seed: !!python/name:os.system\n", sample), "tags"),
    "billion laughs": (configuration(BOMB_YAML), "anchors"),
    "100 MB of YAML": (configuration("# comment\n" * 10**7), "at most 65,536"),
    "statistics with code": (
        lambda world: compare(npz(world / "x.npz", mu=hostile.pickled_npy(world), sigma=SIGMA)), "no statistics file"),
    "statistics that unpack to 100 GB": (packed_bomb, "no statistics file"),
    "statistics of ten million entries": (
        lambda world: compare(hostile.many_entries(world / "x.npz", 10**7)), "no statistics file"),
    "weights with code": (weights(lambda world: saved({"a": Code(world)})), "not a state_dict"),
    "scores nested too deep": (record("scores.jsonl", b"[" * 10**6 + b"\n", table2), "is not a score"),
    "starts nested too deep": (record("environment.json", b"[" * 10**6, go_on), "damaged"),
    "a link in the run's folder": (link, "a link"),
    "pictures that are none": (animation, "exceeds limit"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_by_the_command_that_meets_it(attack: str, world: Path) -> None:
    make, words = ATTACKS[attack]
    arguments = make(world)
    before = hostile.listing(world)
    outcome = command(world, *arguments)
    assert outcome.code == 2, outcome
    assert len(outcome.errors) == 1, outcome.lines
    assert words in outcome.errors[0]
    assert not any("Traceback" in line for line in outcome.lines)
    assert not hostile.terminal_codes("".join(outcome.lines) + outcome.out.replace("\n", ""))
    assert not list(world.parent.rglob(hostile.CANARY)), "code of the file was run"
    after = hostile.listing(world)
    made = {path for path in after if path not in before and not path.startswith(str(world / "cache"))}
    assert not made, "written"
    assert {path: after.get(path) for path in before} == before, "changed"
    assert outcome.peak < MOST, f"{outcome.peak} MiB"


def test_the_largest_image_that_is_read_stays_within_two_gigabytes(world: Path) -> None:
    Image.new("RGB", (9400, 9400)).save(world / "images" / "9.png")
    outcome = command(world, *train_on(world / "images"))
    assert outcome.code == 0, outcome
    assert outcome.peak < 2000, f"{outcome.peak} MiB"


def test_hostile_records_of_a_study_are_refused(world: Path) -> None:
    study = world / "study"
    small = ["training.epochs=1", "data.train_images=64", "data.test_images=64", "probes.every=1"]
    words = ["--config", str(hostile.ROOT / "configs/study/digits_cnn3.yaml"), f"run.dir={study}", "run.name=run", *small]
    assert command(world, "study", "train", *words).code == 0
    for name, reader in (("metrics.jsonl", "tables"), ("probes.jsonl", "figures")):
        whole = (study / "run" / name).read_bytes()
        for line in (b"[" * 10**6, b'{"step": 1, "test_accuracy": "1"}', b"[1]", b'{"step": 1e999}'):
            (study / "run" / name).write_bytes(line + b"\n" + whole)
            outcome = command(world, "study", reader, str(study), "--out", str(world / "out"))
            assert outcome.code == 2, outcome
            assert len(outcome.errors) == 1
            assert f"{name}: a damaged line" in outcome.errors[0]
        (study / "run" / name).write_bytes(whole)
