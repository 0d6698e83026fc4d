"""The baseline of the benchmarks: the training loop that a user would write with torch and torchvision alone.

It follows torch's DCGAN tutorial, with spectral norm from torch.nn.utils.parametrizations: default layouts, default Adam, a
DataLoader with torchvision's transforms; in float32, or as a second try in bf16 autocast.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

LATENT = 128


class NaiveMeanSpectralNorm(nn.Module):
    """Eq. 7 of the MSN paper as it is written, as a module after a convolution."""

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(channels))
        self.momentum = momentum
        self.running_mean: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            mean = h.mean((0, 2, 3))
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        else:
            mean = self.running_mean
        return h - mean.view(1, -1, 1, 1) + self.m.view(1, -1, 1, 1)


def generator() -> nn.Sequential:
    def up(before: int, after: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]

    stem = [nn.Linear(LATENT, 512 * 16, bias=False), nn.BatchNorm1d(512 * 16), nn.ReLU(True), nn.Unflatten(1, (512, 4, 4))]
    return nn.Sequential(*stem, *up(512, 256), *up(256, 128), *up(128, 64), nn.Conv2d(64, 3, 3, 1, 1), nn.Tanh())


def discriminator(norm: str) -> nn.Sequential:
    """``norm``: none, spectral or mean_spectral."""
    wrapped: Any = nn.Sequential if norm == "none" else spectral_norm
    layers: list[nn.Module] = []
    before = 3
    for kernel, stride, after in ((3, 1, 64), (4, 2, 64), (3, 1, 128), (4, 2, 128), (3, 1, 256), (4, 2, 256), (3, 1, 512)):
        layers.append(wrapped(nn.Conv2d(before, after, kernel, stride, 1)))
        if norm == "mean_spectral":
            layers.append(NaiveMeanSpectralNorm(after))
        layers.append(nn.LeakyReLU(0.1, True))
        before = after
    return nn.Sequential(*layers, nn.Flatten(), wrapped(nn.Linear(512 * 16, 1)))


def initialise(network: nn.Module) -> nn.Module:
    """Draw weights from N(0, 0.02) as in DCGAN. A parametrised weight is stored as ``original``."""
    for name, parameter in network.named_parameters():
        if name.endswith(("weight.original", "weight")) and parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.02)
    return network


def batches(folder: Path, batch: int) -> Iterator[Tensor]:
    """Yield batches of the images in class folders without end, from a DataLoader with two workers."""
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loader = DataLoader(datasets.ImageFolder(str(folder), prepare), batch, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def d_loss(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-network(real)).mean() + F.softplus(network(fake)).mean()


def g_loss(network: nn.Module, fake: Tensor) -> Tensor:
    return F.softplus(-network(fake)).mean()


def wgan_gp_d_loss(network: nn.Module, real: Tensor, fake: Tensor, epsilon: Tensor, penalty: float = 10.0) -> Tensor:
    """Return the critic's loss of WGAN-GP. ``epsilon`` (B,) mixes ``real`` and ``fake``."""
    mix = epsilon.view(-1, 1, 1, 1)
    mixed = (mix * real + (1 - mix) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(network(mixed).sum(), mixed, create_graph=True)
    return network(fake).mean() - network(real).mean() + penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def wgan_g_loss(network: nn.Module, fake: Tensor) -> Tensor:
    return -network(fake).mean()


class Loop:
    """Both networks, their optimisers and a training step: SNGAN's loss, or without a norm WGAN-GP's, with five D updates."""

    def __init__(
        self, norm: str, folder: Path, batch: int, *, bf16: bool = False, device: str = "cpu", compiled: bool = False
    ) -> None:
        self.generator, self.discriminator = (initialise(network).to(device) for network in (generator(), discriminator(norm)))
        for network in (self.generator, self.discriminator) if compiled else ():
            network.compile()
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), 2e-4, (0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), 2e-4, (0.5, 0.999))
        self.batches, self.batch = batches(folder, batch), batch
        self.wgan_gp, self.bf16, self.device = norm == "none", bf16, torch.device(device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def noise(self) -> Tensor:
        return torch.randn(self.batch, LATENT, device=self.device)

    def step(self) -> tuple[float, float]:
        for _ in range(5 if self.wgan_gp else 1):
            real = next(self.batches).to(self.device)
            self.d_optimizer.zero_grad()
            with self.autocast():
                fake = self.generator(self.noise()).detach()
                if self.wgan_gp:
                    d = wgan_gp_d_loss(self.discriminator, real, fake, torch.rand(self.batch, device=self.device))
                else:
                    d = d_loss(self.discriminator, real, fake)
            d.backward()
            self.d_optimizer.step()
        self.g_optimizer.zero_grad()
        with self.autocast():
            fake = self.generator(self.noise())
            g = wgan_g_loss(self.discriminator, fake) if self.wgan_gp else g_loss(self.discriminator, fake)
        g.backward()
        self.g_optimizer.step()
        return d.item(), g.item()
