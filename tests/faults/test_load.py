"""Under load: many images, many lines, many checkpoints, a long day. Memory stays flat and time linear."""

import gc
import json
import os
import re
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tqdm.std
from accelerate import Accelerator
from PIL import Image

from benchmarks.alternating import peak_memory
from gan.config import GanConfig
from gan.data.datasets import ImageDataset, load_images
from gan.inference.images import encode
from gan.runs import checkpoints
from gan.runs.checkpoints import Checkpoint
from gan.runs.loggers import Tracker
from gan.runs.metrics import last_values
from gan.training.context import Metrics
from gan.training.loop import run_training
from gan.utils import cli
from gan.utils.distributed import connected
from gan.utils.files import write_atomically
from gan.utils.settings import to_yaml
from tests.faults.common import Capsys, Tiny, tell
from tests.workers import PROGRAMS, config_of, in_process

pytestmark = pytest.mark.faults
Report = dict[str, Any]


def memory() -> float:
    """What this process holds now, in MB, without what Python would free later: cycles of OmegaConf's wait for that."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def report_of(path: Path) -> Report:
    return dict(json.loads(path.read_text()))


class LightWork:
    """Work that computes nothing, so that all that a run costs is what is around it; see ``gan.training.loop.TrainingTask``."""

    images_per_step = 64

    def __init__(
        self,
        config: GanConfig,
        images: ImageDataset,
        on_step: Callable[[int], None],
        on_look: Callable[[int], None] | None = None,
    ) -> None:
        """``on_step`` is called with each step's number; ``on_look``, if there is one, after every 1,000 of them."""
        self.config, self.images, self.on_step, self.on_look = config, images, on_step, on_look
        self.total = config.training.steps
        self.weights = torch.arange(1000, dtype=torch.float32)
        names = ("d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm")
        self.metrics = {name: torch.tensor(0.5) for name in names}

    def restore(self, checkpoint: Checkpoint) -> None:
        assert torch.equal(checkpoint.weights["generator"]["weights"], self.weights)

    def begin(self) -> None: ...

    def snapshot(self, step: int) -> Checkpoint:
        weights = {"generator": {"weights": self.weights}}
        return Checkpoint(step, weights, {}, to_yaml(self.config), self.images.fingerprint)

    def prepare(self, number: int, stopping: Callable[[], bool]) -> None:
        """There are no images to wait for."""

    def step(self, number: int) -> Metrics:
        self.on_step(number)
        return self.metrics

    def learning_rates(self) -> dict[str, float]:
        return {"d_lr": 1e-4, "g_lr": 1e-4}

    def headline(self, values: dict[str, float]) -> str:
        return f"D {values['d_loss']:.3f}"

    def diagnose(self, step: int, values: dict[str, float], tracker: Tracker) -> dict[str, float]:
        return {}

    def should_evaluate(self, step: int) -> bool:
        return self.on_look is not None and step > 0 and step % 1000 == 0

    def evaluate(self, step: int, tracker: Tracker | None, *_: Any) -> None:
        assert tracker is not None
        assert self.on_look is not None
        self.on_look(step)
        pixels = np.full((64, 64), step % 256, dtype=np.uint8)
        folder = self.config.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{step:08d}.png", encode(pixels))
        tracker.image(step, "samples", pixels)

    def close(self) -> None:
        pass


def train_lightly(arguments: list[str], *of_work: Any) -> float:
    """A run of ``LightWork``. Returns the seconds that it took."""
    config = config_of(arguments)

    def begin(config: GanConfig, images: ImageDataset, _: Accelerator) -> LightWork:
        return LightWork(config, images, *of_work)

    def command() -> int:
        with connected() as accelerator:
            return run_training(
                config, accelerator, lambda: load_images(config.data), lambda config, _: config.training.steps, begin
            )

    torch.set_num_threads(1)
    began = time.monotonic()
    assert cli.run(command) == 0
    return time.monotonic() - began


# Images


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for what is too much to be kept after the test, as pytest would."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def make_images(place: Path, count: int) -> tuple[Path, Path]:
    """A tree and a zip of ``count`` small images, a thousand in a folder; links to ten files, so that they are made soon."""
    tree, archive = place / f"tree{count}", place / f"{count}.zip"
    tree.mkdir()
    for index in range(10):
        Image.fromarray(np.add.outer(np.arange(32), np.arange(32) * index).astype(np.uint8)).save(place / f"{index}.png")
    contents = [(place / f"{index}.png").read_bytes() for index in range(10)]
    with zipfile.ZipFile(archive, "w") as file:
        for index in range(count):
            name = f"{index // 1000:03d}/{index:06d}.png"
            if index % 1000 == 0:
                (tree / name).parent.mkdir()
            os.link(place / f"{index % 10}.png", tree / name)
            file.writestr(name, contents[index % 10])
    return tree, archive


def train_measured(arguments: list[str], report: Path) -> None:
    before, began = memory(), time.monotonic()
    assert cli.run(lambda: PROGRAMS["train"](arguments)) == 0
    seconds, children = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found = {"seconds": seconds, "mb": peak_memory(os.getpid()) - before, "worker_mb": max(0.0, children - before)}
    report.write_text(json.dumps(found))
    os._exit(0)


SIZES = (200, 20_000, 200_000)
PIXELS_MB = 200_000 * 32 * 32 / 1e6


def test_ten_times_as_many_images_take_at_most_ten_times_as_long_and_bounded_memory(
    place: Path, tiny: Tiny, capsys: Capsys
) -> None:
    found: dict[str, list[Report]] = {}
    for count in SIZES:
        tree, archive = make_images(place, count)
        cases = [(path, memory_gb) for path in (tree, archive) for memory_gb in (0, 8)]
        for path, memory_gb in [*cases, (archive, 8)]:
            what = f"a {'zip' if path == archive else 'folder'} {'in memory' if memory_gb else 'streamed'}"
            if memory_gb and path == archive:
                what += ", again" if len(found.get(what, [])) > SIZES.index(count) else ""
            data = [
                "data.name=folder",
                "data.channels=null",
                f"data.path={path}",
                "data.workers=2",
                f"data.memory_gb={memory_gb}",
            ]
            shutil.rmtree(place / "runs", ignore_errors=True)
            run = tiny(*data, "training.steps=2", "samples.every=0", f"run.dir={place / 'runs'}")
            assert in_process(train_measured, run, place / "report") == 0
            found.setdefault(what, []).append(report_of(place / "report"))
        shutil.rmtree(tree)
        archive.unlink()
    for what, (few, some, many) in found.items():
        shown = "; ".join(
            f"{count:,} images {r['seconds']:.2f} s, {r['mb']:.0f} MB (a worker {r['worker_mb']:.0f} MB)"
            for count, r in zip(SIZES, (few, some, many), strict=True)
        )
        tell(capsys, f"{what}: {shown}")
        ratio = SIZES[2] / SIZES[1]
        # Three times as much for a noisy machine, whose starts alone differ by seconds; the square would be a hundred times.
        assert many["seconds"] - few["seconds"] < 3 * ratio * max(some["seconds"] - few["seconds"], 2), what
        assert many["mb"] - few["mb"] < 1.5 * ratio * max(some["mb"] - few["mb"], 2), what
        # A kilobyte for each image's name and place beside its pixels, which a zip's first reading also hands to the cache.
        assert many["mb"] - few["mb"] < 200 + (1.2 * PIXELS_MB if "memory" in what else 0), what
        # A worker's own table, and the pixels, which it shares.
        assert many["worker_mb"] - few["worker_mb"] < 200 + (1.2 * PIXELS_MB if "memory" in what else 0), what


# Lines


class Reader:
    """Reads the lines of a file while it is written, as a monitor would, and parses each."""

    def __init__(self, path: Path) -> None:
        self.path, self.steps, self.looks, self._rest, self._at = path, [-1], 0, b"", 0

    def __call__(self) -> bool:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._at)
                *lines, self._rest = (self._rest + file.read()).split(b"\n")
                self._at = file.tell()
            self.looks += 1
            self.steps += [json.loads(line)["step"] for line in lines]
        return False  # never stop the process that is watched


def go_on_measured(arguments: list[str], report: Path) -> None:
    before, began, first = memory(), time.monotonic(), []

    def on_step(_: int) -> None:
        first.append((time.monotonic() - began, peak_memory(os.getpid()) - before))

    train_lightly(arguments, on_step)
    report.write_text(json.dumps({"seconds": first[0][0], "mb": first[0][1]}))
    os._exit(0)


def find_last(path: Path, key: str, report: Path) -> None:
    before, began = memory(), time.monotonic()
    values = last_values(path, key)
    seconds = time.monotonic() - began
    report.write_text(json.dumps({"values": values, "seconds": seconds, "mb": peak_memory(os.getpid()) - before}))
    os._exit(0)


def test_a_run_with_a_million_lines_starts_in_linear_time_and_flat_memory(place: Path, tiny: Tiny, capsys: Capsys) -> None:
    report, metrics = place / "report", place / "runs" / "tiny" / "metrics.jsonl"
    settings = ["checkpoint.every=10", f"run.dir={place / 'runs'}"]
    found: dict[int, list[Report]] = {}
    for count in (1_000, 100_000, 1_000_000):
        shutil.rmtree(place / "runs", ignore_errors=True)
        assert in_process(go_on_measured, tiny(*settings, "training.steps=10"), report) == 0
        line = json.loads(metrics.read_text().splitlines()[0])
        with metrics.open("w") as file:
            file.writelines(json.dumps({**line, "step": 1 + index * 10 // count}) + "\n" for index in range(count))
        size = metrics.stat().st_size / 1e6
        assert in_process(go_on_measured, tiny(*settings, "training.steps=12"), report) == 0
        found[count] = [report_of(report)]
        with metrics.open("rb") as file:
            assert sum(1 for _ in file) == count + 2
        for key in ("d_loss", "no such key"):
            assert in_process(find_last, metrics, key, report) == 0
            found[count].append(report_of(report))
            assert found[count][-1]["values"].get("step") == (12 if key == "d_loss" else None)
        shown = ("start", "last values", "a key that is nowhere")
        times = ", ".join(f"{what} {r['seconds']:.3f} s, {r['mb']:.0f} MB" for what, r in zip(shown, found[count], strict=True))
        tell(capsys, f"{count:,} lines, {size:.0f} MB: {times}")
    few, some, many = (found[count] for count in sorted(found))
    for case in range(3):
        linear = 3 * 10 * max(some[case]["seconds"] - few[case]["seconds"], 0.02)  # noise; the square would be a hundred times
        assert many[case]["seconds"] - few[case]["seconds"] < linear
    assert many[0]["mb"] < few[0]["mb"] + 10  # line by line
    assert many[1]["seconds"] < 0.1
    assert many[1]["mb"] < few[1]["mb"] + 10
    assert many[2]["mb"] < few[2]["mb"] + 1.1 * size  # the file itself, which the system may take back


# A day

DAY = 24 * 3600
STEPS, LOOKING = 80_000, 80.0  # steps of a second each; seconds that each of the 80 looks takes


def train_for_a_day(arguments: list[str], report: Path, errors: Path) -> None:
    """24 hours by a clock that goes on when a step is taken or looked at."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    now, held = 0.0, {}
    really = time.perf_counter()
    time.monotonic = tqdm.std.time = lambda: now  # type: ignore[assignment]

    def on_step(number: int) -> None:
        nonlocal now
        now += 1.0
        if number in (STEPS // 10, STEPS - 1):
            held[number] = memory()

    def on_look(_: int) -> None:
        nonlocal now
        now += LOOKING

    seconds = train_lightly(arguments, on_step, on_look)
    found = {"seconds": seconds, "really": time.perf_counter() - really, "mb": list(held.values())}
    report.write_text(json.dumps(found))
    os._exit(0)


def seconds_of(clock: str) -> int:
    """Of "h:mm:ss" or "m:ss"."""
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total


def test_a_day_keeps_its_memory_flat_its_lines_whole_its_checkpoints_few_and_its_clock_right(
    tmp_path: Path, tiny: Tiny, capsys: Capsys
) -> None:
    arguments = tiny(f"training.steps={STEPS}", "tracking.every=10", "checkpoint.every=1000", "checkpoint.keep=3")
    run = tmp_path / "runs" / "tiny"
    reader, folders = Reader(run / "metrics.jsonl"), [0]

    def watch() -> bool:
        if (run / "checkpoints").exists():
            # By step: a listing may hold a folder that is being renamed under both of its names.
            folders.append(len({path.name.rpartition("-")[2] for path in (run / "checkpoints").iterdir()}))
        return reader()

    assert in_process(train_for_a_day, arguments, tmp_path / "report", tmp_path / "errors", kill_when=watch) == 0
    reader()
    found = report_of(tmp_path / "report")
    assert found["seconds"] == DAY
    few, many = found["mb"]
    lines = re.findall(r"^step (\d+)/80000 +([\d.]+)/s  (-?[\d:]+) left", (tmp_path / "errors").read_text(), re.M)
    tell(
        capsys,
        f"a day in {found['really']:.0f} s: {len(lines):,} lines of progress, from '{lines[0][2]} left' to '{lines[-1][2]} left';"
        f" records read {reader.looks:,} times, at most {max(folders)} folders of checkpoints; memory {few:.1f} MB after a tenth,"
        f" {many:.1f} MB at the end",
    )
    assert len(lines) == STEPS // 10
    assert not any(left.startswith("-") for _, _, left in lines)
    for step, rate, left in ((int(a), float(b), c) for a, b, c in lines):
        if step % 1000 == 0:  # what has been looked at is told after that
            assert rate == pytest.approx(STEPS / DAY, abs=0.005)
            assert seconds_of(left) == pytest.approx(DAY * (1 - step / STEPS), abs=1)
        assert seconds_of(left) < DAY
    assert lines[-1][2] == "00:00"
    assert reader.steps == [-1, *range(10, STEPS + 1, 10)]
    assert reader._rest == b""
    assert reader.looks > 100
    assert max(folders) == 4
    assert [path.name for path in checkpoints.steps(run / "checkpoints")] == [f"step-{s:08d}" for s in (78_000, 79_000, 80_000)]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {record["images_per_second"] for record in records} == {64.0}  # looking is left out
    assert {record["seconds"] for record in records} == {10.0}
    assert len(list((run / "samples").iterdir())) == 80
    assert many - few < 3
