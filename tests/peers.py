"""The two reference libraries' own programs, and random Inception weights that both of them and we can load."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


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


def pytorch_fid(a: Path, b: Path, weights: Path, folder: Path) -> float:
    """FID by pytorch-fid's program, which finds its weights where torch hub looks."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "pt_inception-2015-12-05-6726825d.pth").symlink_to(weights.resolve())
    output = _run(["-m", "pytorch_fid", str(a), str(b), "--device", "cpu", "--num-workers", "0"], {"TORCH_HOME": str(folder)})
    found = re.search(r"FID:\s+(\S+)", output)
    assert found, output
    return float(found.group(1))


def torch_fidelity(a: Path, b: Path, weights: Path, folder: Path, kid_size: int) -> dict[str, Any]:
    """IS, FID and KID by torch-fidelity's program."""
    words = ["--input1", a, "--input2", b, "--isc", "--fid", "--kid", "--kid-subset-size", kid_size]
    words += ["--feature-extractor-weights-path", weights, "--cache-root", folder, "--save-cpu-ram"]
    words += ["--cpu", "--json", "--silent"]
    return dict(json.loads(_run(["-m", "torch_fidelity.fidelity", *map(str, words)], {})))


def _run(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
