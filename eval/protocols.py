"""Named scoring protocols: how many images, in how many runs, against which part of the reference."""

from dataclasses import asdict, dataclass
from typing import Any

SEED = 2020  # torch-fidelity's, so that the same features in the same order give its numbers
NEIGHBOURHOOD = 10_000  # limit on images of each kind for precision and recall, whose cost grows with the square


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A scoring protocol: ``runs`` disjoint runs of ``samples`` generated images.

    A score is the mean over runs, with the standard deviation (ddof=0, as in the literature) over samplings of one
    generator, not over trainings.
    """

    name: str
    purpose: str
    runs: int
    samples: int  # generated images in a run
    splits: int = 1  # parts of a run for the inception score
    reference: int | None = None  # real images to compare with, drawn by `seed`; None: all of the reference
    at_most: int | None = None  # the same, or all where there are fewer; the others are not even extracted
    kid_subsets: int = 100  # drawn from the images of all runs: KID is unbiased, whatever the number of images
    kid_size: int = 1000  # images in a subset
    neighbours: int = 3  # k of precision and recall
    neighbourhood: int = NEIGHBOURHOOD  # limit on images for precision and recall
    infinity_start: int = 5000  # smallest sample of FID-infinity, which needs at least twice as many images
    infinity_points: int = 10  # number of sample sizes of FID-infinity
    seed: int = SEED  # of every random choice and order above

    @property
    def total(self) -> int:
        """Generated images in all runs."""
        return self.runs * self.samples

    def chosen(self, total: int) -> int:
        """Return the number of real images to compare with, out of ``total``."""
        return min(self.at_most, total) if self.at_most is not None else self.reference or total

    def identity(self) -> dict[str, Any]:
        """Return all settings, by which scores compare. ``at_most`` is left out where it is None: older scores lack it."""
        return {key: value for key, value in asdict(self).items() if key != "at_most" or value is not None}


_ALL = (
    Protocol(name="paper", purpose="Table II of the MSN paper: 5 runs of 2,000 images", runs=5, samples=2000),
    Protocol(
        name="sngan", runs=10, samples=5000, reference=10_000,
        purpose="Miyato et al. 2018: IS over 10 runs of 5,000 images, FID of 5,000 against 10,000 real ones",
    ),
    Protocol(
        name="standard", runs=1, samples=50_000, splits=10,
        purpose="the literature's FID: 50,000 images against all of the training set, IS over 10 splits",
    ),
    Protocol(
        name="quick", runs=1, samples=1000, kid_size=500, kid_subsets=20,
        purpose="for watching a training: 1,000 images once",
    ),
    Protocol(
        name="watch", runs=1, samples=1000, kid_size=500, kid_subsets=20, at_most=10_000,
        purpose="as quick, against at most 10,000 real images, so that a training starts within minutes",
    ),
)  # fmt: skip
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
