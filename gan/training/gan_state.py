"""What training a GAN changes: two networks, the average of G, two optimisers; built from a seed, saved and restored."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gan.config import GanConfig
from gan.models.build import build_discriminator, build_generator
from gan.models.norms import SpectralNorm, power_iterate
from gan.runs.checkpoints import Checkpoint
from gan.training.context import TrainContext
from gan.utils.settings import to_yaml


@dataclass
class GanState:
    """All that training changes."""

    generator: nn.Module
    discriminator: nn.Module
    generator_ema: nn.Module | None  # exponential moving average of the generator's weights and buffers
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer

    @property
    def best_generator(self) -> nn.Module:
        """The network that is sampled and scored: the averaged generator where there is one."""
        return self.generator if self.generator_ema is None else self.generator_ema


def build_state(context: TrainContext[GanConfig]) -> GanState:
    """Build networks with their initial weights, and fresh optimisers: the same on every process."""
    config = context.config
    generator, discriminator = (context.to_device(build(config)) for build in (build_generator, build_discriminator))
    generator_ema = deepcopy(generator).requires_grad_(False) if config.training.ema_decay > 0 else None
    if generator_ema is not None:
        generator_ema.eval()
    if config.training.compile:
        for network in (generator, discriminator):
            network.compile()  # in place, so that parameters keep their names
    return GanState(
        generator,
        discriminator,
        generator_ema,
        _optimizer(config, generator, config.optimizer.g_lr),
        _optimizer(config, discriminator, config.optimizer.d_lr),
    )


def _optimizer(config: GanConfig, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    settings = config.optimizer
    if settings.name == "adam":
        fused = next(network.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.Adam(network.parameters(), rate, betas=(settings.beta1, settings.beta2), fused=fused)
    return torch.optim.RMSprop(network.parameters(), rate, alpha=settings.beta2)


def set_learning_rates(state: GanState, config: GanConfig, step: int) -> None:
    """Set both learning rates for ``step`` (from 0): constant, or falling linearly to 0 at training.steps."""
    factor = 1 - step / config.training.steps if config.optimizer.decay == "linear" else 1.0
    for optimizer, rate in ((state.g_optimizer, config.optimizer.g_lr), (state.d_optimizer, config.optimizer.d_lr)):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


def ema_weight(updates: int, decay: float) -> float:
    """Return the weight of the generator in its average after its ``updates``-th update.

    It is 1 - ``decay``, and larger at first: the decay is warmed up as (1 + n) / (10 + n), so that the initial weights do not
    stay in the average of a short run.
    """
    return 1 - min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_ema(generator_ema: nn.Module, generator: nn.Module, weight: float | Tensor) -> None:
    """Move ``generator_ema`` towards ``generator`` by the share ``weight``, buffers included.

    Singular vectors are not averaged: they follow the averaged weights by a power iteration of their own.
    """
    singular = {id(b) for m in generator_ema.modules() if isinstance(m, SpectralNorm) for b in (m.u, m.v)}
    targets: list[Tensor] = list(generator_ema.parameters())
    sources: list[Tensor] = list(generator.parameters())
    for target, source in zip(generator_ema.buffers(), generator.buffers(), strict=True):
        if not target.is_floating_point():
            target.copy_(source)
        elif id(target) not in singular:
            targets.append(target)
            sources.append(source)
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, weight)
    power_iterate(generator_ema)


def snapshot(state: GanState, step: int, config: GanConfig, data: str) -> Checkpoint:
    """Return all that the rest of the run depends on. ``data`` is the fingerprint of the training images."""
    weights = {"generator": state.generator.state_dict(), "discriminator": state.discriminator.state_dict()}
    if state.generator_ema is not None:
        weights["ema"] = state.generator_ema.state_dict()
    optimizers = {"generator": _saved(state.g_optimizer), "discriminator": _saved(state.d_optimizer)}
    return Checkpoint(step, weights, optimizers, to_yaml(config), data)


def _saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of ``optimizer`` in the same form whether its updates are part of a CUDA graph or not."""
    saved = optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Keep all that an update of ``optimizer`` changes or reads on the device, as a CUDA graph of it needs."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["capturable"] = device.type != "cpu"  # which torch's RMSprop refuses on a CPU
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)  # what fused Adam takes on CUDA
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            state["step"] = state["step"].to(device)


def restore(state: GanState, checkpoint: Checkpoint) -> None:
    """Load what ``snapshot`` returned."""
    state.generator.load_state_dict(checkpoint.weights["generator"])
    state.discriminator.load_state_dict(checkpoint.weights["discriminator"])
    if state.generator_ema is not None:
        state.generator_ema.load_state_dict(checkpoint.weights["ema"])
    state.g_optimizer.load_state_dict(checkpoint.optimizers["generator"])
    state.d_optimizer.load_state_dict(checkpoint.optimizers["discriminator"])
