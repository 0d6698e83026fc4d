"""The two reference libraries' own programs, and random Inception weights that both of them and we can load."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.alternating import peak_memory


def random_inception_weights(path: Path) -> Path:
    """Writes a state_dict with Inception's 566 names: random convolutions whose outputs differ from image to image."""
    import pytorch_fid.inception as peer

    def build(state: dict[str, Tensor] | None) -> nn.Module:
        # The library's builder ends in a download and a load; the first is replaced, the second left out.
        load = nn.Module.load_state_dict
        with (
            mock.patch.object(peer, "load_state_dict_from_url", lambda *_, **__: state),
            mock.patch.object(nn.Module, "load_state_dict", load if state else lambda *_, **__: None),
        ):
            network: nn.Module = peer.fid_inception_v3()
        return network

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(None)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.2)
        # One pass in training mode sets every layer's running statistics: without them all images look alike.
        coarse = torch.randn(12, 3, 8, 8)
        network.train()(nn.functional.interpolate(coarse, size=(299, 299), mode="bicubic"))
    torch.save(network.state_dict(), path)
    return path


# glibc's own way to set what gan/utils/memory.py sets: the programs compute the same, in two thirds of the time.
KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


@dataclass(frozen=True)
class Done:
    """A program that has ended well."""

    output: str
    seconds: float
    peak_mb: float  # of its memory


def run(words: list[Any], environment: Mapping[str, str] = {}) -> Done:
    """Runs ``python WORDS``. Raises subprocess.CalledProcessError, with what it wrote, when it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], env={**os.environ, **environment}, stdout=output, stderr=errors
        )
        peak = 0.0
        while process.poll() is None:
            with suppress(OSError):
                peak = max(peak, peak_memory(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, output.read(), errors.read())
        return Done(output.read(), seconds, peak)


def pytorch_fid(
    a: Path, b: Path, weights: Path, folder: Path, environment: Mapping[str, str] = {}, options: Sequence[Any] = ()
) -> tuple[float, Done]:
    """FID by pytorch-fid's program, which finds its weights where torch hub looks."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True, exist_ok=True)
    place = hub / "pt_inception-2015-12-05-6726825d.pth"
    place.unlink(missing_ok=True)
    place.symlink_to(weights.resolve())
    done = run(["-m", "pytorch_fid", a, b, "--device", "cpu", *options], {"TORCH_HOME": str(folder), **environment})
    found = re.search(r"FID:\s+(\S+)", done.output)
    assert found, done.output
    return float(found.group(1)), done


def torch_fidelity(
    a: Path, b: Path, weights: Path, folder: Path, kid_size: int, environment: Mapping[str, str] = {}, options: Sequence[Any] = ()
) -> tuple[dict[str, Any], Done]:
    """IS, FID and KID by torch-fidelity's program."""
    words = ["--input1", a, "--input2", b, "--isc", "--fid", "--kid", "--kid-subset-size", kid_size]
    words += ["--feature-extractor-weights-path", weights, "--cache-root", folder, "--cpu", "--json", "--silent", *options]
    done = run(["-m", "torch_fidelity.fidelity", *words], environment)
    return dict(json.loads(done.output)), done
