"""The picture of README.md: samples of one run over training.

    python docs/over_training.py RUN docs/cifar10_over_training.jpg STEP [STEP ...]

On the left the first eight points of noise of the run's grids at each STEP, on the right the whole grid of the last one.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 8  # of a grid of 64 samples
BORDER = 2  # white pixels around each sample of a grid


def main(run: Path, out: Path, steps: list[int]) -> None:
    """Draw the grids of ``run`` at ``steps`` into the picture ``out``."""
    grids = {step: np.asarray(Image.open(run / "samples" / f"step-{step:08}.png").convert("RGB")) for step in steps}
    figure = plt.figure(figsize=(11.2, 4.6), dpi=100)
    left, right = figure.subfigures(1, 2, width_ratios=[6.8, 4.4])
    for axis, step in zip(left.subplots(len(steps), 1, squeeze=False)[:, 0], steps, strict=True):
        side = samples_side(grids[step])
        show(axis, grids[step][: side + 2 * BORDER])
        axis.set_ylabel(f"{step:,}", rotation=0, ha="right", va="center", fontsize=13)
    left.subplots_adjust(left=0.11, right=0.98, top=0.9, bottom=0.02, hspace=0.02)
    left.suptitle("step     eight points of noise, over training", x=0.035, y=0.97, ha="left", fontsize=13)
    show(right.subplots(), grids[steps[-1]])
    right.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.02)
    right.suptitle(f"64 samples at step {steps[-1]:,}", x=0.04, y=0.97, ha="left", fontsize=13)
    figure.savefig(out, pil_kwargs={"quality": 90})


def samples_side(grid: NDArray[np.uint8]) -> int:
    """Return the side of a sample in pixels, of a grid (H, W, 3) with COLUMNS of them."""
    return (grid.shape[1] - BORDER) // COLUMNS - BORDER


def show(axis: plt.Axes, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, interpolation="bicubic")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(step) for step in sys.argv[3:]])
