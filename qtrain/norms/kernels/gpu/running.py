"""A batch-norm's running statistics moved in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import power_of_two, serves

from .launch import CHANNELS, launched


def track(
    mean: Tensor,
    sigma: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    steps: Tensor | None,
    momentum: float | None,
    unbiased: float | None,
) -> bool | None:
    """See batch.track."""
    moved = running_mean, running_var
    if (
        momentum is None
        or not serves(mean, sigma, *moved, steps)
        or any(t.dtype is not torch.float32 for t in (mean, sigma, *moved))
        or not all(t.is_contiguous() for t in (mean, sigma, *moved))
        or (steps is not None and steps.dtype is not torch.int64)
    ):
        return None
    columns = min(power_of_two(mean.numel()), 128)
    launched(
        CHANNELS, "track", mean, -(-mean.numel() // columns), mean, sigma, *moved,
        mean if steps is None else steps, mean.numel(), momentum,
        1.0 if unbiased is None else unbiased,
        COUNTED=steps is not None, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return True
