"""The released recipe: networks, input, dropout, exact resume, and two processes that equal one."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gan.data.stream import BatchShard
from gan.models.norms import BatchNorm, MeanShift, ProjectedMeanSpectralNorm, ProjectedSpectralNorm, SpectralNorm
from gan.utils.distributed import make_accelerator
from gan.utils.errors import UserError
from study.config import ProbesConfig, load_study_config
from study.data import normalised
from study.dropout import KeyedDropout, dropping
from study.models import build_classifier, update_classifier, vgg7, weighted_layers
from study.probes import PAPERS_LAYERS, Prober, chosen_layers
from study.results import read_run
from tests.study.common import DIGITS, ROOT, TINY, contents, train
from tests.workers import in_process, run_together, study_here, study_to_the_end

RELEASED = ["data.crop_padding=4", "data.flip=true", "data.mean=[0.4914]", "data.std=[0.2023]", "model.variant=released",
    "model.gain=true"]  # fmt: skip
CASES = {
    "msn": [*RELEASED, "model.norm=mean_spectral_projected"],
    "sn": [*RELEASED, "model.norm=spectral_projected"],
    "vgg7 bn": [*RELEASED, "model.norm=batch", "model.name=vgg7", "data.image_size=32"],
}


def kinds(network: nn.Module, kind: Any) -> list[int]:
    return [layer.number for layer in weighted_layers(network) if isinstance(layer.module, kind)]


def test_released_networks_have_the_layers_of_the_authors() -> None:
    def built(name: Any, norm: str) -> nn.Module:
        size, channels = (28, 1) if name == "cnn3" else (32, 3)
        return build_classifier(name, norm, variant="released", gain=True, channels=channels, size=size, classes=10, seed=0)

    def counts(network: nn.Module, *kinds: type[nn.Module]) -> list[int]:
        return [sum(isinstance(module, kind) for module in network.modules()) for kind in kinds]

    assert kinds(built("cnn3", "mean_spectral_projected"), ProjectedSpectralNorm) == [1, 2, 3, 4]
    assert kinds(built("vgg7", "spectral_projected"), SpectralNorm) == list(range(1, 7))  # the dense layer is a plain one
    assert kinds(built("vgg7", "mean_spectral_projected"), ProjectedMeanSpectralNorm) == list(range(1, 7))
    assert counts(built("vgg7", "batch"), nn.ReLU, nn.LeakyReLU, KeyedDropout) == [6, 0, 6]
    assert counts(built("vgg7", "spectral"), nn.ReLU, nn.LeakyReLU, KeyedDropout) == [0, 6, 0]
    msn = built("densenet_bc", "mean_spectral_projected")
    assert kinds(msn, SpectralNorm) == [1, 34, 67]
    assert kinds(built("densenet_bc", "spectral_projected"), SpectralNorm) == [1, 34, 67, 100]
    assert counts(msn, nn.LeakyReLU, MeanShift, BatchNorm) == [0, 3, 96]
    assert all(module.gain is not None for module in msn.modules() if isinstance(module, MeanShift))


def test_the_papers_layers_are_counted_from_the_stem_as_0() -> None:
    network = build_classifier("densenet_bc", "batch", variant="released", channels=3, size=32, classes=10, seed=0)
    four = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    papers = [four[index] for index in (6, 13, 44, 56, 67, 75, 84, 93)]
    assert [layer.module for layer in chosen_layers(network, None)] == papers
    assert PAPERS_LAYERS == (7, 14, 45, 57, 68, 76, 85, 94)
    shapes = [tuple(papers[index].weight.shape[:2]) for index in (2, 5)]  # as released: layers 44 and 75
    assert shapes == [(48, 232), (48, 339)]


def test_pixels_are_normalised_by_channel() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    expected = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(normalised(pixels * 2 - 1, mean, std), expected, rtol=1e-5, atol=1e-5)
    assert normalised(pixels, None, None) is pixels
    with pytest.raises(UserError, match="3 numbers, but the images have 1"):
        normalised(pixels[:, :1], mean, std)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["data.mean=[0.5]"], "given together"),
        (["data.mean=[0.5]", "data.std=[0.5,0.5,0.5]"], "as many as"),
        (["data.mean=[0.5,0.5]", "data.std=[0.5,0.5]"], "one for each of 3"),
        (["data.mean=[nan]", "data.std=[1]"], "number"),
        (["data.mean=[0.5]", "data.std=[0]"], "positive"),
        (["data.crop_padding=28"], r"below data\.image_size=28"),
        (["model.variant=published"], "only densenet_bc"),
        (["model.norm=spectral_projection"], "spectral_projection"),
    ],
)
def test_impossible_settings_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_study_config(DIGITS, settings)


def test_released_configurations_load_under_their_own_name() -> None:
    paths = sorted((ROOT / "configs" / "study" / "released").glob("*.yaml"))
    assert len(paths) == 4
    for path in paths:
        config = load_study_config(path)
        assert (config.run.name, config.model.variant, config.model.gain) == (path.stem, "released", True)


def test_masks_of_dropout_have_their_share_and_depend_on_the_position_alone() -> None:
    layer, x = KeyedDropout(0.3, number=1), torch.ones(8, 4, 9, 9)

    def masked(step: int, *, processes: int = 1, rank: int = 0, number: int = 1) -> torch.Tensor:
        layer.number = number
        shard = BatchShard(batch_size=8, micro_batches=1, rank=rank, processes=processes)
        with dropping(layer, shard, seed=5, step=step):
            output: torch.Tensor = layer(x[: 8 // processes])
        return output

    whole = masked(3)
    assert torch.equal(whole, torch.cat([masked(3, processes=2, rank=rank) for rank in range(2)]))
    assert whole.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float(torch.stack([(masked(step) == 0).float().mean() for step in range(40)]).mean()) == pytest.approx(0.3, abs=0.005)
    assert not torch.equal(whole, masked(4)) and not torch.equal(whole, masked(3, number=2))
    assert torch.equal(layer.eval()(x), x)


def test_sigma_is_probed_at_its_true_value_and_at_the_layers_own_estimate() -> None:
    network = build_classifier("cnn3", "spectral", channels=1, size=28, classes=10, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    prober = Prober(network, ProbesConfig(every=1), total=1)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with prober.watching():
        update_classifier(network, optimizer, images, torch.arange(4), torch.autocast("cpu", enabled=False))
    records = prober.records(make_accelerator("cpu"))
    for layer, record in zip(weighted_layers(network), records, strict=True):
        true = torch.linalg.matrix_norm(layer.parameter.detach().flatten(1), 2)
        assert record["sigma"] == pytest.approx(float(true), rel=1e-5)
        assert record["singular_max"] == pytest.approx(1)
        assert record["weight_std"] == pytest.approx(float((layer.parameter.detach() / true).std()), rel=1e-4)
    # The power iteration was taken before the step, which at this rate replaces the weights.
    assert min(record["sigma_estimate"] / record["sigma"] for record in records) < 0.6


def test_relu_zeroes_gradients_of_weights_and_leaky_relu_does_not() -> None:
    def zeros(relu: bool) -> float:
        torch.manual_seed(0)
        network = vgg7("batch", variant="released" if relu else "full")
        network = nn.Sequential(*(m for m in network if not isinstance(m, KeyedDropout)))
        with torch.no_grad():
            network[0][1].bias[:8] = -20  # eight units that no image activates
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        return float((network[0][0].weight.grad == 0).float().mean())

    assert zeros(relu=True) == pytest.approx(8 / 32)
    assert zeros(relu=False) == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_of_the_recipe_resumes_bit_exactly(case: str, tmp_path: Path) -> None:
    settings = [*TINY, *CASES[case], "training.epochs=0.4", "checkpoint.every=1", f"run.dir={tmp_path}"]
    words = ["train", "--config", str(DIGITS), *settings]
    assert in_process(study_to_the_end, [*words, "run.name=calm"]) == 0
    saved = tmp_path / "killed" / "checkpoints" / "step-00000003"
    assert in_process(study_to_the_end, [*words, "run.name=killed"], kill_when=saved.exists) == -signal.SIGKILL
    assert in_process(study_to_the_end, [*words, "run.name=killed"]) == 0
    calm, killed = contents(tmp_path / "calm"), contents(tmp_path / "killed")
    for key in ("probes.jsonl", "metrics", "checkpoints/step-00000008/classifier.safetensors"):
        assert killed[key] == calm[key], key


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_under_the_recipe(case: str, tmp_path: Path) -> None:
    settings = [*TINY, *CASES[case], "training.precision=fp64", f"run.dir={tmp_path}", "probes.every=8"]
    words = ["train", "--config", str(DIGITS), *settings]
    run_together(1, study_here, [*words, "run.name=one"])
    run_together(2, study_here, [*words, "run.name=two"])
    one, two = read_run(tmp_path / "one").metrics, read_run(tmp_path / "two").metrics
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        keys = {"loss", "accuracy", "test_loss", "test_accuracy"} & a.keys()
        assert all(abs(a[key] - b[key]) < 1e-8 for key in keys)


def test_what_is_off_changes_nothing(tmp_path: Path) -> None:
    plain = contents(train(tmp_path, name="plain"))
    named = ["data.crop_padding=0", "data.mean=null", "data.std=null", "model.gain=false", "model.variant=full"]
    given = contents(train(tmp_path, *named, name="given"))
    augmented = contents(train(tmp_path, "data.crop_padding=2", name="augmented"))
    weights = "checkpoints/step-00000008/classifier.safetensors"
    assert plain[weights] == given[weights] != augmented[weights]
