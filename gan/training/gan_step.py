"""The updates of the two players: what one step of training computes, on one process's share of a batch."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan.config import GanConfig
from gan.data.stream import BatchStream
from gan.models.build import build_discriminator, build_generator
from gan.models.losses import clip_weights, discriminator_loss, generator_loss, gradient_penalty
from gan.models.norms import SpectralNorm, power_iterate, shared_spectral_weights
from gan.runs.checkpoints import Checkpoint
from gan.training.context import Metrics, TrainContext, to_device
from gan.utils import keyed_random
from gan.utils.settings import to_yaml


@dataclass
class GanState:
    """All that training changes."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module | None  # exponential moving average of the generator's weights and buffers
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer


class GanContext(TrainContext[GanConfig]):
    """With the random numbers of a GAN's updates."""

    def noise(self, purpose: str, update: int) -> Tensor:
        """This process's z for a global ``update`` of one player: (local batch, latent_dim)."""
        config = self.config
        z = self.share.draw(lambda start, n: keyed_random.normal(config.seed, purpose, start, n, config.model.latent_dim), update)
        return z.to(self.device, self.dtype, non_blocking=True)

    def mixing_weights(self, update: int) -> Tensor:
        """This process's epsilon of the gradient penalty, uniform on (0, 1]: (local batch,)."""
        epsilon = self.share.draw(lambda start, n: keyed_random.uniform(self.config.seed, "penalty", start, n), update)
        return epsilon[:, 0].to(self.device, self.dtype, non_blocking=True)


def build_state(job: TrainContext[GanConfig]) -> GanState:
    """Networks with their initial weights and fresh optimisers: the same on every process."""
    config = job.config
    generator, discriminator = (to_device(build(config), job) for build in (build_generator, build_discriminator))
    average = deepcopy(generator).requires_grad_(False) if config.training.ema_decay > 0 else None
    if average is not None:
        average.eval()
    if config.training.compile:
        for network in (generator, discriminator):
            network.compile()  # in place: names of parameters stay
    return GanState(
        generator,
        discriminator,
        average,
        _optimizer(config, generator, config.optimizer.g_lr),
        _optimizer(config, discriminator, config.optimizer.d_lr),
    )


def _optimizer(config: GanConfig, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    settings = config.optimizer
    if settings.name == "adam":
        fused = next(network.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.Adam(network.parameters(), rate, betas=(settings.beta1, settings.beta2), fused=fused)
    return torch.optim.RMSprop(network.parameters(), rate, alpha=settings.beta2)


def score(discriminator: nn.Module, real: Tensor, fake: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
    """D's outputs for real and fake images, through D as one batch or as two."""
    if joint:
        real_scores, fake_scores = discriminator(torch.cat([real, fake])).split([len(real), len(fake)])
        return real_scores, fake_scores
    with shared_spectral_weights(discriminator):
        return discriminator(real), discriminator(fake)


def update_discriminator(players: GanState, real: Tensor, fake: Tensor, update: int, job: GanContext) -> Metrics:
    """One D update on this process's share of a batch, (B, C, H, W) each. ``update`` counts D updates of the whole run."""
    config, network = job.config, players.discriminator
    # One batch is faster, and the same function unless the norm mixes images.
    joint = config.training.d_batches == "joint" or not config.mixes_images
    parts = config.training.accumulation
    epsilon = job.mixing_weights(update) if config.loss.name == "wgan-gp" else real.new_zeros(len(real))
    power_iterate(network)
    players.d_optimizer.zero_grad()
    metrics: Metrics = {}
    for r, f, e in zip(real.chunk(parts), fake.chunk(parts), epsilon.chunk(parts), strict=True):
        with job.autocast():
            real_scores, fake_scores = score(network, r, f, joint=joint)
        real_scores, fake_scores = real_scores.to(job.dtype), fake_scores.to(job.dtype)
        loss = discriminator_loss(config.loss.name, real_scores, fake_scores)
        _add(metrics, "d_loss", loss, parts)
        if config.loss.name == "wgan-gp":
            # In full precision, outside autocast, and in one backward pass with the loss: apart, the last bias would
            # have no gradient from it and processes could differ.
            penalty = gradient_penalty(network, r, f, e)
            _add(metrics, "gradient_penalty", penalty, parts)
            loss = loss + config.loss.penalty * penalty
        (loss / parts).backward()
        _add(metrics, "d_real", real_scores.mean(), parts)
        _add(metrics, "d_fake", fake_scores.mean(), parts)
    metrics["d_grad_norm"] = job.average_gradients(network)
    players.d_optimizer.step()
    if config.loss.clip is not None:
        clip_weights(network, config.loss.clip)
    return metrics


def update_generator(players: GanState, real: Tensor, step: int, job: GanContext) -> Metrics:
    """One G update. ``real`` completes D's batch where D was trained on joint batches and mixes their images."""
    config, parts = job.config, job.config.training.accumulation
    with_real = config.training.d_batches == "joint" and config.mixes_images
    players.discriminator.requires_grad_(False)
    players.g_optimizer.zero_grad()
    metrics: Metrics = {}
    for z, r in zip(job.noise("g_noise", step).chunk(parts), real.chunk(parts), strict=True):
        with job.autocast():
            fake = players.generator(z)
            scores = score(players.discriminator, r, fake, joint=True)[1] if with_real else players.discriminator(fake)
        loss = generator_loss(config.loss.name, scores.to(job.dtype))
        (loss / parts).backward()
        _add(metrics, "g_loss", loss, parts)
    players.discriminator.requires_grad_(True)
    metrics["g_grad_norm"] = job.average_gradients(players.generator)
    players.g_optimizer.step()
    return metrics


def _add(metrics: Metrics, key: str, value: Tensor, parts: int) -> None:
    metrics[key] = metrics.get(key, 0) + value.detach() / parts


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, updates: int, decay: float) -> None:
    """Moves ``average`` towards ``generator`` after its ``updates``-th update, buffers included.

    The decay is warmed up as (1 + n) / (10 + n), so that the first images are not those of the initial weights.
    Singular vectors are not averaged but follow the averaged weights by a power iteration of their own.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    own = {id(b) for m in average.modules() if isinstance(m, SpectralNorm) for b in (m.u, m.v)}
    targets: list[Tensor] = list(average.parameters())
    sources: list[Tensor] = list(generator.parameters())
    for target, source in zip(average.buffers(), generator.buffers(), strict=True):
        if not target.is_floating_point():
            target.copy_(source)
        elif id(target) not in own:
            targets.append(target)
            sources.append(source)
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, 1 - decay)
    power_iterate(average)


def train_step(players: GanState, stream: BatchStream, step: int, job: GanContext) -> Metrics:
    """Step number ``step`` from 0: ``d_steps`` D updates and one G update. Losses are scalars on the device."""
    config = job.config
    _set_learning_rates(players, config, step)
    power_iterate(players.generator)
    updates = range(step * config.training.d_steps, (step + 1) * config.training.d_steps)
    with torch.no_grad(), job.autocast():
        # All fakes of the step in one pass.
        fakes = players.generator(torch.cat([job.noise("d_noise", update) for update in updates]))
    for update, fake in zip(updates, fakes.to(job.dtype).split(job.share.local_size), strict=True):
        real = stream.batch(update).to(job.dtype)
        metrics = update_discriminator(players, real, fake, update, job)
    metrics |= update_generator(players, real, step, job)
    if players.average is not None:
        update_average(players.average, players.generator, step + 1, config.training.ema_decay)
    return metrics


def _set_learning_rates(players: GanState, config: GanConfig, step: int) -> None:
    factor = 1 - step / config.training.steps if config.optimizer.decay == "linear" else 1.0
    for optimizer, rate in ((players.g_optimizer, config.optimizer.g_lr), (players.d_optimizer, config.optimizer.d_lr)):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def snapshot(players: GanState, step: int, config: GanConfig, data: str) -> Checkpoint:
    """All that the rest of the run depends on."""
    weights = {"generator": players.generator.state_dict(), "discriminator": players.discriminator.state_dict()}
    if players.average is not None:
        weights["ema"] = players.average.state_dict()
    optimizers = {"generator": players.g_optimizer.state_dict(), "discriminator": players.d_optimizer.state_dict()}
    return Checkpoint(step, weights, optimizers, to_yaml(config), data)


def restore(players: GanState, checkpoint: Checkpoint) -> None:
    """The reverse of ``snapshot``."""
    players.generator.load_state_dict(checkpoint.weights["generator"])
    players.discriminator.load_state_dict(checkpoint.weights["discriminator"])
    if players.average is not None:
        players.average.load_state_dict(checkpoint.weights["ema"])
    players.g_optimizer.load_state_dict(checkpoint.optimizers["generator"])
    players.d_optimizer.load_state_dict(checkpoint.optimizers["discriminator"])
