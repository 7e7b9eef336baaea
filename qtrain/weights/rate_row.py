"""The effective step sizes of one weight at one step."""

from __future__ import annotations

from typing import NamedTuple


class RateRow(NamedTuple):
    """The channels' eta / ||w||^2 of one weight at one step: their quartiles and median."""

    step: int
    weight: str
    low: float
    median: float
    high: float
