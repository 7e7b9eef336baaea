"""Random numbers as a function of (seed, epoch, purpose, sample index); no stream, no state.

Counter-based on the finaliser of splitmix64 (Steele, Lea, Flood 2014), so the numbers depend on
neither numpy's version nor the order in which they are asked for: no generator of numpy or torch
promises that, and keys of `quantizers.noise` would put the data of runs so far in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Purposes: draws of different purpose are independent.
ORDER, SHIFT_Y, SHIFT_X, FLIP, CROP = range(5)  # CROP is the first of many; keep it last
OFFSET = 1 << 32  # beyond all of CROP's
SAMPLE = OFFSET + 1  # what a sample's own transforms draw
HELD_OUT = OFFSET + 2  # which samples are held out

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLIERS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return z ^ (z >> _SHIFTS[2])


def bits(indices: NDArray[Any], *, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """64 random bits for each index, same shape."""
    key = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch, purpose):
        key = _mix((key ^ np.uint64(word)) + _GOLDEN)
    return _mix(_mix((indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN) ^ key)


def uniform(indices: NDArray[Any], *, seed: int, epoch: int, purpose: int) -> NDArray[np.float64]:
    """A float64 in [0, 1), a multiple of 2^-53, for each index."""
    random = bits(indices, seed=seed, epoch=epoch, purpose=purpose) >> np.uint64(11)
    return random.astype(np.float64) * 2.0**-53


def below(
    n: int, indices: NDArray[Any], *, seed: int, epoch: int, purpose: int
) -> NDArray[np.int64]:
    """An integer in [0, n) for each index, n < 2^31; its bias is below n * 2^-32."""
    high = bits(indices, seed=seed, epoch=epoch, purpose=purpose) >> np.uint64(32)
    return ((high * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def permutation(n: int, *, seed: int, epoch: int, purpose: int = ORDER) -> NDArray[np.int64]:
    """The integers below n in an order that (seed, epoch, purpose) decides."""
    keys = bits(np.arange(n), seed=seed, epoch=epoch, purpose=purpose)
    return np.argsort(keys, kind="stable").astype(np.int64)
