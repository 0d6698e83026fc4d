"""Measure the paper's claim of speed: a discriminator's training step under BN, SN and MSN."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.alternating import Candidate, Case, compete
from benchmarks.measurements import Row, Suite, speed_up
from benchmarks.plain import NaiveMeanSpectralNorm
from benchmarks.steps import discriminator_like, precisions
from gan.models.losses import discriminator_loss
from gan.models.mean_subtraction import centres_first
from gan.models.memory_layout import subtract_image, summed_image
from gan.models.norms import MeanSpectralNorm, SpectralNorm, power_iterate
from gan.training.gan_step import discriminator_logits

NAMES = {"batch": "BN", "spectral": "SN", "mean_spectral": "MSN", "naive": "MSN, word for word"}
PASSES = "SN, and MSN's passes over images alone"


def build(norm: str) -> nn.Module:
    """Return the paper's discriminator. ``naive`` is MSN as Eq. 7 is written, with a pass over each output."""
    torch.manual_seed(0)
    if norm != "naive":
        return discriminator_like(norm)
    network: Any = discriminator_like("spectral")
    layers = []
    for layer in network.layers:
        layers.append(layer)
        if isinstance(layer, SpectralNorm) and isinstance(layer.layer, nn.Conv2d):
            layers.append(NaiveMeanSpectralNorm(layer.layer.out_channels))
    network.layers = nn.Sequential(*layers)
    return nn.Module.to(network, memory_format=torch.channels_last)


def training_step(norm: str, precision: str, batch: int = 64) -> Case:
    """Take a D update on separate batches of real and fake images: power iteration, forward, backward, Adam."""
    network = build(norm)
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=True)
    real, fake = (torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2))

    def case() -> float:
        power_iterate(network)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = discriminator_logits(network, real, fake, joint=False)
        loss = discriminator_loss("sngan", *(s.float() for s in scores))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return case


def with_passes(precision: str, batch: int = 64) -> Case:
    """Take SN's update, then make the passes over images that MSN adds to it, and nothing else of MSN.

    MSN as it is implemented here cannot be faster.
    """
    step = training_step("spectral", precision, batch)
    passes = 2 * _passes(torch.bfloat16 if precision == "bf16" else torch.float32, batch)  # of real and fake images

    def case() -> float:
        loss: float = step()
        for one in passes:
            one()
        return loss

    return case


def _passes(dtype: torch.dtype, batch: int) -> list[Callable[[], Any]]:
    """Return MSN's passes over the images of one batch, forward and backward: see MeanSubtractedConvolution."""
    shapes: list[tuple[torch.Size, torch.Size]] = []  # of each layer's input and output
    network = build("mean_spectral")
    for module in network.modules():
        if isinstance(module, MeanSpectralNorm):
            module.register_forward_hook(lambda _, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    network(torch.randn(batch, 3, 32, 32))
    passes: list[Callable[[], Any]] = []
    for layer, (before, after) in enumerate(shapes):
        x, gradient = (torch.randn(shape).to(dtype, memory_format=torch.channels_last) for shape in (before, after))
        image, channel = torch.randn(x[0, 0].numel(), x.shape[1]).to(dtype), torch.randn(after[1], 1, 1).to(dtype)
        passes.append(partial(summed_image, x, torch.float32))
        if centres_first(gradient, x):
            passes.append(partial(torch.sub, gradient, channel))
        elif layer:  # the gradient of real and fake images themselves is not needed
            passes.append(partial(subtract_image, x, image))
    return passes


def agreement() -> float:
    """Return the largest relative difference between the gradients of MSN and of its definition, both in float64.

    In float32 the last bit sometimes decides on which side of LeakyReLU's kink a value falls.
    """
    torch.manual_seed(1)
    x, upstream = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    gradients = []
    for norm in ("mean_spectral", "naive"):
        network = build(norm).double()
        (network(x) * upstream).sum().backward()
        gradients.append([m.layer.weight.grad for m in network.modules() if isinstance(m, SpectralNorm)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


def lines(suite: Suite) -> list[Row]:
    """Return the speed-ups of SN and MSN over BN, and of MSN over SN and over MSN word for word."""
    equal = suite.check("gradients in float64 equal", agreement(), 1e-9)
    pairs = [
        ("SN", "BN", "", "the paper: 1.27"), ("MSN", "BN", "≥ 1", "the paper: 1.16"), ("MSN", "SN", "≥ 0.97", ""),
        ("MSN", NAMES["naive"], "", equal), (PASSES, "SN", "", "the most that MSN can reach"),
    ]  # fmt: skip
    found = []
    for name, precision in precisions().items():
        candidates = {
            text: Candidate("benchmarks.norms:training_step", {"norm": norm, "precision": precision})
            for norm, text in NAMES.items()
        }
        candidates[PASSES] = Candidate("benchmarks.norms:with_passes", {"precision": precision})
        timings = compete(candidates, rounds=suite.rounds(4, 40))
        found += [speed_up(f"D's training step, {name}", timings, a, b, check, goal) for a, b, goal, check in pairs]
    return found
