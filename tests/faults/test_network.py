"""wandb's server fails in every way: training goes on, and what was recorded can be uploaded later."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from gan.runs import wandb_run
from tests.conftest import TINY, command
from tests.faults.servers import WandbServer
from tests.training.test_resume import contents

Tiny = Callable[..., list[str]]
COMMAND = " can be uploaded by: "
SETTINGS = ["training.steps=60", "samples.every=20", "checkpoint.every=30"]
# train.py, which says at its end how long it was inside wandb; without the time that importing it takes.
TIMED = """
import sys, time
import wandb, train
import gan.training.loop, gan.runs.wandb_run
from gan.utils import cli

spent = {"start": 0.0, "training": 0.0, "end": 0.0}

def timed(owner, name, part):
    function = getattr(owner, name)
    def call(*arguments, **named):
        began = time.monotonic()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.monotonic() - began
    setattr(owner, name, call)

timed(gan.training.loop, "check_trackers", "start")
timed(gan.runs.wandb_run.WandbRun, "__init__", "start")
timed(gan.runs.wandb_run.WandbRun, "log", "training")
timed(gan.runs.wandb_run.WandbRun, "close", "end")
code = cli.run(lambda: train.main(sys.argv[1:]))
print("seconds in wandb:", *(f"{part} {seconds:.1f}" for part, seconds in spent.items()), file=sys.stderr)
sys.exit(code)
"""


def wandb_environment(server: WandbServer, home: Path) -> dict[str, str]:
    folders = {f"WANDB_{kind}_DIR": str(home / "wandb-home") for kind in ("CONFIG", "CACHE", "DATA")}
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, **folders}


def start(server: WandbServer, home: Path, *extra: str) -> subprocess.Popen[str]:
    arguments = [*TINY, f"run.dir={home}", "run.name=run", *SETTINGS, *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **wandb_environment(server, home)}
    program = [sys.executable, "-c", TIMED, *arguments]
    return subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def upload(errors: str, home: Path) -> WandbServer:
    """Run the commands that the run logged, with a server that works; return that server."""
    commands = [line.partition(COMMAND)[2] for line in errors.splitlines() if COMMAND in line]
    assert commands
    with WandbServer() as server:
        environment = {**os.environ, **wandb_environment(server, home)}
        for command in commands:
            words = shlex.split(command)
            subprocess.run(words, env=environment, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
        return server


def losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["d_loss"] for line in lines if "d_loss" in line}


def sent_losses(server: WandbServer) -> dict[int, float]:
    return {step: values["d_loss"] for step, values in server.history.items() if "d_loss" in values}


def seconds_in_wandb(errors: str) -> dict[str, float]:
    """At the start, while training and at the end."""
    (line,) = [line for line in errors.splitlines() if line.startswith("seconds in wandb: ")]
    words = line.removeprefix("seconds in wandb: ").split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


def require_bounds(errors: str) -> None:
    spent = seconds_in_wandb(errors)
    assert spent["start"] < wandb_run.START
    assert spent["training"] < 5  # 60 records and 4 pictures are handed over, and nothing waits
    assert spent["end"] < wandb_run.END


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that wandb must not change."""
    home = tmp_path_factory.mktemp("untracked")
    with WandbServer() as server, start(server, home) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return home / "run"


def require_the_same_run(run: Path, calm: Path) -> None:
    """Records, pictures, weights and optimisers, bit for bit; settings say where the run is, and that wandb was on."""
    here, there = (
        {
            name: content
            for name, content in contents(folder).items()
            if not name.startswith("wandb") and Path(name).name not in ("config.yaml", "checkpoint.json", "checkpoint.sha256")
        }
        for folder in (run, calm)
    )
    assert here == there
    assert {"metrics.jsonl", "samples/step-00000060.png", "checkpoints/step-00000060/optimizers.pt"} <= here.keys()


@pytest.fixture
def server_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server for a run in this process."""
    import wandb

    wandb.teardown()
    with WandbServer() as server:
        for name, value in wandb_environment(server, tmp_path).items():
            monkeypatch.setenv(name, value)
        for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING"):  # set by the run, to be taken back
            monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv(name, {"WANDB_SILENT": "true"}.get(name, "false"))
        yield server
    wandb.teardown()


@pytest.mark.slow
def test_a_server_that_works_gets_all(
    server_here: WandbServer, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny("training.steps=4", "samples.every=2", "tracking.wandb=online")) == 0
    shown, run = capsys.readouterr().err, tmp_path / "runs" / "tiny"
    assert f"wandb: {server_here.url}/me/msngan/runs/{(run / 'wandb-id').read_text()}" in shown
    assert sent_losses(server_here) == losses(run)


@pytest.mark.slow
def test_a_run_that_the_server_refuses_trains_on_offline_and_uploads_later(
    server_here: WandbServer, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server_here.mode = "refuses the key"
    assert command(tiny("training.steps=2", "tracking.wandb=online")) == 0
    shown, run = capsys.readouterr().err, tmp_path / "runs" / "tiny"
    assert "warning: wandb failed (Failed to get resume status" in shown
    later = upload(shown, tmp_path)
    assert later.runs == {(run / "wandb-id").read_text()}
    assert sent_losses(later) == losses(run)


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["away", "hangs", "is slow", "refuses the key", "forbids", "fails", "garbles"])
def test_whatever_the_server_does_at_the_start_the_run_is_the_same_and_soon_there(
    mode: str, untracked: Path, tmp_path: Path
) -> None:
    with WandbServer(mode) as server, start(server, tmp_path, "tracking.wandb=online") as process:
        _, errors = process.communicate(timeout=300)
    print(f"server {mode}\n{errors}")
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    require_the_same_run(tmp_path / "run", untracked)
    require_bounds(errors)
    if mode != "is slow":
        assert errors.count("warning: ") == 1
        assert "Training continues and is recorded offline" in errors
        server = upload(errors, tmp_path)
    assert sent_losses(server) == losses(tmp_path / "run")
    assert server.runs == {(tmp_path / "run" / "wandb-id").read_text()}


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["away", "hangs", "refuses the key", "fails", "garbles"])
def test_a_server_that_breaks_in_the_middle_costs_a_bounded_time_at_the_end_and_no_record(
    mode: str, untracked: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with WandbServer() as server, start(server, tmp_path, "tracking.wandb=online") as process:
        wait_for(lambda: lines_of(run) > 1)
        server.mode = mode
        if mode == "away":
            server.close()
        _, errors = process.communicate(timeout=300)
    print(f"server {mode} in the middle\n{errors}")
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    require_the_same_run(run, untracked)
    require_bounds(errors)
    assert sent_losses(upload(errors, tmp_path)) == losses(run)


def test_a_run_goes_on_to_its_end_where_wandb_cannot_start_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = mock.Mock()
    broken.init.side_effect = RuntimeError("no")
    monkeypatch.setattr(wandb_run, "library", lambda: broken)
    record = wandb_run.WandbRun(tmp_path, "online")
    record.log(1, {"d_loss": 0.5})
    record.close()
    assert broken.init.call_count == 2, "online, then offline"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: wandb failed (no). Training continues and is recorded in metrics.jsonl only."


def test_an_error_while_logging_is_one_warning_and_ends_the_copy_at_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = mock.Mock()
    broken.init.return_value.log.side_effect = RuntimeError("no")
    broken.init.return_value.dir = str(tmp_path)
    monkeypatch.setattr(wandb_run, "library", lambda: broken)
    record = wandb_run.WandbRun(tmp_path, "online")
    for step in (1, 2):
        record.log(step, {"d_loss": 0.5})
    record.close()
    assert broken.init.return_value.log.call_count == 1
    assert [message.getMessage() for message in caplog.records if message.levelname == "WARNING"] == [
        "wandb failed (no). Training continues and is recorded in metrics.jsonl only."
    ]


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_what_a_killed_process_recorded_is_uploaded_with_the_rest(mode: str, tmp_path: Path) -> None:
    run, wandb = tmp_path / "run", f"tracking.wandb={mode}"
    with WandbServer() as server:
        with start(server, tmp_path, wandb, "training.steps=100000") as process:
            wait_for(lambda: lines_of(run) > 50)
            time.sleep(2)  # a second of the record may be lost
            process.kill()
        last = lines_of(run)
        with start(server, tmp_path, wandb, f"training.steps={last + 30}") as process:
            _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    expected = losses(run)
    assert len(expected) == last + 30
    sent = sent_losses(upload(errors, tmp_path))
    if mode == "online":  # what the second process has recorded was sent by itself
        sent |= sent_losses(server)
    assert {1, 2, 3, last + 29, last + 30} <= sent.keys()
    assert sent.items() <= expected.items()
    assert len(sent) > len(expected) - 200, "more than a second's steps are missing"


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_within_the_bound_when_the_server_hangs(number: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with WandbServer() as server, start(server, tmp_path, "tracking.wandb=online", "training.steps=100000") as process:
        wait_for(lambda: lines_of(run) > 1)
        server.mode = "hangs"
        began = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        took = time.monotonic() - began
    print(f"left {took:.1f} s after the signal\n{errors}")
    assert process.returncode == 128 + number
    assert "saved. The same command resumes from there" in errors
    assert took < wandb_run.END
    assert sent_losses(upload(errors, tmp_path)) == losses(run)


@pytest.mark.faults
def test_ctrl_c_while_the_start_waits_for_the_server_leaves_within_the_bound(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with WandbServer("hangs") as server, start(server, tmp_path, "tracking.wandb=online") as process:
        wait_for(lambda: (run / "wandb").exists())
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        took = time.monotonic() - began
    print(f"left {took:.1f} s after the signal\n{errors}")
    assert process.returncode == 130
    assert took < wandb_run.END
    assert "error: interrupted." in errors
