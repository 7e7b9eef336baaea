"""The error that every loader raises."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


class DataError(ValueError):
    """Data that is missing or damaged: what, where it was looked for, how to get it."""


def reason(error: Exception) -> str:
    """Why a file could not be read, in words and without its name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_range(numbers: Tensor | NDArray[Any], count: int, source: str, what: str) -> None:
    """DataError unless all numbers, labels or tokens as `what` says, lie in [0, count)."""
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise DataError(f"{source}: {what} {wrong} is out of range, need 0..{count - 1}")
