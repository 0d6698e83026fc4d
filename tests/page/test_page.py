"""The page of runs: what it shows of runs that are done, in progress, damaged or of classifiers."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gan.__main__
from gan.page.curves import draw
from gan.page.panels import Line, Panel
from gan.page.pictures import MAX_SIDE, choose_steps, read_picture, read_pictures
from gan.page.records import Event, read_run_records, shared_and_different
from gan.utils import cli
from tests.browser import browser
from tests.conftest import again, command
from tests.small import scale_down

Change = Callable[..., Path]


def page(*words: object) -> int:
    """Return the exit code of ``python -m gan page WORDS``, run in this process."""
    return cli.run(lambda: gan.__main__.main(["page", *map(str, words)]))


@pytest.fixture
def make(finished_run: Path, tmp_path: Path) -> Change:
    """A copy of the finished run with more ``lines`` of metrics, a ``change`` of settings (old, new), ``grids`` at more steps."""

    def copy(name: str, lines: list[str] | None = None, change: tuple[str, str] = ("", ""), grids: tuple[int, ...] = ()) -> Path:
        folder = Path(shutil.copytree(finished_run, tmp_path / "runs" / name))
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(f"{line}\n" for line in lines or [])
        config = folder / "config.yaml"
        assert change[0] in config.read_text()
        config.write_text(config.read_text().replace(*change))
        for step in grids:
            shutil.copy(folder / "samples" / "step-00000004.png", folder / "samples" / f"step-{step:08d}.png")
        return folder

    return copy


def test_the_page_is_one_file_that_loads_nothing(make: Change, tmp_path: Path) -> None:
    assert page(make("a"), make("b"), "--out", tmp_path / "new" / "page.html") == 0
    text = (tmp_path / "new" / "page.html").read_text()
    sources = re.findall(r"(?:src|href)=\"(.*?)\"", text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in text
    assert text.count("<img") == len(re.findall(r"<img[^>]*\balt=\"samples of [ab] at step [024]\"", text)) == 6
    assert all(count == 1 for count in Counter(re.findall(r"\bid=\"(.*?)\"", text)).values())
    assert set(re.findall(r"href=\"#(.*?)\"|url\(#(.*?)\)", text)), "markers and clips are found by their ids"
    for title in ("Losses", "Mean outputs of D", "Gradient norms", "Settings", "Environment"):
        assert title in text
    assert "done, step 4 of 4" in text


def test_runs_are_compared_by_the_settings_that_differ(make: Change) -> None:
    runs = read_run_records([make("a"), make("b", change=("d_lr: 0.0002", "d_lr: 0.0004"))])
    _, different = shared_and_different([dict(run.settings) for run in runs])
    assert different == [["optimizer.d_lr", "0.0002", "0.0004"]]
    assert shared_and_different([{"a": "1", "b": "2"}, {"a": "1"}]) == ([["a", "1"]], [["b", "2", "-"]])


def test_names_from_outside_are_escaped_and_told_apart(make: Change, tmp_path: Path) -> None:
    run = make("<script>alert(1)</script>")
    other = Path(shutil.copytree(run, tmp_path / "other" / run.name))
    assert page(run, run, other, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "<title>2 runs</title>" in text
    assert "alert(1)" in text and "<script>alert" not in text
    assert [record.label for record in read_run_records([run, other])] == [str(run), str(other)]


def test_each_run_shows_its_newest_picture_at_common_steps(make: Change) -> None:
    long, short = (run.grids for run in read_run_records([make("long", grids=(300, 500)), make("short", grids=(400,))]))
    steps = choose_steps([long, short], 100)
    assert steps == [0, 2, 4, 300, 400, 500]
    assert choose_steps([long, short], 3) == [0, 4, 500]
    assert [picture.step for picture in read_pictures(short, steps)] == [0, 2, 4, 400]
    assert [picture.step for picture in read_pictures(short, [0, 300, 500])] == [0, 4, 400]
    assert read_pictures(short, []) == []


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    Image.effect_noise((2 * MAX_SIDE, MAX_SIDE), 50).save(tmp_path / "large.png")
    picture = read_picture(tmp_path / "large.png")
    assert (picture.width, picture.height) == (MAX_SIDE, MAX_SIDE // 2)


def test_long_curves_keep_their_peaks_and_gaps() -> None:
    values = dict.fromkeys(range(0, 100000, 10), 1.0)
    values[55_550] = 70.0
    (drawing,) = draw([Panel("Losses", "D", [Line(0, False, {**values, 60_000: float("nan")})])], ["run"], "x")
    assert len(drawing.svg) < 60_000
    path = max(re.findall(r'<path d="(.*?)"', drawing.svg, re.DOTALL), key=len)
    heights = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    places = np.array([float(x) for x, _ in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)])
    peak = drawing.left + drawing.width * 55_550 / drawing.last
    assert abs(places[int(np.argmin(heights))] - peak) < 1
    assert drawing.description == "Losses (D) over steps. run: 1 at step 0 to 1 at step 99,990."


def test_health_warnings_stand_at_the_steps_at_which_they_began(make: Change, tmp_path: Path) -> None:
    lines = [
        '{"step": 250, "samples_spread": 0.01}', '{"step": 300, "d_loss": NaN, "d_chance_steps": 2000}',
        '{"step": 350, "d_chance_steps": 2050}', '{"step": 400, "d_chance_steps": 0}', '{"step": 450, "samples_spread": 0.02}',
    ]  # fmt: skip
    run = make("a", lines)
    (record,) = read_run_records([run])
    found = [Event(250, "samples collapsed (spread 1.0% of real images)"), Event(300, "D at chance for 2000 steps")]
    assert record.events == found
    (run / "diverged.json").write_text(json.dumps({"reason": "gradients have exploded"}))
    assert read_run_records([run])[0].events == [*found, Event(4, "gradients have exploded")]
    assert page(run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "step 300: D at chance" in text
    assert "bars: health warnings" in text


@pytest.mark.slow
def test_scores_are_drawn_with_their_floor_and_only_beside_comparable_ones(
    run: Path, make: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_down(monkeypatch)
    assert command(again(run, "training.steps=8", "evaluation.every=2", "evaluation.extractor=efficientnet-lite0")) == 0
    other = make("other")
    line = json.loads((run / "scores.jsonl").read_text().splitlines()[-1])
    line["provenance"]["extractor"]["extractor"] = "inception"
    (other / "scores.jsonl").write_text(json.dumps({**line, "series": "another"}) + "\n")
    assert page(run, other, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    floor = line["floor"]["fid"]["mean"]
    assert text.count(f"</b> lower is better; dotted: real images, {floor:.4g}") == 2, "one panel for each extractor"
    assert "By efficientnet-lite0 under the protocol watch, ema weights, while training, against digits" in text
    assert "By inception under the protocol watch, ema weights, while training" in text
    (other / "scores.jsonl").write_text(json.dumps({**line, "series": "another", "source": "command"}) + "\n")
    assert page(other, "--out", tmp_path / "other.html") == 0
    assert f"ema weights, by command, seed {line['provenance']['seed']}" in (tmp_path / "other.html").read_text()


@pytest.mark.slow
def test_a_saved_picture_of_neighbours_is_shown(make: Change, tmp_path: Path) -> None:
    run = make("a")
    words = ["--neighbours", "2", "--count", "3"]
    assert cli.run(lambda: gan.__main__.main(["sample", str(run), "--out", str(run / "neighbours.png"), *words])) == 0
    assert page(run, "--out", tmp_path / "page.html") == 0
    assert "samples of a, each in a row with its nearest training images" in (tmp_path / "page.html").read_text()


def test_training_ends_with_a_page_where_it_is_asked_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*again(run), "--page"]) == 0
    assert f"page:        {run / 'page.html'}\n" in capsys.readouterr().out
    assert "done, step 4 of 4" in (run / "page.html").read_text()


def test_a_run_in_progress_is_shown_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "samples")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 5, "d_lo')
    assert page(run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "stopped, step 4 of 4" in text
    assert "Losses" in text and '<input type="range"' not in text


# Words of the command after the run, what is done to the run's folder before, and a part of the error.
MISTAKES: dict[str, tuple[list[str], Callable[[Path], object], str]] = {
    "no page": (["--out", "page.png"], lambda run: None, "a page is an .html file"),
    "an existing file": (["--out", "{}/config.html"], lambda run: (run / "config.html").touch(), "exists. Choose another name"),
    "a file as a folder": (["--out", "{}/config.yaml/page.html"], lambda run: None, "cannot be written"),
    "no run": (["{}/samples", "--out", "{}/page.html"], lambda run: None, "no run. Expected a run's folder"),
    "no such folder": (["{}/none", "--out", "{}/page.html"], lambda run: None, "no run. Expected a run's folder"),
    "one picture": (["--grids", "1", "--out", "{}/page.html"], lambda run: None, "expected a whole number from 2 up"),
    "a damaged record": (
        ["--out", "{}/page.html"], lambda run: (run / "metrics.jsonl").write_text("{\n"), "a line is damaged"),
    "a damaged line of probes": (
        ["--out", "{}/page.html"], lambda run: (run / "probes.jsonl").write_text("[]\n"), "line 1 is damaged"),
    "a damaged score": (["--out", "{}/page.html"], lambda run: (run / "scores.jsonl").write_text("{}\n"), "is not a score"),
    "a damaged environment": (
        ["--out", "{}/page.html"], lambda run: (run / "environment.json").write_text("1"), "environment.json: damaged"),
    "damaged settings": (["--out", "{}/page.html"], lambda run: (run / "config.yaml").write_text("["), "not YAML"),
    "a damaged picture": (
        ["--out", "{}/page.html"], lambda run: (run / "samples" / "step-00000002.png").write_bytes(b"x"), "not an image"),
    "a folder as a picture": (
        ["--out", "{}/page.html"], lambda run: (run / "samples" / "step-00000009.png").mkdir(), "directory"),
    "a classifier beside a GAN": (
        ["{}/other", "--out", "{}/page.html"],
        lambda run: [(run / "other").mkdir(), (run / "other" / "config.yaml").write_text(
            "probes: {every: 1}\ntraining: {epochs: 1, batch_size: 2}\n")],
        "a classifier, which have no curve in common",
    ),
    "nothing to show": (
        ["--out", "{}/page.html"],
        lambda run: [(run / "metrics.jsonl").write_text(""), shutil.rmtree(run / "samples")],
        "nothing to show yet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_line(mistake: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, prepare, expected = MISTAKES[mistake]
    prepare(run)
    assert page(run, *(word.replace("{}", str(run)) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ") and expected in error
    assert not (run / "page.html").exists()


@pytest.mark.slow
def test_a_classifier_is_shown_with_its_accuracy_and_layers(tmp_path: Path) -> None:
    from tests.study.common import train

    train(tmp_path)
    assert page(tmp_path, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "test accuracy" in text
    for title in ("Accuracy", "Loss", "Layer 1: gradient", "Layer 4: means"):
        assert f"<b>{title}</b>" in text


# Elements that stand out of the window to the right and are in no part that scrolls.
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => !e.parentElement.closest('.wide')
    && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg')).map(e => e.outerHTML.slice(0, 80))"""
SHOWN = "[...document.querySelectorAll('.run img:not([hidden])')].map(e => [e.alt, e.naturalWidth > 0])"
BRIGHTNESS = "getComputedStyle(document.documentElement).colorScheme + getComputedStyle(document.body).color"


@pytest.mark.slow
def test_a_real_browser_shows_the_page(make: Change, tmp_path: Path) -> None:
    runs = [make("long_name_of_a_run_" * 3 + str(seed), grids=(300, 500)[: 2 - seed]) for seed in range(2)]
    assert page(*runs, make("third"), "--out", tmp_path / "page.html") == 0
    with browser(tmp_path / "profile") as shown:
        for width in (380, 1400):
            for scheme in ("light", "dark"):
                shown.open(tmp_path / "page.html", width, scheme=scheme)
                shown.run("document.querySelectorAll('details').forEach(part => part.open = true)")
                assert shown.run("innerWidth") == width
                assert shown.run("document.documentElement.scrollWidth") == width
                assert shown.run(OVERFLOWING) == []
                ink = shown.run("getComputedStyle(document.querySelector('svg text')).fill")
                assert ink == shown.run("getComputedStyle(document.body).color")
                assert ink == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
        assert shown.run("[...document.querySelectorAll('img, svg')].filter(e => !(e.alt || e.ariaLabel)).length") == 0
        texts = [text for text, _ in shown.run(SHOWN)]
        assert [text.rpartition(" at ")[2] for text in texts] == ["step 500", "step 300", "step 4"]

        shown.run("document.activeElement.blur()")
        focused = "document.activeElement.id"
        for _ in range(5):
            if shown.run(focused) == "step":
                break
            shown.press("Tab", 9)
        assert shown.run(focused) == "step", "the slider is reached by the keyboard"
        shown.press("ArrowLeft", 37)
        assert [text.rpartition(" at ")[2] for text, _ in shown.run(SHOWN)] == ["step 300", "step 300", "step 4"]
        assert shown.run("[shown.value, step.ariaValueText ?? step.getAttribute('aria-valuetext')]") == ["step 300"] * 2
        shown.press("Home", 36)
        assert all(seen for _, seen in shown.run(SHOWN))
        assert [text.rpartition(" at ")[2] for text, _ in shown.run(SHOWN)] == ["step 0"] * 3
        places = shown.run("[...document.querySelectorAll('.now')].map(e => [e.getAttribute('x1'), e.dataset.left])")
        assert places and all(at == left for at, left in places), "the curves mark the step"

        shown.run("play.focus()")
        shown.press(" ", 32)
        assert shown.run("play.textContent") == "Pause"
        ended = "new Promise(done => setInterval(() => play.textContent === 'Play' && done(step.value), 50))"
        assert shown.run(ended) == "4", "it plays to the last of five steps, and stops"
        assert shown.complaints == []
