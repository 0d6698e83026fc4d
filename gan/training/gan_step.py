"""One training step of a GAN, in the order in which it happens: D's updates with their penalty, G's update, G's average."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan.config import QUARTER
from gan.data.stream import BatchStream
from gan.models.losses import clip_weights, discriminator_loss, generator_loss, gradient_penalty
from gan.models.norms import groups_of_equal_weight, power_iterate, shared_spectral_weights
from gan.training.context import GanContext, Metrics
from gan.training.gan_state import GanState, ema_weight, set_learning_rates, update_ema


@dataclass(frozen=True)
class StepInputs:
    """All that a step takes from outside the networks, on the device."""

    d_noise: Tensor  # (d_steps * B, latent_dim): of all fakes for D
    real: Tensor  # (d_steps, B, C, H, W)
    epsilon: Tensor  # (d_steps, B): of the gradient penalty; zeros for losses without one
    g_noise: Tensor  # (B, latent_dim)
    ema_weight: float | Tensor  # of the new generator in its average; a scalar


def train_step(state: GanState, stream: BatchStream, step: int, context: GanContext) -> Metrics:
    """Take step ``step`` (from 0): ``training.d_steps`` D updates, one G update. Return losses as scalars on the device."""
    set_learning_rates(state, context.config, step)
    return update_networks(state, draw_inputs(stream, step, context), context)


def draw_inputs(stream: BatchStream, step: int, context: GanContext) -> StepInputs:
    """Return this process's images and random numbers of ``step``, functions of the seed and the step."""
    training = context.config.training
    updates = range(step * training.d_steps, (step + 1) * training.d_steps)
    real = torch.stack([stream.batch(update).to(context.dtype) for update in updates])
    if context.config.loss.name == "wgan-gp":
        epsilon = torch.stack([context.mixing_weights(update) for update in updates])
    else:
        epsilon = real.new_zeros(real.shape[:2])
    d_noise = torch.cat([context.noise("d_noise", update) for update in updates])
    return StepInputs(d_noise, real, epsilon, context.noise("g_noise", step), ema_weight(step + 1, training.ema_decay))


def update_networks(state: GanState, inputs: StepInputs, context: GanContext) -> Metrics:
    """Update D ``training.d_steps`` times, then G, then G's average. Nothing but ``inputs`` differs between two steps."""
    power_iterate(state.generator)
    with torch.no_grad(), context.autocast():
        # All fakes of the step in one pass of G.
        fakes = state.generator(inputs.d_noise)
    fakes = fakes.to(context.dtype).split(context.shard.local_size)
    for real, fake, epsilon in zip(inputs.real, fakes, inputs.epsilon, strict=True):
        metrics = update_discriminator(state, real, fake, context, epsilon)
    metrics |= update_generator(state, real, inputs.g_noise, context)
    if state.generator_ema is not None:
        update_ema(state.generator_ema, state.generator, inputs.ema_weight)
    return metrics


def update_discriminator(
    state: GanState, real: Tensor, fake: Tensor, context: GanContext, epsilon: Tensor | None = None
) -> Metrics:
    """Take one D update on this process's ``real`` and ``fake``, (B, C, H, W) each. wgan-gp needs its ``epsilon`` (B,)."""
    config, discriminator, parts = context.config, state.discriminator, context.config.training.accumulation
    # One batch is faster, and the same function unless the norm mixes images.
    joint = config.training.d_batches != "separate" or not config.mixes_images
    epsilon = real.new_zeros(len(real)) if epsilon is None else epsilon
    metrics: Metrics = {}
    power_iterate(discriminator)
    state.d_optimizer.zero_grad()
    for r, f, e in zip(real.chunk(parts), fake.chunk(parts), epsilon.chunk(parts), strict=True):
        with context.autocast():
            real_logits, fake_logits = discriminator_logits(discriminator, r, f, joint=joint)
        real_logits, fake_logits = real_logits.to(context.dtype), fake_logits.to(context.dtype)
        loss = discriminator_loss(config.loss.name, real_logits, fake_logits)
        _accumulate(metrics, "d_loss", loss, parts)
        if config.loss.name == "wgan-gp":
            # In full precision, outside autocast, and in one backward pass with the loss: with a backward pass of its own
            # the last bias would get no gradient from it, and processes could differ.
            penalty = gradient_penalty(discriminator, r, f, e)
            _accumulate(metrics, "gradient_penalty", penalty, parts)
            loss = loss + config.loss.penalty * penalty
        (loss / parts).backward()
        _accumulate(metrics, "d_real", real_logits.mean(), parts)
        _accumulate(metrics, "d_fake", fake_logits.mean(), parts)
    metrics["d_grad_norm"] = context.average_gradients(discriminator)
    state.d_optimizer.step()
    if config.loss.clip is not None:
        clip_weights(discriminator, config.loss.clip)
    return metrics


def update_generator(state: GanState, real: Tensor, noise: Tensor, context: GanContext) -> Metrics:
    """Take one G update on ``noise`` (B, latent_dim).

    ``real`` completes D's batch where D was trained on joint batches and mixes their images.
    """
    config, parts = context.config, context.config.training.accumulation
    form = config.training.d_batches if config.mixes_images else "separate"
    metrics: Metrics = {}
    state.discriminator.requires_grad_(False)
    state.g_optimizer.zero_grad()
    for z, r in zip(noise.chunk(parts), real.chunk(parts), strict=True):
        with context.autocast():
            logits = _fake_logits(state.discriminator, r, state.generator(z), form)
        loss = generator_loss(config.loss.name, logits.to(context.dtype))
        (loss / parts).backward()
        _accumulate(metrics, "g_loss", loss, parts)
    state.discriminator.requires_grad_(True)
    metrics["g_grad_norm"] = context.average_gradients(state.generator)
    state.g_optimizer.step()
    return metrics


def discriminator_logits(discriminator: nn.Module, real: Tensor, fake: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
    """Return D's logits (B,) of ``real`` and of ``fake``, passed through D as one batch (``joint``) or as two."""
    if joint:
        real_logits, fake_logits = discriminator(torch.cat([real, fake])).split([len(real), len(fake)])
        return real_logits, fake_logits
    with shared_spectral_weights(discriminator):
        return discriminator(real), discriminator(fake)


def _fake_logits(discriminator: nn.Module, real: Tensor, fake: Tensor, form: str) -> Tensor:
    """Return D's logits (B,) of ``fake`` for G's update, in the batch and with the means that ``form`` of d_batches says."""
    if form == "joint":
        return discriminator_logits(discriminator, real, fake, joint=True)[1]
    if form == "joint_quarter":
        some = real[::QUARTER]  # the same images for any number of processes
        with groups_of_equal_weight(discriminator, (len(some), len(fake))):
            return discriminator_logits(discriminator, some, fake, joint=True)[1]
    logits: Tensor = discriminator(fake)
    return logits


def _accumulate(metrics: Metrics, key: str, value: Tensor, parts: int) -> None:
    metrics[key] = metrics.get(key, 0) + value.detach() / parts
