"""Samples and interpolations of a generator, as functions of a seed."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gan.inference.images import to_uint8
from gan.utils import keyed_random

CHUNK = 64  # images in one forward pass, see `generate`


def latents(seed: int, start: int, count: int, latent_dim: int) -> Tensor:
    """Return z ~ N(0, I) of the samples ``start`` to ``start + count`` of ``seed``: (count, latent_dim) float32."""
    return torch.from_numpy(keyed_random.normal(seed, "sample", start, count, latent_dim))


@torch.no_grad()
def render(generator: nn.Module, z: Tensor) -> Tensor:
    """Return the images of ``z`` (N, latent_dim), in evaluation mode and float32: (N, C, H, W) uint8 on the CPU.

    Leaves the generator's mode as it was. Images are computed in full chunks of fixed size, since a convolution's last
    bits depend on its batch size; noise that does not fill one is padded.
    """
    training = generator.training
    weight = next(generator.parameters())
    generator.eval()
    try:
        images = []
        for chunk in z.split(CHUNK):
            padded = torch.cat([chunk, chunk.new_zeros(CHUNK - len(chunk), *chunk.shape[1:])]).to(weight)
            images.append(to_uint8(generator(padded)[: len(chunk)]).cpu())
        return torch.cat(images)
    finally:
        generator.train(training)


def generate(generator: nn.Module, *, seed: int, start: int = 0, count: int, latent_dim: int) -> Iterator[Tensor]:
    """Yield the samples ``start`` to ``start + count`` of ``seed`` in pieces of at most CHUNK: (n, C, H, W) uint8.

    A sample is a function of the generator, the seed and its index, to the last bit: chunks begin at multiples of CHUNK
    whatever range is asked for.
    """
    first = start - start % CHUNK
    for begin in range(first, start + count, CHUNK):
        images = render(generator, latents(seed, begin, CHUNK, latent_dim))
        yield images[max(0, start - begin) : min(CHUNK, start + count - begin)]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate on a sphere (Shoemake 1985; for Gaussian noise, White 2016) from ``a`` (t=0) to ``b`` (t=1), (N, D) each."""
    a_unit, b_unit = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    angle = torch.acos((a_unit * b_unit).sum(1, keepdim=True).clamp(-1, 1))
    straight = torch.lerp(a, b, t)
    curved = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle).abs() < 1e-6, straight, curved)


def interpolations(generator: nn.Module, *, seed: int, rows: int, columns: int, latent_dim: int) -> Tensor:
    """Return ``rows`` interpolations between two samples each, in ``columns`` images: (rows * columns, C, H, W) uint8."""
    ends = latents(seed, 0, 2 * rows, latent_dim)
    steps = [slerp(ends[0::2], ends[1::2], column / max(1, columns - 1)) for column in range(columns)]
    return render(generator, torch.stack(steps, 1).flatten(0, 1))
