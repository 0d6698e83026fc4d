"""What a trained discriminator can tell apart: the measurements behind docs/msn.md.

    python docs/msn/discriminator.py RUN [RUN ...] > discriminator.json

For each kept checkpoint: D's accuracy on real images and on fresh samples of the generator as trained, with batches as in
training; the same after each batch of samples was given the mean colour of the real one, or after a constant was added to all
of its images; and the distance between the mean colours of averaged samples and real images.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan.config import load_config
from gan.data.datasets import load_images
from gan.inference.generator import load_generator
from gan.models.build import build_discriminator
from gan.runs import checkpoints
from gan.training.gan_step import discriminator_logits

COUNT, BATCH, SHIFT = 1024, 64, 0.1  # images, images in a batch, shift of the colour in units of [-1, 1]


def measure(folder: Path) -> dict[str, Any]:
    """Return the measurements of one checkpoint's folder."""
    config = load_config(folder / "config.yaml")
    discriminator = build_discriminator(config)
    discriminator.load_state_dict(checkpoints.load_weights(folder, "discriminator"))
    discriminator = discriminator.to(memory_format=torch.channels_last).requires_grad_(False)
    images = load_images(config.data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:COUNT].tolist()
    real = scaled(torch.stack([images[index] for index in order]))
    raw, averaged = (scaled(load_generator(folder, weights).sample(COUNT, seed=1)) for weights in ("raw", "ema"))
    joint = config.training.d_batches != "separate" or not config.mixes_images
    shifts = {"as they are": lambda r, f: f, "real mean colour": give_mean_colour, "shifted": lambda r, f: f + SHIFT}
    accuracy = {}
    for name, shift in shifts.items():
        found = []
        for r, f in zip(real.split(BATCH), raw.split(BATCH), strict=True):
            real_logits, fake_logits = discriminator_logits(discriminator, r, shift(r, f), joint=joint)
            found.append([(real_logits > 0).float().mean(), (fake_logits < 0).float().mean()])
        accuracy[name] = [round(value, 3) for value in torch.tensor(found).mean(0).tolist()]
    drift = (averaged.mean((0, 2, 3)) - real.mean((0, 2, 3))).norm()
    return {"step": checkpoints.step_of(folder), "accuracy on real, on samples": accuracy, "colour drift": round(float(drift), 4)}


def scaled(pixels: Tensor) -> Tensor:
    return pixels / 127.5 - 1


def give_mean_colour(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``fake`` with the mean of ``real`` in each channel."""
    return fake + (real.mean((0, 2, 3)) - fake.mean((0, 2, 3))).view(1, -1, 1, 1)


if __name__ == "__main__":
    runs = [Path(name) for name in sys.argv[1:]]
    print(json.dumps({run.name: [measure(f) for f in checkpoints.steps(run / "checkpoints")] for run in runs}, indent=1))
