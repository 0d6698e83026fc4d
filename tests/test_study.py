"""The classifiers: their counts, their training, what they record, and what is made of it."""

import json
import multiprocessing
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from gan.models.norms import BatchNorm, SpectralNorm
from gan.utils import cli
from gan.utils.distributed import make_accelerator
from gan.utils.errors import UserError
from gan.utils.settings import set_value
from study import speed
from study import sweep as sweeping
from study.__main__ import main
from study.classifier_task import ClassifierTask, step_after
from study.config import LabelledDataConfig, ProbesConfig, StudyConfig, load_study_config
from study.data import training_images
from study.models import build_classifier, densenet_bc, weighted_layers
from study.probes import Prober
from study.results import ClassifierRun, comparable_runs, read_run, read_runs
from study.tables import accuracy_table, best, cells, count_rows
from tests.workers import in_process, run_together, study_here, study_to_the_end

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "configs" / "study" / "digits_cnn3.yaml"
TINY = [
    "training.epochs=0.4", "training.precision=fp32", "probes.every=3", "checkpoint.every=4", "tracking.every=1",
    "data.train_images=400", "data.test_images=60", "training.batch_size=20",
]  # fmt: skip


def study(*words: str) -> int:
    """The exit code of ``python -m study WORDS``, run in this process."""
    return cli.run(lambda: main(words))


def train(folder: Path, *settings: str, name: str = "run") -> Path:
    """A trained tiny classifier's folder."""
    assert study("train", "--config", str(DIGITS), *TINY, f"run.dir={folder}", f"run.name={name}", *settings) == 0
    return folder / name


def contents(run: Path) -> dict[str, Any]:
    """All that a run's folder holds, but for times."""
    timings = {"images_per_second", "seconds"}
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in ("environment.json", ".lock"):
            found[str(path.relative_to(run))] = path.read_bytes()
    lines = found.pop("metrics.jsonl").splitlines()
    found["metrics"] = [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]
    return found


# Networks


def test_parameters_are_those_of_table_iii_and_differ_by_what_is_known() -> None:
    differences = {(model, norm): difference for model, norm, _, _, difference, _ in count_rows() if difference is not None}
    assert differences == {
        ("WGAN (discriminator)", "batch"): 0, ("WGAN (discriminator)", "spectral"): 0,
        ("WGAN (discriminator)", "mean_spectral"): 1, ("3-layer CNN", "batch"): 0, ("3-layer CNN", "spectral"): 4,
        ("3-layer CNN", "mean_spectral"): 4, ("VGG-7", "batch"): 0, ("VGG-7", "spectral"): 6, ("VGG-7", "mean_spectral"): 6,
        ("DenseNet-BC", "batch"): 0, ("DenseNet-BC", "spectral"): 4, ("DenseNet-BC", "mean_spectral"): 3,
    }  # fmt: skip
    ours = {(model, norm): count for model, norm, _, count, _, _ in count_rows()}
    assert (ours["DenseNet-BC", "spectral"], ours["DenseNet-BC", "mean_spectral"]) == (1_007_604, 1_008_667)
    assert all(reason for _, _, _, _, difference, reason in count_rows() if difference)


@pytest.mark.parametrize("variant", ["full", "published"])
def test_densenet_bc_has_100_layers_and_norms_where_they_belong(variant: Any) -> None:
    network = densenet_bc("mean_spectral", variant=variant)
    layers = weighted_layers(network)
    assert [layer.number for layer in layers] == list(range(1, 101))
    spectral = {layer.number for layer in layers if isinstance(layer.module, SpectralNorm)}
    assert spectral == (set(range(1, 101)) if variant == "full" else {1, 34, 67, 100})
    inside = sum(p.numel() for m in network.modules() if isinstance(m, BatchNorm) for p in m.parameters())
    assert inside == (0 if variant == "full" else 28_832)


@given(st.sampled_from(["cnn3", "vgg7"]), st.integers(32, 40), st.integers(2, 12), st.sampled_from([1, 3]))
def test_images_of_any_size_give_a_logit_for_each_class(name: Any, size: int, classes: int, channels: int) -> None:
    network = build_classifier(name, "mean_spectral", channels=channels, size=size, classes=classes, seed=0)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", ["vgg7", "densenet_bc"])
def test_images_that_are_too_small_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="too small"):
        build_classifier(name, "batch", channels=3, size=1, classes=10, seed=0)


def test_initial_weights_are_a_function_of_the_seed_and_the_same_under_every_norm() -> None:
    def first(norm: str, seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the state of the global generator must not matter
        network = build_classifier("cnn3", norm, channels=1, size=28, classes=10, seed=seed)
        return weighted_layers(network)[0].parameter

    assert torch.equal(first("batch", 3), first("batch", 3))
    assert torch.equal(first("batch", 3), first("mean_spectral", 3))
    assert not torch.equal(first("batch", 3), first("batch", 4))


# Data


def test_held_out_images_are_apart_and_the_same_for_every_run() -> None:
    data = LabelledDataConfig(name="digits", image_size=28)
    train_on = training_images(data)
    tested = train_on.tested
    assert len(train_on) + len(tested) == 1797
    assert len(tested) == 359
    assert not set(train_on.source.indices) & set(tested.source.indices)
    assert training_images(data).fingerprint == train_on.fingerprint
    fewer = training_images(LabelledDataConfig(name="digits", image_size=28, train_images=100))
    assert len(fewer) == 100
    assert len(set(fewer.labels.numbers)) == 10


def test_classes_of_the_test_images_must_be_those_trained_on(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/a.png", "test/cow/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28)).save(tmp_path / name)
    data = LabelledDataConfig(name="folder", path=str(tmp_path / "train"), test_path=str(tmp_path / "test"), image_size=28)
    with pytest.raises(UserError, match=r"cat, cow.*cat, dog"):
        training_images(data)


def test_vgg7_trains_on_files_in_the_format_of_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    draw, splits = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("test", 20)):
        file = tmp_path / f"{split}_32x32.mat"
        pixels = draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(file, {"X": pixels, "y": 1 + np.arange(count)[:, None] % 10})  # 1 to 10; ten is the digit 0
        splits[split] = ["nowhere", file.name, datasets.utils.calculate_md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    config = DIGITS.parent / "svhn_vgg7.yaml"
    words = ["train", "--config", str(config), f"data.path={tmp_path}", f"run.dir={tmp_path}", "training.epochs=1"]
    assert study(*words, "training.batch_size=20", "training.precision=fp32") == 0
    assert read_run(tmp_path / "svhn_vgg7").complete
    trained_on = training_images(LabelledDataConfig(name="svhn", path=str(tmp_path)))
    assert trained_on.labels.numbers.tolist() == [(1 + index % 10) % 10 for index in range(40)]
    assert len(trained_on.tested) == 20


# Training


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps. Not to be changed."""
    return train(tmp_path_factory.mktemp("study"))


def test_a_run_records_tests_probes_and_checkpoints(finished: Path) -> None:
    result = read_run(finished)
    assert result.complete
    assert [test["epoch"] for test in result.tests] == [0.4]
    assert 0 <= result.accuracy <= 1
    assert result.layers == [1, 2, 3, 4]
    assert [record["step"] for record in result.probed(2)] == [1, 3, 6, 8]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


@pytest.mark.slow
def test_a_classifier_learns_the_digits(tmp_path: Path) -> None:
    run = train(tmp_path, "training.epochs=8", "data.test_images=null", "data.train_images=null", "probes.every=0")
    assert read_run(run).accuracy > 0.9
    assert len(read_run(run).tests) == 8
    assert not (run / "probes.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
def test_probes_change_no_weight(norm: str, tmp_path: Path) -> None:
    with_probes = contents(train(tmp_path, f"model.norm={norm}", name="with"))
    without = contents(train(tmp_path, f"model.norm={norm}", "probes.every=0", name="without"))
    weights = "checkpoints/step-00000008/classifier.safetensors"
    assert with_probes[weights] == without[weights]
    assert with_probes["metrics"] == without["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "mean_spectral"])
def test_a_killed_run_goes_on_bit_for_bit(norm: str, tmp_path: Path) -> None:
    settings = [*TINY, "training.epochs=2", "checkpoint.every=1", f"model.norm={norm}", f"run.dir={tmp_path}"]
    words = ["train", "--config", str(DIGITS), *settings]
    # In a process like those that are killed: with another number of threads, sums are others in the last bit.
    assert in_process(study_to_the_end, [*words, "run.name=calm"]) == 0
    saved = tmp_path / "killed" / "checkpoints"
    codes = [
        in_process(study_to_the_end, [*words, "run.name=killed"], kill_when=(saved / f"step-{step:08d}").exists)
        for step in (3, 12, 25)
    ]
    assert in_process(study_to_the_end, [*words, "run.name=killed"]) == 0
    assert codes == [-signal.SIGKILL] * 3
    calm, killed = contents(tmp_path / "calm"), contents(tmp_path / "killed")
    assert killed["probes.jsonl"] == calm["probes.jsonl"]
    assert killed["metrics"] == calm["metrics"]
    weights = "checkpoints/step-00000040/classifier.safetensors"
    assert killed[weights] == calm[weights]


@pytest.mark.slow
def test_two_epochs_are_one_and_one_more(tmp_path: Path) -> None:
    once = contents(train(tmp_path, "training.epochs=2", name="once"))
    train(tmp_path, "training.epochs=1", name="twice")
    twice = contents(train(tmp_path, "training.epochs=2", name="twice"))
    weights = "checkpoints/step-00000040/classifier.safetensors"
    assert once[weights] == twice[weights]
    assert [m for m in once["metrics"] if "test_accuracy" in m] == [m for m in twice["metrics"] if "test_accuracy" in m]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["spectral", "batch", "mean_spectral"])
def test_two_processes_are_one(norm: str, tmp_path: Path) -> None:
    settings = [*TINY, "training.precision=fp64", f"model.norm={norm}", f"run.dir={tmp_path}", "probes.every=8"]
    words = ["train", "--config", str(DIGITS), *settings]
    run_together(1, study_here, [*words, "run.name=one"])
    run_together(2, study_here, [*words, "run.name=two"])
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert len(one.metrics) == len(two.metrics)
    for a, b in zip(one.metrics, two.metrics, strict=True):
        keys = {"loss", "accuracy", "test_loss", "test_accuracy"} & a.keys()
        assert all(abs(a[key] - b[key]) < 1e-8 for key in keys)
    for a, b in zip(one.probes, two.probes, strict=True):
        for key in ("gradient_std", "weight_mean", "preactivation_mean", "singular_max"):
            assert abs(a[key] - b[key]) < 1e-6 * (abs(a[key]) + 1e-3), key


# ProbesConfig


def test_probes_are_what_their_names_say() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    config = ProbesConfig(every=1, bins=5)
    prober = Prober(network, config, total=10)
    x = torch.randn(4, 1, 4, 4).double()
    with prober.watching():
        network(x).square().sum().backward()
    conv, dense = network[0].weight, network[2].weight
    dense.grad[0] = 0
    first, last = prober.records(make_accelerator(cpu=True))
    assert (first["layer"], last["layer"]) == (1, 2)
    assert last["gradient_zero"] == pytest.approx(1 / 3)
    assert first["weight_mean"] == pytest.approx(float(conv.mean()), rel=1e-5)
    assert first["weight_std"] == pytest.approx(float(conv.std()), rel=1e-5)
    assert first["preactivation_mean"] == pytest.approx(float(network[0](x).mean()), rel=1e-4)
    largest = [float(torch.linalg.svdvals(kernel)[0]) for kernel in conv.detach().flatten(0, 1)]
    assert first["singular_kernel_mean"] == pytest.approx(np.mean(largest), rel=1e-5)
    assert first["singular_max"] == pytest.approx(float(torch.linalg.matrix_norm(conv.flatten(1), 2)), rel=1e-5)
    assert last["singular_kernel_mean"] == pytest.approx(last["singular_max"])
    assert sum(first["gradient_histogram"]) == conv.numel()
    assert not network[0]._forward_hooks  # nothing is left behind


def test_under_sn_probes_are_of_the_weight_that_the_layer_computes_with(finished: Path) -> None:
    records = read_run(finished).probed(4)
    assert records[-1]["singular_max"] == pytest.approx(1, abs=0.2)  # one power iteration a step is behind the weights
    assert records[-1]["parameter_std"] != pytest.approx(records[-1]["weight_std"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "centred"), [("batch", True), ("mean_spectral", True), ("spectral", False)])
def test_in_densenet_the_preactivation_is_what_the_next_norm_leaves_of_the_layer(norm: str, centred: bool) -> None:
    torch.manual_seed(0)
    network = densenet_bc(norm)
    prober = Prober(network, ProbesConfig(), total=1)
    x = torch.randn(4, 3, 32, 32) + 1
    with prober.watching():
        nn.functional.cross_entropy(network(x), torch.arange(4)).backward()
    means = [abs(record["preactivation_mean"]) for record in prober.records(make_accelerator(cpu=True))]
    assert all(mean < 1e-4 for mean in means) == centred
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
def test_with_a_norm_after_the_layer_its_output_is_centred(tmp_path: Path) -> None:
    for norm in ("batch", "mean_spectral"):
        run = train(tmp_path, f"model.norm={norm}", name=norm)
        # m and beta have hardly moved in 8 steps
        assert all(abs(record["preactivation_mean"]) < 0.05 for record in read_run(run).probed(2))


# Sweeps, tables and figures

SWEEP = ["--config", str(DIGITS), "--norms", "batch", "mean_spectral", "--rates", "0.001", "--seeds", "0", "1"]


@pytest.mark.slow
def test_a_sweep_that_was_killed_gives_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", *SWEEP, *TINY]
    assert in_process(study_to_the_end, [*words, f"run.dir={tmp_path / 'calm'}"]) == 0
    assert study(*words, f"run.dir={tmp_path / 'calm'}") == 0
    calm = capsys.readouterr().out
    stopped = [*words, f"run.dir={tmp_path / 'stopped'}"]

    def begun(count: int) -> Callable[[], bool]:
        return lambda: len(list((tmp_path / "stopped").glob("*/metrics.jsonl"))) >= count

    codes = [in_process(study_to_the_end, stopped, kill_when=begun(count)) for count in (1, 2, 3)]
    assert codes == [-signal.SIGKILL] * 3
    assert in_process(study_to_the_end, stopped) == 0
    assert study(*stopped) == 0
    captured = capsys.readouterr()
    assert captured.err.count("(done)") == 4
    assert captured.out == calm
    assert "± " in calm
    for run in (tmp_path / "calm").iterdir():
        assert contents(run)["probes.jsonl"] == contents(tmp_path / "stopped" / run.name)["probes.jsonl"]


@pytest.mark.slow
def test_a_sweep_goes_on_with_a_run_killed_between_its_last_test_and_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--config", str(DIGITS), "--norms", "spectral", "--rates", "0.001"]
    words = ["sweep", *grid, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    (run,) = tmp_path.iterdir()
    calm = contents(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "checkpoints" / "tmp-00000008").mkdir()
    capsys.readouterr()
    assert study(*words) == 0
    assert "(done)" not in capsys.readouterr().err
    assert contents(run) == calm


@pytest.mark.slow
def test_a_broken_run_is_reported_and_ends_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ClassifierTask.step

    def breaking(self: ClassifierTask, number: int) -> Any:
        metrics = whole(self, number)
        if self.config.model.norm == "batch" and self.config.seed == 0 and number == 5:
            raise RuntimeError("a bug")
        if self.config.model.norm == "batch" and self.config.seed == 1:
            metrics["loss"] = metrics["loss"] * float("nan")
        return metrics

    monkeypatch.setattr(ClassifierTask, "step", breaking)
    words = ["sweep", *SWEEP, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 1
    captured = capsys.readouterr()
    assert "failed, the sweep continues: RuntimeError: a bug" in captured.err
    assert "not finite since step 1" in captured.err
    assert "1 diverged, 1 unfinished" in captured.out
    assert all(read_run(tmp_path / f"digits_cnn3_mean_spectral_lr0.001_seed{seed}").complete for seed in (0, 1))
    monkeypatch.setattr(ClassifierTask, "step", whole)
    assert study(*words) == 0  # the bug is mended: that run goes on; what diverged is not tried in vain
    captured = capsys.readouterr()
    assert "failed before: losses or gradients are not finite" in captured.err
    assert "1 diverged" in captured.out
    assert study(*words, "--retry") == 0
    assert "diverged" not in capsys.readouterr().out


def test_a_run_with_other_settings_is_not_taken_for_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(DIGITS), "--norms", "batch", "--rates", "0.001", *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    assert study(*words, "training.batch_size=40") == 2
    assert "holds a run with other settings (training.batch_size: 20 -> 40)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_run_ends_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", *SWEEP, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    damaged = tmp_path / "digits_cnn3_batch_lr0.001_seed0"
    (damaged / "metrics.jsonl").write_text("{\n")
    shutil.rmtree(tmp_path / "digits_cnn3_mean_spectral_lr0.001_seed1")
    assert study(*words) == 2
    captured = capsys.readouterr()
    assert "batch_lr0.001_seed0 failed, the sweep continues" in captured.err
    assert "| MSN |" in captured.out
    assert read_run(tmp_path / "digits_cnn3_mean_spectral_lr0.001_seed1").complete


def test_what_diverges_in_the_test_alone_is_told_as_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(DIGITS), "--norms", "none", "--rates", "1e12", *TINY, "training.epochs=0.05"]
    assert study(*words, f"run.dir={tmp_path}", "probes.every=0") == 0
    captured = capsys.readouterr()
    assert "not finite" in captured.err
    assert "1 diverged" in captured.out


@pytest.mark.slow
def test_a_mistake_that_one_of_two_processes_meets_ends_both(tmp_path: Path) -> None:
    for index in range(40):
        folder = tmp_path / "images" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), index).save(folder / f"{index}.png")
    (tmp_path / "images" / "1" / "7.png").write_text("no image")
    words = ["sweep", "--config", str(DIGITS), "--norms", "batch", "--rates", "0.001", *TINY, f"run.dir={tmp_path / 'runs'}",
        "data.name=folder", f"data.path={tmp_path / 'images'}", "data.memory_gb=0", "training.epochs=5"]  # fmt: skip
    with pytest.raises(AssertionError):
        run_together(2, study_here, words)  # waits five minutes for processes that do not end
    assert not multiprocessing.active_children()


def test_a_mistake_in_one_configuration_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {name: vgg7, variant: published}\n")
    runs = tmp_path / "runs"
    assert study("sweep", "--config", str(DIGITS), str(bad), "--rates", "0.001", *TINY, f"run.dir={runs}") == 2
    assert not runs.exists()


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


def test_a_run_and_its_copy_are_not_two_seeds(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    with pytest.raises(UserError, match="the same training"):
        comparable_runs(read_runs([finished, tmp_path / "copy"]))


@pytest.mark.parametrize(("name", "same"), [("cifar10", True), ("cifar100", False), ("svhn", False)])
def test_a_difference_is_to_the_same_data_alone(name: str, same: bool, finished: Path) -> None:
    run = read_run(finished)
    config = set_value(set_value(run.config, "model.name", "densenet_bc"), "data.name", name)
    moved = ClassifierRun(run.folder, set_value(config, "optimizer.lr", 0.001))
    assert ("91.65 on cifar10" not in accuracy_table([moved])) == same


def test_in_a_folder_of_runs_those_of_gans_are_passed_over(finished: Path, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "gan").symlink_to(finished_run)
    with pytest.raises(UserError, match="no run of a classifier"):
        read_runs([tmp_path])
    (tmp_path / "classifier").symlink_to(finished)
    assert [run.folder.name for run in read_runs([tmp_path])] == ["classifier"]


def test_published_numbers_are_compared_on_their_own_data_alone(finished: Path) -> None:
    table = accuracy_table(read_runs([finished]))
    assert "96.71 on mnist |  |" in table


@pytest.mark.slow
def test_tables_are_written_without_runs_and_with(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("tables", "--out", str(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table3.csv", "table3.md"]
    assert study("tables", str(finished.parent), "--out", str(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table1.csv", "table1.md", "table3.csv", "table3.md"]
    assert "| MSN | 1,008,670 | 1,008,667 | 3 |" in capsys.readouterr().out


@pytest.mark.slow
def test_figures_are_drawn_from_what_was_recorded(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "runs", "model.norm=batch", name="bn")
    moved = tmp_path / "moved"
    moved.mkdir()
    for run in (finished, tmp_path / "runs" / "bn"):  # without checkpoints: nothing but the records is needed
        (moved / run.name).mkdir()
        for file in ("config.yaml", "metrics.jsonl", "probes.jsonl"):
            (moved / run.name / file).write_bytes((run / file).read_bytes())
    assert study("figures", str(moved), "--out", str(tmp_path / "out")) == 0
    names = {f"figure{n}_cnn3_digits" for n in (1, 3, 4, 5, 6)} | {"figure2"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{n}.{e}" for n in names for e in ("pdf", "png")}
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # something was drawn
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert study("figures", str(moved), "--out", str(tmp_path / "out")) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


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


# Mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", str(DIGITS), "model.nrom=batch"], "nrom"),
        (["train", "--config", str(DIGITS), "model.variant=published"], "only densenet_bc"),
        (["train", "--config", str(DIGITS), "optimizer.lr=0"], "positive"),
        (["train", "--config", str(DIGITS), "probes.layers=[9]"], "no layer 9; there are 4"),
        (["train", "--config", str(DIGITS), "probes.layers=[0]"], "numbered from 1"),
        (["train", "--config", str(DIGITS), "probes.layers=[]"], "each layer once"),
        (["tables", "--out", "a.png"], "cannot be made"),
        (["tables", "--out", "a.png/sub"], "cannot be made"),
        (["train", "--config", str(DIGITS), "data.image_size=1", "model.name=vgg7"], "too small"),
        (["train", "--config", str(DIGITS), "data.name=folder", "data.path=FLAT.zip"], "no classes"),
        (["train", "--config", str(DIGITS), "training.batch_size=1"], "at least 2"),
        (["train", "--config", str(DIGITS), "run.name=gan"], "is not a setting"),
        (["sweep", "--config", str(DIGITS), "--rates", "fast"], "learning rate"),
        (["sweep", "--config", str(DIGITS), "--norms", "layer"], "invalid choice"),
        (["tables", "nowhere", "--out", "out"], "no run"),
        (["tables", "seed=1", "--out", "out"], "takes no settings"),
        (["figures", "runs", "--out", "out"], "no run"),
        (["sing"], "invalid choice"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("FLAT.zip", "w") as archive:
        Image.new("L", (28, 28)).save("a.png")
        for index in range(10):
            archive.write("a.png", f"{index}.png")
    (tmp_path / "runs" / "gan").mkdir(parents=True)
    (tmp_path / "runs" / "gan" / "config.yaml").write_text("model: {generator: {norm: batch}}\n")
    if words[0] == "figures":
        (tmp_path / "runs" / "gan" / "config.yaml").unlink()
    assert study(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_a_dry_run_tells_all_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("train", "--config", str(DIGITS), "--dry-run", f"run.dir={tmp_path / 'runs'}") == 0
    told = capsys.readouterr().out
    assert "103,482 parameters (cnn3, mean_spectral)" in told
    assert "113, 5 epochs of 1,438 images" in told
    assert not (tmp_path / "runs").exists()


@given(st.integers(1, 500), st.integers(1, 64), st.floats(0.1, 5))
def test_the_last_step_is_the_first_after_all_epochs(count: int, batch: int, epochs: float) -> None:
    config = set_value(StudyConfig(), "training.batch_size", batch)
    step = step_after(epochs, config, [None] * count)  # type: ignore[arg-type]
    assert step * batch >= epochs * count > (step - 1) * batch


def test_ready_configurations_load_under_their_own_name() -> None:
    for path in (ROOT / "configs" / "study").glob("*.yaml"):
        assert load_study_config(path).run.name == path.stem


def test_a_sweep_goes_through_every_combination_of_its_grid() -> None:
    grid = sweeping.SweepGrid([DIGITS], ["batch", "spectral"], [0.1, 1e-4], [0, 7], ["training.epochs=3"])
    runs = [(c.model.norm, c.optimizer.lr, c.seed, c.training.epochs) for c in grid.runs()]
    for changed in (["run.name=x"], ["model.norm=none"], ["seed=3"], ["optimizer.lr=1"]):
        with pytest.raises(UserError, match=r"sets model\.norm"):
            sweeping.SweepGrid([DIGITS], ["batch"], [0.1], [0], changed).runs()
    with pytest.raises(UserError, match="2 runs of the sweep"):
        sweeping.SweepGrid([DIGITS], ["batch"], [0.1], [0, 0], []).runs()
    assert len(set(runs)) == len({c.run.name for c in grid.runs()}) == 8
    assert ("spectral", 1e-4, 7, 3.0) in runs
