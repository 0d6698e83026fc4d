"""Scoring from a checkpoint to numbers, against pytorch-fid's and torch-fidelity's own programs; and the distance alone."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

import eval.__main__ as program
from benchmarks import peers
from benchmarks.alternating import ROOT, Candidate, Case, compete
from benchmarks.measurements import Measurement, Suite
from eval.protocols import PROTOCOLS, Protocol
from eval.statistics import GaussianStats, gaussian_stats, with_feature_factor
from gan.utils import cli

D = 2048


def paper_of(count: int) -> Protocol:
    """The ``paper`` protocol with ``count`` images in all, and the inception score over 10 splits as torch-fidelity has it."""
    return Protocol(name="paper", purpose="", runs=5, samples=count // 5, kid_size=min(1000, count // 5))


def main(arguments: list[str]) -> int:
    """``python -m eval score`` under ``paper`` with fewer images: COUNT, then its arguments."""
    count = int(arguments[0])
    PROTOCOLS["paper"] = paper_of(count)
    # Of the same images, under the peers' own settings: one run, ten splits. It shares the features.
    PROTOCOLS["quick"] = Protocol(name="quick", purpose="", runs=1, samples=count, splits=10, kid_size=min(1000, count // 5))
    return cli.run(lambda: program.main(["score", *arguments[1:], "--protocol", "paper", "quick", "--json"]))


def distance(program: str, generated: str, real: str) -> Case:
    """One Frechet distance at 2048-d of kept features; the real ones' factor is at hand."""
    features, a = _kept(generated)
    _, b = _kept(real)
    if program == "ours":
        from eval.metrics import frechet_distance

        b.factor  # noqa: B018 (made here, kept with the moments)
        return lambda: frechet_distance(with_feature_factor(GaussianStats(a.mean, a.covariance, a.count), features), b)
    if program == "pytorch-fid":
        from pytorch_fid.fid_score import calculate_frechet_distance

        return lambda: float(calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance))
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    one, two = ({"mu": m.mean, "sigma": m.covariance} for m in (a, b))
    return lambda: float(fid_statistics_to_metric(one, two, False)["frechet_inception_distance"])


def _keep_features(path: Path, count: int, seed: int) -> str:
    """Like Inception's: not negative, many nearly zero, the spectrum of their covariance falling by a power."""
    draw = np.random.RandomState(seed)
    basis = np.random.RandomState(6 + seed).randn(D, D) / np.sqrt(D)
    values = np.maximum(draw.randn(count, D) * np.arange(1, D + 1) ** -1.0 @ basis * 10, 0).astype(np.float32)
    moments = gaussian_stats(values)
    np.savez(path, values=values, mean=moments.mean, covariance=moments.covariance)
    return str(path)


def _kept(path: str) -> tuple[Any, GaussianStats]:
    with np.load(path, allow_pickle=False) as kept:
        values = kept["values"]
        return values, GaussianStats(kept["mean"], kept["covariance"], len(values))


def distances(suite: Suite) -> list[Measurement]:
    """The distance alone, at the sizes of two protocols."""
    found = []
    real = _keep_features(suite.place / "real.npz", 10_000, 2)
    for count in (10_000,) if suite.quick else (10_000, 1000):
        generated = _keep_features(suite.place / f"{count}.npz", count, 1)
        contestants = {
            name: Candidate("benchmarks.scoring:distance", {"program": name, "generated": generated, "real": real})
            for name in ("ours", "pytorch-fid", "torch-fidelity")
        }
        timings = compete(contestants, rounds=suite.rounds(1, 3), warm_up=suite.rounds(0, 1))
        mine = timings["ours"].value
        for peer, goal in (("pytorch-fid", "≥ 20"), ("torch-fidelity", "≥ 10")):
            difference = abs(mine / timings[peer].value - 1)
            assert difference <= 1e-6, (peer, mine, timings[peer].value)
            found.append(
                Measurement.of(
                    f"Frechet distance, {count:,} images, {D}-d",
                    "ours", timings["ours"], peer, timings[peer], check=f"equal to {difference:.0e}", goal=goal,
                )
            )  # fmt: skip
    return found


def lines(suite: Suite) -> list[Measurement]:
    """Part 6. Each program is run whole, from its start to its numbers, on the same images and weights."""
    count = suite.scored or suite.rounds(20, 500)
    place = suite.place / "scoring"
    place.mkdir()
    weights = peers.random_inception_weights(place / "inception.pth")
    real = place / "real"
    real.mkdir()
    images = sorted(path for path in suite.folder().rglob("*") if path.is_file())
    for index, path in enumerate(images[:: max(1, len(images) // count)][:count]):
        shutil.copy(path, real / f"{index:06d}{path.suffix}")
    settings = [
        "data.name=folder",
        f"data.path={real}",
        "training.steps=1",
        "samples.every=0",
        f"run.dir={place}",
        "run.name=run",
    ]
    peers.run([ROOT / "train.py", "--config", ROOT / "configs" / "cifar10_sngan.yaml", *settings])
    run, generated = place / "run", place / "generated"
    peers.run(["-m", "gan", "sample", run, "--single", "--count", count, "--out", generated])
    names = ["ours (inception)", "torch-fidelity's program", "ours (inception-pytorch-fid)", "pytorch-fid's program"]
    done: dict[str, peers.Done] = {}
    values: dict[str, Any] = {}
    for name in names:
        if name.startswith("ours"):
            values[name], done[name] = _ours(name[6:-1], run, real, weights, count, place / f"cache-{name[6:-1]}")
        elif name.startswith("torch"):
            values[name], done[name] = peers.torch_fidelity(generated, real, weights, place / "peer", min(1000, count // 5))
        else:
            values[name], done[name] = peers.pytorch_fid(generated, real, weights, place)
    return [_line(a, b, done, values, count) for a, b in (names[:2], names[2:])]


def _ours(extractor: str, run: Path, real: Path, weights: Path, count: int, cache: Path) -> tuple[Any, peers.Done]:
    (run / "scores.jsonl").unlink(missing_ok=True)  # or it would be found there
    words = ["-m", "benchmarks.scoring", count, run, "--reference", real, "--weights", weights, "--extractor", extractor]
    done = peers.run(words, {"MSNGAN_CACHE": str(cache)})
    return [json.loads(line) for line in done.output.splitlines()], done


def _line(mine: str, theirs: str, done: dict[str, peers.Done], values: dict[str, Any], count: int) -> Measurement:
    check = next(record["scores"] for record in values[mine] if record["protocol"] == "quick")
    if theirs.startswith("torch"):
        expected = values[theirs]
        pairs = {
            "FID": (check["pooled"]["fid"], expected["frechet_inception_distance"]),
            "IS": (check["inception_score"]["mean"], expected["inception_score_mean"]),
            "IS's deviation": (check["inception_score"]["std"], expected["inception_score_std"]),
        }
    else:
        pairs = {"FID": (check["pooled"]["fid"], values[theirs])}
    worst = {name: abs(a / b - 1) for name, (a, b) in pairs.items()}
    assert max(worst.values()) <= 1e-4, (worst, pairs)
    equal = ", ".join(f"{name} to {value:.0e}" for name, value in worst.items())
    memory = f"{done[mine].peak_mb:,.0f} MB against {done[theirs].peak_mb:,.0f}"
    a, b = done[mine].seconds, done[theirs].seconds
    what = f"scoring under paper, {count:,} generated and as many real images"
    return Measurement(what, mine, theirs, b / a, (a, b), f"equal: {equal}; {memory}", "≥ 2.5")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
