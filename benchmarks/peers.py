"""Run the programs of pytorch-fid and torch-fidelity, and write random Inception weights that both and we can load."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.alternating import Timing, peak_memory


def random_inception_weights(path: Path) -> Path:
    """Write a state_dict with Inception's 566 names: random weights whose outputs differ between images."""
    import pytorch_fid.inception as peer

    # The library's builder downloads weights and loads them; neither is wanted here.
    with (
        mock.patch.object(peer, "load_state_dict_from_url"),
        mock.patch.object(nn.Module, "load_state_dict"),
        torch.random.fork_rng(),
        torch.no_grad(),
    ):
        torch.manual_seed(0)
        network: nn.Module = peer.fid_inception_v3()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.2)
        # One pass in training mode sets all running statistics, without which all images have nearly the same features.
        coarse = torch.randn(12, 3, 8, 8)
        network.train()(nn.functional.interpolate(coarse, size=(299, 299), mode="bicubic"))
    torch.save(network.state_dict(), path)
    return path


# glibc's variables for what gan/utils/memory.py sets. The programs compute the same values in two thirds of the time.
KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def run(words: list[Any], environment: Mapping[str, str] = {}) -> Timing:
    """Run ``python WORDS``. Return its time, memory and standard output (``value``).

    Raises subprocess.CalledProcessError with its output when it fails.
    """
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
        return Timing([seconds], output.read(), peak)


def pytorch_fid(
    a: Path, b: Path, weights: Path, folder: Path, environment: Mapping[str, str] = {}, options: Sequence[Any] = ()
) -> tuple[float, Timing]:
    """Return FID by pytorch-fid's program, which reads its weights from the folder of torch hub."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True, exist_ok=True)
    place = hub / "pt_inception-2015-12-05-6726825d.pth"
    place.unlink(missing_ok=True)
    place.symlink_to(weights.resolve())
    done = run(["-m", "pytorch_fid", a, b, "--device", "cpu", *options], {"TORCH_HOME": str(folder), **environment})
    found = re.search(r"FID:\s+(\S+)", done.value)
    assert found, done.value
    return float(found.group(1)), done


def torch_fidelity(
    a: Path, b: Path, weights: Path, folder: Path, kid_size: int, environment: Mapping[str, str] = {}, options: Sequence[Any] = ()
) -> tuple[dict[str, Any], Timing]:
    """Return IS, FID and KID by torch-fidelity's program."""
    words = ["--input1", a, "--input2", b, "--isc", "--fid", "--kid", "--kid-subset-size", kid_size]
    words += ["--feature-extractor-weights-path", weights, "--cache-root", folder, "--cpu", "--json", "--silent", *options]
    done = run(["-m", "torch_fidelity.fidelity", *words], environment)
    return dict(json.loads(done.value)), done
