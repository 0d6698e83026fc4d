"""Moments: streamed, merged, written for others and read from them."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import frechet_distance
from eval.statistics import Accumulator, GaussianStats, gaussian_stats, load_stats, save_stats
from gan.utils.errors import UserError


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 6), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_pieces_and_merged_parts_give_numpys_covariance(sizes: list[int], dimensions: int, offset: float, seed: int) -> None:
    draw = np.random.RandomState(seed)
    pieces = [draw.randn(size, dimensions) + offset for size in [*sizes, 2]]
    streamed, merged = Accumulator(dimensions), Accumulator(dimensions)
    for piece in pieces:
        streamed.update(piece)
        merged.merge(Accumulator(dimensions).update(piece))
    together = np.concatenate(pieces)
    for moments in (streamed.stats(), merged.stats()):
        np.testing.assert_allclose(moments.mean, together.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(together, rowvar=False).reshape(dimensions, -1), atol=1e-8)
        assert moments.count == len(together)


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 99))
def test_the_factor_gives_the_covariance_back(count: int, dimensions: int, seed: int) -> None:
    moments = gaussian_stats(np.random.RandomState(seed).randn(count, dimensions))
    factor = moments.factor
    np.testing.assert_allclose(factor @ factor.T, moments.covariance, atol=1e-10)
    assert factor.shape[1] <= max(1, min(dimensions, count - 1))


def test_one_image_and_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        gaussian_stats(np.ones((1, 3)))
    with pytest.raises(UserError, match="not finite"):
        gaussian_stats(np.array([[1.0, np.inf], [0.0, 1.0]]))


def test_written_statistics_come_back_and_pytorch_fid_reads_them(tmp_path: Path) -> None:
    from pytorch_fid.fid_score import compute_statistics_of_path

    moments = gaussian_stats(np.random.RandomState(0).randn(20, 3), {"extractor": {"extractor": "inception"}})
    save_stats(tmp_path / "x.npz", moments)
    again = load_stats(tmp_path / "x.npz")
    assert (again.mean == moments.mean).all()
    assert (again.covariance == moments.covariance).all()
    assert (again.count, again.provenance) == (20, moments.provenance)
    mu, sigma = compute_statistics_of_path(str(tmp_path / "x.npz"), None, 1, 2048, "cpu", 0)
    assert (mu == moments.mean).all()
    assert (sigma == moments.covariance).all()


def test_a_foreign_file_is_read_when_the_user_says_who_made_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4, dtype=np.float32))
    with pytest.raises(UserError, match="--made-by"):
        load_stats(tmp_path / "foreign.npz")
    moments = load_stats(tmp_path / "foreign.npz", made_by="inception-pytorch-fid")
    assert moments.provenance["extractor"] == {"extractor": "inception-pytorch-fid"}
    assert moments.count is None
    assert moments.covariance.dtype == np.float64


def _file(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


EYE = np.eye(3)
BAD = {
    "text": b"no archive",
    "empty": b"",
    "cut off": _file(mu=EYE[0], sigma=EYE)[:-40],
    "other arrays": _file(features=EYE),
    "sigma of another size": _file(mu=EYE[0], sigma=np.eye(4)),
    "a scalar mean": _file(mu=np.float64(3), sigma=EYE),
    "whole numbers": _file(mu=np.arange(3), sigma=EYE),
    "not finite": _file(mu=EYE[0] * np.nan, sigma=EYE),
    "not symmetric": _file(mu=EYE[0], sigma=np.triu(np.ones((3, 3)))),
    "negative variance": _file(mu=EYE[0], sigma=-EYE),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_holds_no_statistics_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(BAD[name])
    with pytest.raises(UserError, match=r"x\.npz: ") as caught:
        load_stats(tmp_path / "x.npz", made_by="inception")
    assert "\n" not in str(caught.value)


@pytest.fixture
def singular() -> GaussianStats:
    """Statistics of fewer images than features, of which many never vary: most eigenvalues are 0."""
    values = np.random.RandomState(5).randn(40, 90) * np.logspace(0, -1, 90)
    values[:, ::3] = 0.25
    return gaussian_stats(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s - 3e-3 * np.eye(90), "least eigenvalue is -0.003"),
        (lambda s: s.astype(np.float16).astype(np.float64), "least eigenvalue is -"),
        (lambda s: s.astype(np.float16), "float16 has too few digits"),
        (lambda s: s + 1e-3 * np.triu(np.ones_like(s), 1), "not symmetric"),
    ],
)
def test_a_sigma_that_is_no_covariance_is_named(
    change: Callable[[np.ndarray], np.ndarray], words: str, singular: GaussianStats, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", mu=singular.mean, sigma=change(singular.covariance))
    with pytest.raises(UserError, match=words):
        load_stats(tmp_path / "x.npz", made_by="inception")


def test_statistics_summed_in_float32_are_read_and_give_no_negative_distance(singular: GaussianStats, tmp_path: Path) -> None:
    values = np.random.RandomState(5).randn(40, 90).astype(np.float32) * np.logspace(0, -1, 90, dtype=np.float32)
    values[:, ::3] = 0.25
    mean = values.mean(0)
    sums = (values.T @ values - len(values) * np.outer(mean, mean)) / (len(values) - 1)
    assert np.linalg.eigvalsh(sums.astype(np.float64))[0] < 0, "the sums are rounded"
    for sigma in (sums, singular.covariance.astype(np.float32), 0 * sums):
        np.savez(tmp_path / "x.npz", mu=mean, sigma=sigma)
        found = load_stats(tmp_path / "x.npz", made_by="inception")
        assert min(frechet_distance(found, found), frechet_distance(found, singular), frechet_distance(singular, found)) >= 0


def test_provenance_is_json_beside_the_arrays(tmp_path: Path) -> None:
    save_stats(tmp_path / "x.npz", GaussianStats(np.zeros(2), np.eye(2), 9, {"b": 1, "a": [2]}))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert json.loads(str(file["provenance"])) == {"a": [2], "b": 1}
