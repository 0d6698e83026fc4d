"""The numbers on the page of the study are those of the files beside it."""

import csv
from collections import defaultdict
from functools import cache
from statistics import fmean

import pytest

from tests.study.common import ROOT

FILES = ROOT / "docs" / "study"


@cache
def page() -> str:
    return (ROOT / "docs" / "study.md").read_text()


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((FILES / name).open()))


def curves(name: str, *keys: str) -> dict[tuple[str, ...], list[float]]:
    """Return the accuracies after each epoch, in percent, of each training in a file."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows(name):
        found[tuple(row[key] for key in keys)].append(100 * float(row["test_accuracy"]))
    return found


def test_accuracies_as_written_are_those_of_table_1() -> None:
    for row in rows("table1.csv"):
        if row["best"] == "1":
            assert f"{float(row['mean']):.2f}" in page(), row


def test_the_table_by_learning_rate_is_the_one_beside_the_page() -> None:
    for line in (FILES / "table1.md").read_text().splitlines():
        if line.startswith(("| VGG-7", "| 3-layer")):
            assert line in page()


def test_accuracies_of_vgg7_stand_in_their_rows() -> None:
    names = {"batch": "BN", "mean_spectral_projected": "MSN, projected, with gain", "spectral_projected": "SN, projected"}
    for (norm, budget), accuracies in curves("epochs.csv", "norm", "trained_on").items():
        if len(accuracies) == 10 and budget.startswith("50,000 images, 10 epochs"):
            cells = " | ".join(f"{accuracies[epoch - 1]:.2f}" for epoch in (1, 2, 3, 4, 6, 10))
            assert f"| {names[norm]} | {cells} |" in page()


def test_accuracies_of_the_whole_released_recipe_are_those_of_the_runs() -> None:
    for run, accuracies in curves("mnist_released.csv", "norm", "lr", "seed").items():
        long = len(accuracies) == 60
        epochs = (1, 10, 20, 30, 40, 50, 60) if long else (1, 5, 10, 15)
        cells = " | ".join(f"{accuracies[epoch - 1]:.1f}" for epoch in epochs if epoch <= len(accuracies))
        assert f"| {cells} |" in page(), run
        assert f"| **{max(accuracies):.1f}** |" in page(), run
        if long:
            assert f"| {fmean(accuracies[-10:]):.1f} |" in page(), run


def test_last_accuracies_of_every_run_are_on_the_page() -> None:
    for run, accuracies in curves("epochs.csv", "model", "data", "trained_on", "norm", "lr", "seed").items():
        assert f"{accuracies[-1]:.2f}" in page(), run


def test_the_parts_of_the_projection_are_those_of_the_runs() -> None:
    for part, accuracies in curves("sigma_parts.csv", "part").items():
        assert f"{accuracies[-1]:.2f}" in page(), part


def test_stable_ranks_are_those_of_the_weights() -> None:
    for row in rows("stable_ranks.csv"):
        cells = " | ".join(f"{float(row[f'layer{number}']):.1f}" for number in (1, 2, 3, 4))
        assert f"| {cells} |" in page(), row


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir() if path.suffix in (".csv", ".png")))
def test_the_page_names_every_file_beside_it(name: str) -> None:
    assert f"(study/{name})" in page()
