"""Measure scoring from a checkpoint to numbers, and the Frechet distance alone, against pytorch-fid and torch-fidelity."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

import eval.__main__ as program
from benchmarks import peers
from benchmarks.alternating import ROOT, Candidate, Case, Timing, compete
from benchmarks.measurements import Row, Suite, memory, speed_up
from benchmarks.steps import precisions
from eval.extractors import EXTRACTORS
from eval.protocols import PROTOCOLS, Protocol
from eval.statistics import GaussianStats, gaussian_stats, with_feature_factor
from gan.utils import cli

D = 2048
# Largest relative difference of a score whose float32 features were summed in another order, in 94 layers. Processors differ:
# with tiles (AMX), IS's deviation differs by 1e-4, which is 1e-6 of the IS.
FEATURES = 1e-4


def paper_of(count: int) -> Protocol:
    """Return the ``paper`` protocol with ``count`` images in all."""
    return Protocol(name="paper", purpose="", runs=5, samples=count // 5, kid_size=min(1000, count // 5))


def main(arguments: list[str]) -> int:
    """Run ``python -m eval score`` under ``paper`` with fewer images. Arguments: COUNT, then those of the command."""
    count = int(arguments[0])
    PROTOCOLS["paper"] = paper_of(count)
    # The same images and features under the settings of the peers: one run, ten splits.
    PROTOCOLS["quick"] = Protocol(name="quick", purpose="", runs=1, samples=count, splits=10, kid_size=min(1000, count // 5))
    return cli.run(lambda: program.main(["score", *arguments[1:], "--protocol", "paper", "quick", "--json"]))


def distance(program: str, generated: str, real: str) -> Case:
    """Compute a 2048-d Frechet distance from stored features; the factor of the reference is computed before."""
    features, a = _read_features(generated)
    _, b = _read_features(real)
    if program == "ours":
        from eval.metrics import frechet_distance

        b.factor  # noqa: B018 (computed here and cached)
        return lambda: frechet_distance(with_feature_factor(GaussianStats(a.mean, a.covariance, a.count), features), b)
    if program == "pytorch-fid":
        from pytorch_fid.fid_score import calculate_frechet_distance

        return lambda: float(calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance))
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    one, two = ({"mu": m.mean, "sigma": m.covariance} for m in (a, b))
    return lambda: float(fid_statistics_to_metric(one, two, False)["frechet_inception_distance"])


def _write_features(path: Path, count: int, seed: int) -> str:
    """Write random features like Inception's: not negative, many nearly zero, covariance with a power-law spectrum."""
    draw = np.random.RandomState(seed)
    basis = np.random.RandomState(6 + seed).randn(D, D) / np.sqrt(D)
    values = np.maximum(draw.randn(count, D) * np.arange(1, D + 1) ** -1.0 @ basis * 10, 0).astype(np.float32)
    stats = gaussian_stats(values)
    np.savez(path, values=values, mean=stats.mean, covariance=stats.covariance)
    return str(path)


def _read_features(path: str) -> tuple[Any, GaussianStats]:
    with np.load(path, allow_pickle=False) as kept:
        values = kept["values"]
        return values, GaussianStats(kept["mean"], kept["covariance"], len(values))


def distances(suite: Suite) -> list[Row]:
    """Return the speed-ups of the distance alone, at the numbers of images of two protocols."""
    found = []
    real = _write_features(suite.place / "real.npz", 10_000, 2)
    for count in (10_000,) if suite.quick else (10_000, 1000):
        settings = {"generated": _write_features(suite.place / f"{count}.npz", count, 1), "real": real}
        candidates = {
            name: Candidate("benchmarks.scoring:distance", {"program": name, **settings})
            for name in ("ours", "pytorch-fid", "torch-fidelity")
        }
        timings = compete(candidates, rounds=suite.rounds(1, 3), warm_up=suite.rounds(0, 1))
        for peer, goal in (("pytorch-fid", "≥ 20"), ("torch-fidelity", "≥ 10")):
            difference = abs(timings["ours"].value / timings[peer].value - 1)
            equal = suite.check("equal", difference, 1e-6)  # all three in float64; the peers take roots of tiny eigenvalues
            what = f"Frechet distance, {count:,} images, {D}-d"
            found.append(speed_up(what, timings, "ours", peer, equal, goal))
    return found


def lines(suite: Suite) -> list[Row]:
    """Return the speed-ups of whole programs, from start to numbers, on the same images and weights."""
    count = suite.scored or suite.rounds(20, 500)
    place = suite.place / "scoring"
    place.mkdir()
    weights = peers.random_inception_weights(place / "inception.pth")
    real = place / "real"
    real.mkdir()
    images = sorted(path for path in suite.folder().rglob("*") if path.is_file())
    for index, path in enumerate(images[:: max(1, len(images) // count)][:count]):
        shutil.copy(path, real / f"{index:06d}{path.suffix}")
    run, generated = place / "run", place / "generated"
    settings = [
        "data.name=folder",
        f"data.path={real}",
        "training.steps=1",
        "samples.every=0",
        f"run.dir={place}",
        "run.name=run",
    ]
    peers.run([ROOT / "train.py", "--config", ROOT / "configs" / "cifar10_sngan.yaml", *settings])
    peers.run(["-m", "gan", "sample", run, "--single", "--count", count, "--out", generated])
    found = []
    for extractor, peer in (("inception", "torch-fidelity"), ("inception-pytorch-fid", "pytorch-fid")):
        values, ours = _ours(extractor, run, real, weights, count, place / f"cache-{extractor}")
        if peer == "torch-fidelity":
            expected, theirs = peers.torch_fidelity(generated, real, weights, place / "peer", min(1000, count // 5))
            pairs = {
                "FID": (values["pooled"]["fid"], expected["frechet_inception_distance"]),
                "IS": (values["inception_score"]["mean"], expected["inception_score_mean"]),
                "IS's deviation": (values["inception_score"]["std"], expected["inception_score_std"]),
            }
        else:
            fid, theirs = peers.pytorch_fid(generated, real, weights, place)
            pairs = {"FID": (values["pooled"]["fid"], fid)}
        bounds = dict.fromkeys(pairs, FEATURES)
        if "IS" in pairs:  # a deviation moves at most as far as the values that it is of
            bounds["IS's deviation"] *= pairs["IS"][0] / pairs["IS's deviation"][0]
        equal = ", ".join(suite.check(name, abs(a / b - 1), bounds[name]) for name, (a, b) in pairs.items())
        a, b = f"ours ({extractor})", f"{peer}'s program"
        what = f"scoring under paper, {count:,} generated and as many real images"
        found.append(speed_up(what, {a: ours, b: theirs}, a, b, f"{equal}; {memory(ours, theirs)}", "≥ 2.5"))
        if "bf16" in precisions() and f"{extractor}-bf16" in EXTRACTORS:
            in_bf16, ours = _ours(f"{extractor}-bf16", run, real, weights, count, place / "cache-bf16")
            change = in_bf16["pooled"]["fid"] / values["pooled"]["fid"] - 1
            a, note = f"ours ({extractor}-bf16)", f"another extractor: its FID differs by {change:+.1%}; {memory(ours, theirs)}"
            found.append(speed_up(what, {a: ours, b: theirs}, a, b, note, "≥ 2.5"))
    return found


def _ours(extractor: str, run: Path, real: Path, weights: Path, count: int, cache: Path) -> tuple[dict[str, Any], Timing]:
    """Return our scores under the peers' settings, and the measurement of our program."""
    (run / "scores.jsonl").unlink(missing_ok=True)  # a stored score would be returned without computing it
    words = ["-m", "benchmarks.scoring", count, run, "--reference", real, "--weights", weights, "--extractor", extractor]
    done = peers.run(words, {"MSNGAN_CACHE": str(cache)})
    records = [json.loads(line) for line in done.value.splitlines()]
    return next(record["scores"] for record in records if record["protocol"] == "quick"), done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
