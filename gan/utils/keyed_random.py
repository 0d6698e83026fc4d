"""Random numbers that are functions of (seed, purpose, index): no state to save, and any slice can be drawn on its own.

Every index owns a fixed range of counters of the Philox 4x64 generator (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), so that a resumed run, or one rank of many, draws its own part of the same sequence.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNTER = 4


def raw(seed: int, purpose: str, start: int, count: int, width: int) -> NDArray[np.uint64]:
    """Return ``width`` random 64-bit words for each of the indices ``start`` to ``start + count``: (count, width)."""
    counters = -(-width // _WORDS_PER_COUNTER)
    key = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    bits = np.random.Philox(counter=start * counters, key=key)
    words: NDArray[np.uint64] = bits.random_raw(count * counters * _WORDS_PER_COUNTER)
    return words.reshape(count, counters * _WORDS_PER_COUNTER)[:, :width]


def uniform(seed: int, purpose: str, start: int, count: int, width: int = 1) -> NDArray[np.float64]:
    """Return uniform numbers on (0, 1], in steps of 2^-53: (count, width)."""
    words = raw(seed, purpose, start, count, width)
    return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def normal(seed: int, purpose: str, start: int, count: int, width: int) -> NDArray[np.float32]:
    """Return standard normal numbers (Box & Muller 1958, which uses a fixed number of words for each value): (count, width)."""
    pairs = (width + 1) // 2
    numbers = uniform(seed, purpose, start, count, 2 * pairs)
    radius = np.sqrt(-2.0 * np.log(numbers[:, :pairs]))
    angle = 2.0 * np.pi * numbers[:, pairs:]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values[:, :width].astype(np.float32)


def permutation(seed: int, purpose: str, epoch: int, size: int) -> NDArray[Any]:
    """Return the order of ``size`` items in ``epoch``, by sorting keyed words; with 64 bits, ties do not matter.

    Unlike ``Generator.permutation``, this gives the same order in every version of NumPy.
    """
    words = raw(seed, purpose, epoch, 1, size)[0]
    return np.argsort(words, kind="stable")
