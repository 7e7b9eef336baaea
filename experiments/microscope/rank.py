"""Spearman's rank correlation, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Rank correlation with its 95 % interval over parts, of Bonett and Wright (2000)."""
    a, b = (_ranks(values) - (len(values) - 1) / 2 for values in (x, y))
    if not a.norm() * b.norm():
        return 0.0, -1.0, 1.0  # all alike: no ranking
    rho = float(a @ b / (a.norm() * b.norm()))
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    centre = math.atanh(max(min(rho, 1 - 1e-12), -1 + 1e-12))
    return rho, math.tanh(centre - half), math.tanh(centre + half)


def _ranks(values: Sequence[float]) -> Tensor:
    """From 0; equal values share the mean of theirs."""
    x = torch.tensor(values, dtype=torch.float64)
    below = (x[None] < x[:, None]).sum(1)
    return below + ((x[None] == x[:, None]).sum(1) - 1) / 2
