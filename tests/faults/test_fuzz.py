"""Any settings: a run comes to its second step, or is refused with one line and leaves nothing behind."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import study.__main__
import train as program
from eval.extractors import EXTRACTORS
from eval.protocols import PROTOCOLS
from gan.config import GanConfig, load_config
from gan.training.gan_task import GanTask
from study.classifier_task import ClassifierTask
from study.config import StudyConfig, load_study_config
from tests.faults.strategies import HUGE, SMALL, Kind, Values, as_words, as_yaml, hints, settings_of
from tests.faults.worlds import Outcome, called
from tests.small import QUICK, scale_down, small_extractor
from tests.test_mistakes import state

pytestmark = pytest.mark.slow
MANY = settings(suppress_health_check=list(HealthCheck), phases=[Phase.generate], max_examples=300)
STEPS = 2  # that a run must come to
FAST: Values = {"tracking.every": 1, "data.path": "images", "data.test_path": "images"}
# What a run is refused for that cannot be seen in its settings alone: a dry run opens no reference and few images.
ELSEWHERE = ("data.path", "weights ", "reference", "neither a data set", "no such folder or .zip", "no images", "not a .zip")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Deep in a folder, so that ``..`` stays inside of it; scores take milliseconds and no run more than some steps."""
    inner = tmp_path / "a" / "b" / "c" / "d"
    images = inner / "images"
    draw = np.random.default_rng(0)
    for index in range(12):
        (images / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (36, 34, 3), dtype=np.uint8)).save(images / str(index % 2) / f"{index}.png")
    monkeypatch.chdir(inner)
    scale_down(monkeypatch)
    for name in ("sngan", "standard"):
        monkeypatch.setitem(PROTOCOLS, name, QUICK)
    for name in ("inception", "inception-pytorch-fid"):
        published = EXTRACTORS[name]
        given_weights = lambda weights, device, name=name, published=published: (  # noqa: E731
            published(weights, device) if weights else small_extractor(name)
        )
        monkeypatch.setitem(EXTRACTORS, name, given_weights)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)  # would take minutes
    monkeypatch.setenv("HOME", "/nonexistent")
    _stop_after(monkeypatch, STEPS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a run only waits for more
    yield tmp_path
    torch.set_num_threads(threads)


def _stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """A run that would last longer gets SIGTERM, as a scheduler sends it, when it has come to its ``steps``-th step."""

    def counted(step: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def call(self: Any, number: int) -> Any:
            if number == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, number)

        return call

    for work in (GanTask, ClassifierTask):
        patch.setattr(work, "step", counted(work.step))


def fate(kind: Kind, words: list[str], root: Path) -> Outcome:
    """Runs a command of ``kind`` for real and dry, and holds it to what any settings must come to."""
    gan = kind is GanConfig
    main, first = (program.main, []) if gan else (study.__main__.main, ["train"])
    before = state(root)
    dry = called(main, [*first, *words, "--dry-run"])
    assert dry.code in (0, 2), dry
    assert state(root) == before, "a dry run has written"
    real = called(main, [*first, *words])
    after = state(root)
    new = {path: content for path, content in after.items() if before.get(path) != content}
    assert "Traceback" not in real.err
    if real.code == 2:
        assert len(real.errors()) == 1, real
        assert after == before, f"refused, but it has written {sorted(new)}"
        assert dry.code == 2 or any(words in real.err for words in ELSEWHERE), f"only the real run says {real.err}"
        return real
    assert dry.code == 0, f"the dry run refuses what runs: {dry.err}"
    config = (load_config if gan else load_study_config)(*_arguments(words))
    folder = config.folder.resolve()
    assert all(Path(path).is_relative_to(folder) or Path(path) in folder.parents for path in new), sorted(new)
    if real.code == 1:
        assert len(real.errors()) == 1 and any(words in real.err for words in ("not finite", "have exploded")), real
        shutil.rmtree(folder)
        return real
    assert real.code in (0, 128 + signal.SIGTERM), real
    assert not real.errors()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    total = getattr(config.training, "steps", None)
    assert max(steps) >= min(STEPS, total or 1), real
    shutil.rmtree(folder)
    return real


def _arguments(words: list[str]) -> tuple[Path, list[str]]:
    return Path(words[words.index("--config") + 1]), words[2:]


def both_ways(kind: Kind, calm: Values, wild: Values, root: Path, *, as_file: bool) -> Outcome:
    """The fate of settings, the ``wild`` ones in the file with the others or as words of the command line."""
    path = Path("given.yaml")
    path.write_text(as_yaml(calm | wild if as_file else calm), errors="surrogatepass")
    shutil.rmtree("runs", ignore_errors=True)
    return fate(kind, ["--config", str(path), *([] if as_file else as_words(wild))], root)


@pytest.mark.faults
@pytest.mark.parametrize("kind", [GanConfig, StudyConfig])
def test_any_settings_run_two_steps_or_are_refused_in_one_line(kind: Kind, place: Path) -> None:
    fates: Counter[int] = Counter()

    def try_them(values: tuple[Values, Values], as_file: bool) -> None:
        fates[both_ways(kind, *values, place, as_file=as_file).code] += 1

    MANY(given(settings_of(kind, FAST), st.booleans())(try_them))()
    assert fates[0] + fates[128 + signal.SIGTERM] > 0.1 * fates.total(), "hardly any of them ran"
    assert fates[2] > 0.1 * fates.total(), "hardly any of them were refused"


# What fuzzing has found, as a name, settings and words of the one line.
FOUND: dict[str, tuple[Kind, Values, str]] = {
    "a batch that no memory holds": (GanConfig, {"training.batch_size": HUGE}, "must be at most 1,048,576."),
    "images that no memory holds": (GanConfig, {"data.image_size": 8 * HUGE}, "must be at most 4,096."),
    "a hundred thousand channels": (GanConfig, {"model.generator.channels": 100_000}, "must be at most 8,192."),
    "noise without end": (GanConfig, {"model.latent_dim": 2**16 + 1}, "must be at most 65,536."),
    "a step without end": (GanConfig, {"training.d_steps": 1001}, "must be at most 1,000."),
    "a grid without end": (GanConfig, {"samples.count": 10_001}, "must be at most 10,000."),
    "a process for every image": (GanConfig, {"data.workers": 2**31, "data.memory_gb": 0}, "must be at most 1,024."),
    "more steps than can be counted": (GanConfig, {"training.steps": 2**63}, "must be below 2^63."),
    "an infinite penalty": (GanConfig, {"loss.penalty": float("inf")}, "must be a finite number."),
    "an infinite clip": (GanConfig, {"loss.name": "wgan", "loss.clip": float("inf")}, "must be a positive number"),
    "epochs without end": (StudyConfig, {"training.epochs": 1e30}, "must be at most 100,000."),
    "a histogram that no memory holds": (StudyConfig, {"probes.bins": 10_001}, "must be at most 10,000."),
    "a folder of a name too long": (StudyConfig, {"run.dir": "a" * 300}, "cannot be read (File name too long)."),
}


@pytest.mark.parametrize("found", FOUND)
def test_settings_that_fuzzing_found_are_refused_in_one_line(found: str, place: Path) -> None:
    kind, wild, words = FOUND[found]
    calm = {key: values[0] for key, values in SMALL.items() if key in hints(kind)}
    for as_file in (True, False):
        outcome = both_ways(kind, calm, wild, place, as_file=as_file)
        assert outcome.code == 2 and words in outcome.err, outcome


def test_the_word_off_means_off_although_yaml_reads_it_as_false(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("tracking: {wandb: off}")
    assert load_config(path).tracking.wandb == load_config(path, ["tracking.wandb=off"]).tracking.wandb == "off"
