"""Tables and the speed table, made from the records of runs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gan.utils.errors import UserError
from gan.utils.settings import set_value
from study import speed
from study.results import ClassifierRun, comparable_runs, read_run, read_runs
from study.tables import accuracy_table, best, cells
from tests.study.common import study, train


@pytest.mark.slow
def test_runs_that_differ_by_more_than_the_seed_are_not_averaged(finished: Path, tmp_path: Path) -> None:
    other = train(tmp_path, "seed=1", name="seed")
    apart = [
        train(tmp_path, "seed=2", "training.epochs=0.6", name="longer"),
        train(tmp_path, "seed=2", "data.train_images=380", name="fewer"),
        train(tmp_path, "seed=2", "data.test_images=50", name="tested"),
        train(tmp_path, "seed=2", "training.batch_size=40", name="batch"),
    ]
    found = comparable_runs(read_runs([finished, other, *apart, finished]))
    assert sorted(len(cells(row)[0].accuracies) for row in found) == [1, 1, 1, 1, 2]
    (two,) = (cell for row in found for cell in cells(row) if len(cell.accuracies) == 2)
    accuracies = [100 * read_run(run).accuracy for run in (finished, other)]
    assert two.mean == pytest.approx(np.mean(accuracies))
    assert two.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert best([two]) == two
    table = accuracy_table(read_runs([finished, other, *apart]))
    assert table.count("| 3-layer CNN |") == 5
    assert table.count("training.batch_size=40") == 1


def test_two_runs_of_equal_settings_are_one_training_by_the_one_that_came_further(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy, stopped = (Path(shutil.copytree(finished, tmp_path / name)) for name in ("copy", "stopped"))
    (stopped / "metrics.jsonl").write_text("")
    for given in ([finished, copy], [stopped, finished, copy], [finished, stopped]):
        caplog.clear()
        (row,) = comparable_runs(read_runs(given))
        (cell,) = cells(row)
        assert cell.accuracies == (100 * read_run(finished).accuracy,)
        assert row.first.folder == finished
        assert len(caplog.records) == len(given) - 1
        assert f"it counts once, as {finished}" in caplog.text


@pytest.mark.parametrize(("name", "same"), [("cifar10", True), ("cifar100", False), ("svhn", False)])
def test_a_difference_is_to_the_same_data_alone(name: str, same: bool, finished: Path) -> None:
    run = read_run(finished)
    config = set_value(set_value(run.config, "model.name", "densenet_bc"), "data.name", name)
    moved = ClassifierRun(run.folder, set_value(config, "optimizer.lr", 0.001))
    assert ("91.65 on cifar10" not in accuracy_table([moved])) == same


def test_runs_of_gans_in_a_folder_of_runs_are_skipped(finished: Path, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "gan").symlink_to(finished_run)
    with pytest.raises(UserError, match="no run of a classifier"):
        read_runs([tmp_path])
    (tmp_path / "classifier").symlink_to(finished)
    assert [run.folder.name for run in read_runs([tmp_path])] == ["classifier"]


@pytest.mark.slow
def test_tables_are_written_without_runs_and_with(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("tables", "--out", str(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table3.csv", "table3.md"]
    assert study("tables", str(finished.parent), "--out", str(tmp_path)) == 0
    files = ["epochs.csv", "table1.csv", "table1.md", "table3.csv", "table3.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    rows = list(csv.DictReader((tmp_path / "epochs.csv").open()))
    assert [(float(row["epoch"]), float(row["test_accuracy"])) for row in rows] == [
        (test["epoch"], pytest.approx(test["test_accuracy"], abs=1e-4)) for test in read_run(finished).tests
    ]
    assert "| MSN | 1,008,670 | 1,008,667 | 3 |" in capsys.readouterr().out


@pytest.mark.slow
def test_speed_is_measured_for_every_model_and_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_SHAPES", {"cnn3": (1, 28), "vgg7": (3, 32)})
    assert study("speed", "--rounds", "2", "--out", str(tmp_path)) == 0
    rows = [line.split(",") for line in (tmp_path / "speed.csv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [[m, n] for m in ("3-layer CNN", "VGG-7") for n in ("BN", "SN", "MSN")]
    for model in (rows[:3], rows[3:]):
        base, faster = float(model[0][2]), float(model[1][4])
        assert faster == pytest.approx(100 * (base / float(model[1][2]) - 1), abs=0.3)
        assert float(model[1][5]) == pytest.approx(faster - 27, abs=0.02)


@pytest.mark.parametrize("change", [{"weight_std": None}, {"gradient_below": {}}, {"gradient_histogram": []}])
def test_a_probe_without_what_the_figures_need_is_refused(change: dict[str, object], finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    first, *others = (run / "probes.jsonl").read_text().splitlines()
    (run / "probes.jsonl").write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n")
    with pytest.raises(UserError, match="line 1"):
        _ = read_run(run).probes
