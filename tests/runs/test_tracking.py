"""metrics.jsonl is always whole lines; wandb and TensorBoard get the same numbers and pictures."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.runs import metrics
from gan.runs.loggers import Tracker
from gan.runs.metrics import last_values, truncate_metrics
from gan.utils.errors import UserError
from gan.utils.safe_reading import open_regular
from gan.utils.settings import FolderConfig, RunConfig
from tests.conftest import command

Tiny = Callable[..., list[str]]


def tracker(folder: Path, step: int = 0) -> Tracker:
    return Tracker(RunConfig(run=FolderConfig(dir=str(folder.parent), name=folder.name)), step)


def test_lines_after_the_checkpoint_and_half_lines_are_written_again(tmp_path: Path) -> None:
    with tracker(tmp_path) as first:
        for step in range(1, 6):
            first.log(step, {"loss": step / 2})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    truncate_metrics(path, 99)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    truncate_metrics(path, 3)
    with tracker(tmp_path, 3) as second:
        second.log(4, {"loss": 7.0})
    assert [json.loads(line) for line in path.read_text().splitlines()][-2:] == [
        {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 7.0},
    ]


def test_a_damaged_line_before_the_checkpoint_is_told_and_one_after_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}', '{"step": 2', '{"step": 3}', "\0\0\0", '{"step": 5}']
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line is damaged"):
        truncate_metrics(path, 3)
    assert path.read_text().splitlines() == lines
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_numbers_that_are_not_finite_are_no_json(tmp_path: Path) -> None:
    with tracker(tmp_path) as writer, pytest.raises(ValueError, match="JSON"):
        writer.log(1, {"loss": float("nan")})


def test_every_line_of_a_run_has_its_losses_scores_gradients_and_rate(finished_run: Path) -> None:
    found = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found if "samples_spread" in line] == [0, 2, 4]
    lines = [line for line in found if "samples_spread" not in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = {
        "step", "d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm", "d_lr", "g_lr",
        "d_chance_steps", "images_per_second", "seconds",
    }  # fmt: skip
    assert all(line.keys() == expected for line in lines)


@pytest.mark.slow
def test_tensorboard_has_the_numbers_of_metrics_and_the_pictures(tiny: Tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (2, 4):  # stopped and gone on
        assert command(tiny(f"training.steps={steps}", "samples.every=2", "tracking.tensorboard=true")) == 0
    run = tmp_path / "runs" / "tiny"
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("d_loss")] == [
        (line["step"], line["d_loss"]) for line in lines if "d_loss" in line
    ]
    assert [e.step for e in events.Images("samples")] == [0, 2, 4]


@pytest.mark.slow
def test_wandb_offline_keeps_the_run_without_a_network(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for steps in (2, 4):
        assert command(tiny(f"training.steps={steps}", "samples.every=2", "tracking.wandb=offline")) == 0
    run = tmp_path / "runs" / "tiny"
    records = list((run / "wandb").glob("offline-run-*/*.wandb"))
    identity = (run / "wandb-id").read_text()
    assert len(records) == 2
    assert all(identity in record.name for record in records)  # both parts belong to one run
    assert all(b"d_grad_norm" in record.read_bytes() for record in records)
    assert list((run / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))


def test_a_tracker_that_is_not_installed_is_an_error(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gan.runs.loggers.find_spec", lambda _name: None)
    for setting, name in (("tracking.wandb=offline", "wandb"), ("tracking.tensorboard=true", "TensorBoard")):
        assert command(tiny(setting)) == 2
        assert f"{name} is not installed" in capsys.readouterr().err


def test_the_last_values_are_those_of_the_last_whole_line_that_has_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_values(path, "d_loss") == {}
    lines = ['{"step": 1, "d_loss": 0.5, "g_loss": 2}', '{"step": 2, "d_loss": 0.25, "g_loss": 1}', '{"step": 2, "fid": 3}']
    path.write_text("\n".join(lines) + '\n{"step": 3, "d_l')
    assert last_values(path, "d_loss", "g_loss") == {"step": 2, "d_loss": 0.25, "g_loss": 1}
    assert last_values(path, "fid")["fid"] == 3
    assert last_values(path, "is") == {}


@given(
    lines=st.lists(
        st.sampled_from([b'{"step": 1, "a": 2}', b'{"step": 2}', b'{"step": 3, "a": 4, "text": "' + b"-" * 40 + b'"}'])
    ),
    rest=st.sampled_from([b"", b'{"step": 9, "a', b'{"step": 9, "a": 9}']),
    block=st.integers(1, 60),
)
def test_the_last_values_do_not_depend_on_where_the_file_is_divided(lines: list[bytes], rest: bytes, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines) + rest)
        patch.setattr(metrics, "_BLOCK", block)
        expected = next((record for record in map(json.loads, reversed(lines)) if "a" in record), {})
        assert last_values(path, "a") == expected
        with open_regular(path) as file:
            assert list(metrics._from_the_end(file, path)) == lines[::-1]


def test_a_file_that_is_cut_while_it_is_read_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' * 4)
    monkeypatch.setattr(metrics, "_BLOCK", 12)
    with open_regular(path) as file:
        found = metrics._from_the_end(file, path)
        assert next(found) == b'{"step": 1}'
        os.truncate(path, 12)
        assert list(found) == []


@pytest.mark.parametrize(
    "line", ["x", "[1]", "3", '{"step": 2, "d_loss": "low"}', '{"d_loss": 1}', '{"step": 2, "d_loss": 1e999}', ""]
)
def test_a_damaged_line_among_the_last_is_told(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "d_loss": 0.5}\n' + line + "\n")
    with pytest.raises(UserError, match="a line is damaged"):
        last_values(path, "d_loss")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        last_values(path, "d_loss")
