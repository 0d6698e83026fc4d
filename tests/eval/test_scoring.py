"""Scores of generators: by command and during training, repeatable to the bit, with their whole protocol."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval import __main__ as program
from eval import measurement
from eval.comparison_keys import comparison_key
from eval.features import Features
from eval.formatting import format_comparison, format_record
from eval.measurement import Reference, measure
from eval.protocols import PROTOCOLS, Protocol
from eval.scoring import TRAINING_SEED, TrainingScorer
from gan import load_generator
from gan.config import EvaluationConfig
from gan.runs import scores
from gan.utils import cli
from gan.utils.errors import UserError
from tests.conftest import TINY, again, command
from tests.small import scale_down
from tests.training.test_resume import contents
from tests.workers import run_together, train_here

Tiny = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))


def evaluate(*arguments: object) -> int:
    """The exit code of ``python -m eval ARGUMENTS``."""
    return cli.run(lambda: program.main([str(argument) for argument in arguments]))


def score(run: Path, *arguments: object, protocol: str = "paper") -> list[dict[str, object]]:
    assert evaluate("score", run, "--protocol", protocol, "--extractor", "efficientnet-lite0", *arguments) == 0
    return scores.read(run)


def picture_folder(folder: Path, count: int, size: tuple[int, int] = (32, 32), seed: int = 0, mode: str = "RGB") -> Path:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    for index in range(count):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index:03d}.png")
    return folder


def random_features(count: int, seed: int, shift: float = 0.0) -> Features:
    draw = np.random.RandomState(seed)
    values = (draw.randn(count, 6) + shift).astype(np.float32)
    images = {"weights": "ema", "seed": seed, "content": str(seed)}
    return Features(values, (3 * draw.randn(count, 4)).astype(np.float32), images, {"extractor": "efficientnet-lite0"})


# Protocols


def test_settings_name_the_protocols_that_there_are() -> None:
    assert {*PROTOCOLS, "auto"} == set(EvaluationConfig.__annotations__["protocol"].__args__)


@pytest.mark.parametrize(
    ("name", "runs", "samples", "splits", "reference"),
    [("sngan", 10, 5000, 1, 10_000), ("standard", 1, 50_000, 10, None)],
)
def test_protocols_are_what_their_papers_state(name: str, runs: int, samples: int, splits: int, reference: int | None) -> None:
    protocol = PROTOCOLS[name]
    assert (protocol.runs, protocol.samples, protocol.splits, protocol.reference) == (runs, samples, splits, reference)


SMALL = Protocol(
    name="quick",
    purpose="",
    runs=3,
    samples=50,
    reference=120,
    kid_size=20,
    kid_subsets=4,
    infinity_start=60,
    infinity_points=4,
    neighbours=2,
)


def test_a_score_is_mean_and_deviation_over_disjoint_runs_and_the_pooled_distance() -> None:
    from eval.metrics import frechet_distance
    from eval.statistics import gaussian_stats

    generated, reference = random_features(150, 0, shift=1), Reference(random_features(400, 1))
    found = measure(generated, reference, SMALL)
    real, real_moments = reference.subset(SMALL)
    assert real is not None
    assert len(real) == 120
    each = [frechet_distance(gaussian_stats(generated.values[i * 50 : (i + 1) * 50]), real_moments) for i in range(3)]
    assert found["fid"]["values"] == pytest.approx(each, rel=1e-9)
    assert (found["fid"]["mean"], found["fid"]["std"]) == pytest.approx((np.mean(each), np.std(each)))
    assert found["pooled"]["fid"] == pytest.approx(frechet_distance(gaussian_stats(generated.values), real_moments), rel=1e-9)
    assert found["pooled"]["fid"] < found["fid"]["mean"], "few images score worse than all of them"


def test_a_record_lacking_an_entry_that_tables_read_is_not_a_score() -> None:
    found = measure(
        random_features(60, 0), Reference(random_features(400, 1)), Protocol(**{**vars(SMALL), "runs": 1, "samples": 60})
    )
    assert scores.is_measurement(found)
    for name in ("fid", "inception_score", "kid"):
        assert not scores.is_measurement({key: value for key, value in found.items() if key != name})
    for name in ("fid", "fid_infinity", "precision", "recall"):
        assert not scores.is_measurement({**found, "pooled": {k: v for k, v in found["pooled"].items() if k != name}})
    for name in ("precision", "recall", "density", "coverage"):
        assert not scores.is_measurement({**found, "pooled": {**found["pooled"], name: None}}), "one of a pair"


def test_the_deviation_of_kid_is_unknown_where_each_subset_is_all_images() -> None:
    whole = Protocol(**{**vars(SMALL), "runs": 1, "samples": 90, "reference": None, "kid_size": 500})
    for count, known in ((90, False), (91, True)):
        found = measure(random_features(90, 0), Reference(random_features(count, 1)), whole)
        assert (found["kid"]["size"], found["kid"]["std"] is not None) == (90, known)
        assert scores.is_measurement(found)
        found["kid"]["std"] = 0.0
        assert scores.is_measurement(found), "records of older versions still load"
    alike = measurement.compare_images(random_features(40, 3), random_features(40, 4), splits=1, kid_size=40)
    assert alike["kid"]["std"] is None
    shown = format_comparison({**alike, "provenance": {"extractor": {"extractor": "efficientnet-lite0", "weights_sha256": ""}}})
    assert "±" not in next(line for line in shown.splitlines() if "KID" in line)


def test_the_floor_is_of_real_images_that_are_not_in_the_reference() -> None:
    reference = random_features(400, 1)
    left_over = measurement.floor(Reference(reference), SMALL)
    assert left_over is not None
    assert (left_over["runs"], left_over["samples"], left_over["reference"]) == (3, 50, 120)
    taken_out = measurement.floor(Reference(reference), Protocol(**{**vars(SMALL), "reference": None}))
    assert taken_out is not None
    assert (taken_out["runs"], taken_out["samples"], taken_out["reference"]) == (3, 50, 250)
    held_out = measurement.floor(Reference(reference), SMALL, random_features(70, 2))
    assert held_out is not None
    assert (held_out["runs"], held_out["samples"]) == (1, 50)
    # Had they been in the reference, some would be at distance 0 of themselves: precision would be 1 and KID below 0.
    assert left_over["pooled"]["precision"] < 1
    generated = measure(random_features(150, 0, shift=1), Reference(reference), SMALL)
    assert left_over["fid"]["mean"] < generated["fid"]["mean"] / 3


def test_a_floor_of_fewer_images_than_its_score_says_so_beside_it() -> None:
    everything = Protocol(**{**vars(SMALL), "runs": 1, "samples": 300, "splits": 2, "reference": None})

    def shown(count: int, held_out: Features | None) -> list[str]:
        reference = Reference(random_features(count, 1))
        floor = measurement.floor(reference, everything, held_out)
        record = measurement.make_record(random_features(300, 0), reference, everything, floor, {"weights": "ema"})
        record["provenance"]["extractor"] = {"extractor": "efficientnet-lite0", "weights_sha256": "0"}
        return format_record("x", {**record, "step": 1}).splitlines()

    fewer = shown(500, None)
    assert "real, fewer images: " in fewer[1]
    assert fewer[-1] == (
        "  (real: images taken out of the reference, 1 x 250 against 250; the score is of 1 x 300 against 500, where real"
        " images would score better)"
    )
    alike = shown(500, random_features(300, 2))
    assert alike[-1] == "  (real: held-out images, 1 x 300 against 500)"
    assert "fewer" not in "".join(alike)


def test_held_out_images_in_the_order_of_their_classes_make_the_floor_that_shuffled_ones_make() -> None:
    def classes(count: int, seed: int) -> Features:
        one = random_features(count, seed)
        shifted = one.values + np.repeat(np.arange(10), count // 10)[:, None].astype(np.float32) * 5
        return Features(shifted, one.logits, one.images, one.extractor)

    protocol = Protocol(**{**vars(SMALL), "reference": None})
    reference, held_out = Reference(classes(1000, 1)), classes(150, 2)
    ordered = measurement.floor(reference, protocol, held_out)
    shuffled = measurement.floor(reference, protocol, held_out[np.random.RandomState(0).permutation(150)])
    assert ordered is not None
    assert shuffled is not None
    assert ordered["fid"]["mean"] < 3 * shuffled["fid"]["mean"]


def test_too_few_images_are_told() -> None:
    with pytest.raises(UserError, match="scores 150 images, there are 149"):
        measure(random_features(149, 0), Reference(random_features(400, 1)), SMALL)
    with pytest.raises(UserError, match="compares with 120 real images, the reference has 119"):
        measure(random_features(150, 0), Reference(random_features(119, 1)), SMALL)
    few = replace(SMALL, reference=None)
    assert measure(random_features(150, 0), Reference(random_features(2, 1)), few)["pooled"]["precision"] is None
    with pytest.raises(UserError, match="one image"):
        measure(random_features(150, 0), Reference(random_features(1, 1)), few)


# The command


def test_a_score_carries_everything_that_it_depends_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = score(run)
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("protocol paper", "real:", "3 x 40 against"))
    assert "Frechet distance (efficientnet-lite0)" in shown
    assert "FID" not in shown.replace("FID-", ""), "the name of the literature's score is kept for its network"
    provenance = record["provenance"]
    assert provenance["extractor"]["weights_sha256"]
    assert provenance["reference"]["images"]["content"]
    assert provenance["reference"]["count"] == 1797
    assert provenance["generated"]["generator_sha256"]
    manifest = json.loads((run / "checkpoints/step-00000004/checkpoint.json").read_text())
    assert provenance["generated"]["generator_sha256"] == manifest["files"]["ema.safetensors"]["sha256"]
    assert (provenance["step"], provenance["weights"], provenance["seed"]) == (4, "ema", 0)
    assert provenance["image"] == {"shape": [1, 32, 32], "quantisation": "uint8, rounded"}
    assert {"torch", "scipy", "python", "torch-fidelity", "pytorch-fid"} <= set(provenance["versions"])
    assert provenance["protocol"]["runs"] == 3
    assert record["floor"]["samples"] == 40


def test_scoring_again_gives_the_record_that_is_there_and_elsewhere_the_same(run: Path, tmp_path: Path) -> None:
    first = score(run)
    assert score(run) == first, "one line"
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "scores.jsonl").unlink()
    assert score(copy) == first


def test_what_is_scored_can_be_chosen(run: Path) -> None:
    score(run)
    score(run, "--generator", "raw")
    score(run, "--seed", "1")
    score(run / "checkpoints" / "step-00000002")
    records = score(run, protocol="quick")
    assert len({json.dumps(record["scores"]) for record in records}) == len(records) == 5
    assert [record["step"] for record in records] == [4, 4, 4, 2, 4]


def test_the_score_is_that_of_the_images_that_sample_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the generator straight to features, and by way of PNG files: the same distance."""
    from gan.__main__ import main as sample

    (record,) = score(run, protocol="quick")
    assert sample(["sample", str(run), "--single", "--count", "40", "--out", str(tmp_path / "samples.zip")]) == 0
    capsys.readouterr()
    assert (
        evaluate("images", tmp_path / "samples.zip", "digits", "--size", 32, "--extractor", "efficientnet-lite0", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["fid"] == pytest.approx(record["scores"]["fid"]["mean"], rel=1e-9)


def test_an_interrupted_scoring_goes_on_and_leaves_nothing_in_the_cache(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gan.inference import sampling

    monkeypatch.setattr("eval.features.PART", 64)
    render, made = sampling.render, 0

    def interrupted(network: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        if made == 2:
            raise KeyboardInterrupt
        return render(network, z)

    monkeypatch.setattr(sampling, "render", interrupted)
    assert evaluate("score", run, "--protocol", "paper", "--extractor", "efficientnet-lite0") == 130
    assert not (run / "scores.jsonl").exists()
    score(run)
    assert made == 3, "the first part was kept"
    kept = [path for path in (tmp_path / "cache").iterdir() if list(path.glob("*.npz")) and path.name != "parts"]
    assert len(kept) == 1, "the reference's features, not the generator's"


def test_a_statistics_file_gives_the_distance_of_its_images(run: Path, tmp_path: Path) -> None:
    (record,) = score(run)
    out = tmp_path / "digits.npz"
    assert evaluate("reference", "digits", "--size", 32, "--out", out, "--extractor", "efficientnet-lite0") == 0
    _, other = score(run, "--reference", out)
    assert other["scores"]["fid"]["mean"] == pytest.approx(record["scores"]["fid"]["mean"], rel=1e-6)
    assert other["scores"]["kid"] is None
    assert other["floor"] is None


def test_a_folder_a_zip_and_statistics_compare_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = picture_folder(tmp_path / "a", 30), picture_folder(tmp_path / "b", 25, seed=1, mode="L")
    shutil.make_archive(str(tmp_path / "b"), "zip", b)
    common = ["--extractor", "efficientnet-lite0"]
    assert evaluate("reference", a, "--out", tmp_path / "a.npz", *common) == 0
    capsys.readouterr()
    found = []
    for one, two in ((a, b), (a, tmp_path / "b.zip"), (tmp_path / "a.npz", b)):
        assert evaluate("images", one, two, "--json", *common) == 0
        found.append(json.loads(capsys.readouterr().out)["fid"])
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-9)
    assert evaluate("images", a, a, *common) == 0
    assert "0.0000" in capsys.readouterr().out


def test_the_reference_can_be_shared_by_runs_and_held_out_images_make_the_floor(run: Path, tmp_path: Path) -> None:
    real, held_out = picture_folder(tmp_path / "real", 90), picture_folder(tmp_path / "held_out", 50, seed=1)
    (record,) = score(run, "--reference", real, "--floor", held_out, protocol="quick")
    assert record["provenance"]["reference"]["count"] == 90
    assert record["provenance"]["reference"]["images"]["image"] == [1, 32, 32], "grey, as the run's images are"
    assert (record["floor"]["source"], record["floor"]["samples"], record["floor"]["reference"]) == ("held-out images", 40, 90)
    _, without = score(run, "--reference", real, protocol="quick")
    assert without["floor"]["source"] == "images taken out of the reference", "another floor is another score"
    assert without["series"] != record["series"]


def test_two_statistics_files_that_do_not_say_who_made_them_are_two_references(run: Path, tmp_path: Path) -> None:
    found = []
    for shift in (0, 9):
        np.savez(tmp_path / "foreign.npz", mu=np.zeros(12) + shift, sigma=np.eye(12))
        found = score(run, "--reference", tmp_path / "foreign.npz", "--made-by", "efficientnet-lite0", protocol="quick")
    assert len(found) == 2
    assert found[0]["scores"]["fid"]["mean"] != found[1]["scores"]["fid"]["mean"]
    assert found[0]["series"] != found[1]["series"]


# During training

EVALUATED = ["training.steps=4", "checkpoint.every=2", "samples.every=0", "evaluation.every=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that was scored at each, with the cache emptied before each. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    call = TrainingScorer.score

    def emptied(self: TrainingScorer, *arguments: Any) -> object:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return call(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        scale_down(patch)
        patch.setenv("MSNGAN_CACHE", str(folder / "cache"))
        patch.setattr(TrainingScorer, "score", emptied)
        assert command([*TINY, *EVALUATED, "tracking.tensorboard=true", f"run.dir={folder}", "run.name=run"]) == 0
    return folder / "run"


@pytest.fixture
def evaluated(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "evaluated" / "run"))


def test_training_scores_keeps_the_best_and_draws_the_curve(trained: Path) -> None:
    records = scores.read(trained)
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert {record["source"] for record in records} == {"training"}
    best = min(records, key=scores.distance_of)
    assert load_generator(trained / "best").step == best["step"]
    assert load_generator(trained / "best").sample(2).shape == (2, 1, 32, 32)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["watch/efficientnet-lite0/fid"] for line in lines if "watch/efficientnet-lite0/fid" in line}
    assert curve == {record["step"]: record["scores"]["fid"]["mean"] for record in records}


def test_scores_of_zero_are_recorded_like_any_other(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(measurement, "precision_recall", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(measurement, "kid", lambda *_: (0.0, 0.0))
    assert command(tiny("training.steps=2", "samples.every=0", "evaluation.every=2", "tracking.tensorboard=true")) == 0
    run = tmp_path / "runs" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("kid", "precision", "recall"):
        key = f"watch/efficientnet-lite0/{name}"
        assert [(line["step"], line[key]) for line in lines if key in line] == [(0, 0.0), (2, 0.0)]
        assert [(point.step, point.value) for point in events.Scalars(key)] == [(0, 0.0), (2, 0.0)]


def test_a_score_during_training_is_that_of_its_checkpoint(evaluated: Path) -> None:
    *_, trained, scored = score(evaluated, "--seed", TRAINING_SEED, protocol="watch")
    assert (trained["step"], trained["source"], scored["source"]) == (4, "training", "command")
    assert trained["scores"] == scored["scores"]
    assert trained["series"] == scored["series"]
    # best/ is scored into the run's own file too.
    best = load_generator(evaluated / "best").step
    assert score(evaluated / "best", protocol="watch") == []
    assert scores.read(evaluated)[-1]["step"] == best


def test_the_best_generator_is_chosen_on_noise_that_its_score_does_not_use(evaluated: Path) -> None:
    by_command = score(evaluated, protocol="watch")[-1]
    trained = next(r for r in scores.read(evaluated) if r["source"] == "training" and r["step"] == by_command["step"])
    assert by_command["provenance"]["generated"] != trained["provenance"]["generated"]
    assert by_command["scores"] != trained["scores"]
    assert by_command["series"] != trained["series"], "scores on other noise are not compared"


def test_a_score_on_the_noise_of_an_old_run_does_not_keep_best_from_being_replaced(evaluated: Path) -> None:
    """Scores during training used the noise of seed 0 before; one of them that was lower is on other noise, not better."""
    old = [record for record in scores.read(evaluated) if record["step"] < 4]
    for record in old:
        record["provenance"]["seed"] = record["provenance"]["generated"]["seed"] = 0
        record["series"] = comparison_key(record["provenance"])
        record["scores"]["pooled"]["fid"] = 0.0
    (evaluated / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    shutil.rmtree(evaluated / "checkpoints" / "step-00000004")
    shutil.rmtree(evaluated / "best")
    assert command(again(evaluated)) == 0
    assert scores.read(evaluated)[: len(old) - 1] == old[:-1]
    assert load_generator(evaluated / "best").step >= 3


def test_evaluation_changes_no_weight(trained: Path, finished_run: Path) -> None:
    for network in ("generator", "discriminator", "ema"):
        file = f"checkpoints/step-00000004/{network}.safetensors"
        assert (trained / file).read_bytes() == (finished_run / file).read_bytes(), "the same steps, one run without scores"


@pytest.mark.slow
def test_a_resumed_run_has_the_scores_and_the_best_of_the_undisturbed_one_and_keeps_those_by_command(
    evaluated: Path, trained: Path
) -> None:
    # As a kill after step 3 leaves it: records beyond the newest checkpoint, one by command among them, and half a line.
    score(evaluated)
    by_command = scores.read(evaluated)[-1]
    shutil.rmtree(evaluated / "checkpoints" / "step-00000004")
    with (evaluated / "scores.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "sou')
    assert command(again(evaluated)) == 0
    assert [record for record in scores.read(evaluated) if record["source"] == "command"] == [by_command]
    assert [r for r in scores.read(evaluated) if r["source"] == "training"] == scores.read(trained)
    found, expected = contents(evaluated), contents(trained)
    for name in expected:
        same = Path(name).name in ("scores.jsonl", "config.yaml", "checkpoint.json", "checkpoint.sha256") or "tensorboard" in name
        assert same or found[name] == expected[name], name


@pytest.mark.slow
def test_two_processes_score_as_one_does(tiny: Tiny, tmp_path: Path) -> None:
    for processes in (1, 2):
        run_together(processes, train_here, tiny("training.steps=1", "evaluation.every=1", name=f"by{processes}"))
    one, two = (scores.read(tmp_path / "runs" / f"by{processes}") for processes in (1, 2))
    assert one[0] == two[0], "untrained: equal to the bit"
    assert two[1]["scores"]["fid"]["mean"] == pytest.approx(one[1]["scores"]["fid"]["mean"], rel=1e-3)


def test_a_training_is_scored_against_another_programs_statistics(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "foreign.npz", mu=np.linspace(0.1, 0.9, 12), sigma=0.02 * np.eye(12))
    settings = ["training.steps=1", "samples.every=0", "evaluation.every=1", f"evaluation.reference={tmp_path / 'foreign.npz'}"]
    assert command(tiny(*settings)) == 2
    assert "evaluation.reference_made_by=" in capsys.readouterr().err
    assert command(tiny(*settings, "evaluation.reference_made_by=vgg")) == 2
    assert command(tiny(*settings, "evaluation.reference_made_by=inception")) == 2
    assert "made by another extractor" in capsys.readouterr().err
    assert command(tiny(*settings, "evaluation.reference_made_by=efficientnet-lite0")) == 0
    record = scores.read(tmp_path / "runs" / "tiny")[-1]
    assert record["provenance"]["reference"]["statistics"]["extractor"] == {"extractor": "efficientnet-lite0"}


def test_too_few_images_for_a_stable_distance_give_one_line_of_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, enough = picture_folder(tmp_path / "few", 12), picture_folder(tmp_path / "enough", 13, seed=1)  # of 12 features

    def warned(*arguments: object) -> list[str]:
        assert evaluate(*arguments, "--extractor", "efficientnet-lite0") == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]

    (line,) = warned("images", few, enough)
    assert "few: 12 images are too few for a stable distance" in line
    assert warned("images", enough, enough) == []
    assert len(warned("reference", few, "--out", tmp_path / "few.npz")) == 1
    assert len(warned("images", enough, tmp_path / "few.npz")) == 1
    (line,) = warned("score", run, "--protocol", "quick", "--reference", few)
    assert "reference few: 12 images" in line
    assert warned("score", run, "--protocol", "quick") == []


# Mistakes

MISTAKES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "COMMAND"),
    "unknown protocol": (["score", "{}/run", "--protocol", "slow"], "invalid choice"),
    "unknown extractor": (["score", "{}/run", "--protocol", "paper", "--extractor", "vgg"], "invalid choice"),
    "no such run": (["score", "{}/none", "--protocol", "paper"], "no such folder"),
    "run without a checkpoint": (["score", "{}/young", "--protocol", "paper"], "neither a checkpoint nor a run that holds one"),
    "reference that is not there": (["score", "{}/run", "--protocol", "paper", "--reference", "{}/none"], "neither a data set"),
    "corrupt weights": (["score", "{}/run", "--protocol", "paper", "--weights", "{}/junk"], "damaged, or not a state_dict"),
    "statistics of another extractor": (
        ["score", "{}/run", "--protocol", "paper", "--reference", "{}/other.npz"], "made by another extractor"
    ),
    "statistics of another size": (
        ["score", "{}/run", "--protocol", "paper", "--reference", "{}/size.npz", "--made-by", "efficientnet-lite0"],
        "of 5 features",
    ),
    "statistics that do not say who made them": (["images", "{}/size.npz", "{}/a"], "--made-by"),
    "no statistics": (["images", "{}/junk.npz", "{}/a"], "no statistics file"),
    "empty folder": (["images", "{}/a", "{}/empty"], "holds no images"),
    "one image": (["images", "{}/one", "{}/a"], "one image"),
    "mixed sizes": (["images", "{}/a", "{}/mixed"], "images of mixed sizes"),
    "two sizes": (["images", "{}/a", "{}/large"], "Give --size 32"),
    "two sizes, one of statistics": (["images", "{}/large", "{}/native.npz"], "make it again, or give --size 8"),
    "every checkpoint and one": (["score", "{}/run", "--protocol", "quick", "--all", "--checkpoint", "4"], "--checkpoint 4"),
    "the reference as a floor": (["score", "{}/run", "--protocol", "quick", "--floor", "digits"], "the images of the reference"),
    "a floor beside statistics": (
        ["score", "{}/run", "--protocol", "quick", "--floor", "{}/a", "--reference", "{}/fewer.npz"], "statistics have none"
    ),
    "statistics of fewer images than a protocol has": (
        ["score", "{}/run", "--protocol", "sngan", "--reference", "{}/fewer.npz"], "statistics of 41 images, and protocol sngan"
    ),
    "a run in place of images": (["images", "{}/run", "{}/a", "--size", "32"], "its pictures are grids of samples"),
    "a run's grids": (["images", "{}/a", "{}/run/samples"], "of the run"),
    "a checkpoint in place of images": (["images", "{}/run/checkpoints/step-00000004", "{}/a"], "-m eval score"),
    "a folder of runs": (["images", "{}/runs", "{}/a"], "runs/one"),
    "statistics of a run": (["reference", "{}/run", "--out", "{}/x.npz"], "-m gan sample"),
    "a run as reference": (["score", "{}/run", "--protocol", "quick", "--reference", "{}/run"], "no set of images"),
    "a run as floor": (["score", "{}/run", "--protocol", "quick", "--floor", "{}/run"], "no set of images"),
    "unknown data set": (["images", "{}/a", "cifar11"], "neither a data set"),
    "unknown split": (["images", "{}/a", "cifar10:validation"], "expected train or test"),
    "digits have no splits": (["images", "{}/a", "digits:test"], "has no splits"),
    "a corrupt image": (["images", "{}/a", "{}/corrupt"], "not an image"),
    "out is no .npz": (["reference", "{}/a", "--out", "{}/a.txt"], ".npz"),
    "out cannot be written": (["reference", "{}/a", "--out", "/proc/x.npz"], "cannot be written"),
    "a batch of none": (["images", "{}/a", "{}/a", "--batch-size", "0"], "expected a whole number"),
    "table of no run": (["table2", "{}/a", "--out", "{}/t"], "not a run's folder"),
    "table of an unscored run": (["table2", "{}/run", "--out", "{}/t"], "no scores"),
    "statistics of images of another size": (
        ["score", "{}/run", "--protocol", "paper", "--reference", "{}/native.npz"],
        "images of 8x8, to be compared with images of 32x32",
    ),
    "statistics and images of two sizes": (["images", "{}/native.npz", "{}/a"], "make it again, or give --size 8"),
    "table into a file": (["table2", "{}/scored", "--out", "{}/junk"], "cannot be written"),
    "too few held-out images": (["score", "{}/run", "--protocol", "quick", "--floor", "{}/mixed"], "at least 4 held-out images"),
    "images larger than any": (["images", "{}/a", "{}/a", "--size", "1099511627776"], "from 1 to 4096"),
    "too few real images": (["score", "{}/run", "--protocol", "sngan"], "compares with 10,000 real images"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A folder with everything that a mistake can be made with. Not to be changed."""
    tmp_path = tmp_path_factory.mktemp("world")
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for name, count in (("a", 5), ("one", 1), ("mixed", 2), ("corrupt", 3)):
        picture_folder(tmp_path / name, count)
    picture_folder(tmp_path / "large", 2, (64, 64))
    Image.new("RGB", (40, 32)).save(tmp_path / "mixed" / "other.png")
    (tmp_path / "corrupt" / "001.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "young", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(run, tmp_path / "runs" / "one")
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    np.savez(tmp_path / "size.npz", mu=np.zeros(5), sigma=np.eye(5))
    shutil.copytree(run, tmp_path / "scored")
    with pytest.MonkeyPatch.context() as patch:
        scale_down(patch)
        patch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
        score(tmp_path / "scored", protocol="quick")
    provenance = json.dumps({"extractor": {"extractor": "efficientnet-lite0"}, "images": {"image": [3, 8, 8]}})
    np.savez(tmp_path / "native.npz", mu=np.zeros(12), sigma=np.eye(12), provenance=np.array(provenance))
    provenance = json.dumps({"extractor": {"extractor": "inception", "weights_sha256": "1"}})
    np.savez(tmp_path / "other.npz", mu=np.zeros(12), sigma=np.eye(12), provenance=np.array(provenance))
    provenance = json.dumps({"extractor": {"extractor": "efficientnet-lite0"}, "images": {"count": 41}})
    fewer = {"mu": np.zeros(12), "sigma": np.eye(12), "count": np.array(41), "provenance": np.array(provenance)}
    np.savez(tmp_path / "fewer.npz", **fewer)
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(mistake: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, words = MISTAKES[mistake]
    arguments = [argument.replace("{}", str(world)) for argument in given]
    if "--extractor" not in arguments and arguments and arguments[0] != "table2" and "--weights" not in arguments:
        arguments += ["--extractor", "efficientnet-lite0"]
    capsys.readouterr()
    assert evaluate(*arguments) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert errors == [shown.err.splitlines()[-1]], shown.err
    assert words in errors[0]
    assert shown.out == ""


@pytest.mark.parametrize(
    "mistake", ["no such run", "run without a checkpoint", "empty folder", "one image", "two sizes", "unknown data set"]
)
def test_a_mistake_is_told_before_a_network_is_fetched(
    mistake: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eval.commands.load_extractor", lambda *_: pytest.fail("the network first"))
    given, words = MISTAKES[mistake]
    assert evaluate(*(argument.replace("{}", str(world)) for argument in given)) == 2
    assert words in capsys.readouterr().err


def test_a_line_that_is_no_score_is_told_and_not_lost(run: Path) -> None:
    (run / "scores.jsonl").write_text('{"step": 1}\n')
    assert evaluate("score", run, "--protocol", "quick", "--extractor", "efficientnet-lite0") == 2
    assert (run / "scores.jsonl").read_text() == '{"step": 1}\n'


def test_half_a_line_is_left_out_and_then_replaced(run: Path) -> None:
    score(run)
    whole = (run / "scores.jsonl").read_bytes()
    (run / "scores.jsonl").write_bytes(whole + whole[: len(whole) // 2])
    assert len(scores.read(run)) == 1
    score(run, protocol="quick")
    assert len((run / "scores.jsonl").read_bytes().splitlines()) == 2
    assert (run / "scores.jsonl").read_bytes().startswith(whole)


def test_scores_under_a_protocol_of_another_version_alone_make_no_table(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(world / "scored", tmp_path / "run")
    records = [json.loads(line) | {"protocol": "newer"} for line in (run / "scores.jsonl").read_text().splitlines()]
    (run / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert evaluate("table2", str(run), "--out", str(tmp_path / "t")) == 2
    assert "scores under newer alone" in capsys.readouterr().err


def test_a_score_needs_the_images_that_the_run_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    picture_folder(tmp_path / "own", 30)
    settings = ["data.name=folder", f"data.path={tmp_path / 'own'}", "training.steps=1", "samples.every=0"]
    assert command([*TINY, *settings, f"run.dir={tmp_path}", "run.name=run"]) == 0
    words = ["score", str(tmp_path / "run"), "--protocol", "quick", "--extractor", "efficientnet-lite0"]
    moved = (tmp_path / "own").rename(tmp_path / "moved")
    assert evaluate(*words, "--data", str(moved)) == 0, "the same images elsewhere"
    assert scores.read(tmp_path / "run")[-1]["provenance"]["reference_name"] == "moved"
    picture_folder(tmp_path / "own", 31)
    capsys.readouterr()
    for more in ([], ["--data", str(tmp_path / "own")]):
        assert evaluate(*words, *more) == 2
        assert "its training images have changed" in capsys.readouterr().err
    assert evaluate(*words, "--reference", str(tmp_path / "own")) == 0, "others that are named"
