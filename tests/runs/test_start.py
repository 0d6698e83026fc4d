"""A run without a step may be started with other settings; one with a step may not."""

from pathlib import Path

import pytest

from gan.runs.folder import METRICS
from tests.conftest import TINY, command


def test_a_run_without_a_step_may_be_started_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gan.training.gan_task.GanTask.step", killed)
        assert command([*words, "model.latent_dim=4"]) == 130
    assert (tmp_path / "a" / "config.yaml").exists()
    assert command([*words, "model.latent_dim=6"]) == 0
    assert "latent_dim: 6" in (tmp_path / "a" / "config.yaml").read_text()
    assert (tmp_path / "a" / METRICS).read_text().count('"d_loss"') == 2
    capsys.readouterr()
    assert command([*words, "model.latent_dim=4"]) == 2
    assert "holds a run with other settings (model.latent_dim: 6 -> 4)" in capsys.readouterr().err
