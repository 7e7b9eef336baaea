"""The Hadamard transform of a matrix's rows in one pass: how the kernel is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import OPTIONS, power_of_two, serves
from quantizers.kernels.gpu.launcher import launched
from quantizers.kernels.serving import SOURCES, imported

KERNELS = "qtrain.recipe.gpu.triton_rotations"
#: largest size, terms and elements of a program
_SIZE, _DEEP, _TILE = 256, 64, 4096


def rotated(x: Tensor, signs: Tensor | None, size: int) -> Tensor | None:
    """See transforms.Hadamard; None where no kernel serves x, or its gradient is wanted."""
    if x.requires_grad and torch.is_grad_enabled():
        return None
    if x.dtype not in SOURCES or size > _SIZE or x.numel() == 0 or not serves(x, signs):
        return None
    if imported(KERNELS) is None:
        return None
    *lead, terms = x.shape
    given = x.view(1, 1, -1) if x.dim() == 1 else x.flatten(0, -3) if x.dim() > 2 else x[None]
    batches, rows, _ = given.shape
    wide = -(-terms // size) * size
    found = torch.empty((*lead, wide), dtype=torch.float32, device=x.device)
    span = sum((n - 1) * s for n, s in zip(given.shape, given.stride(), strict=True))
    if max(found.numel(), span) >= 2**30:
        return None
    deep = min(max(size, _DEEP), max(power_of_two(wide), 16))
    high = min(_TILE // deep, power_of_two(rows))
    launched(
        KERNELS, "rotated", (batches * -(-rows // high) * -(-wide // deep), 1, 1), given,
        x if signs is None else signs, found, rows, terms, wide, *given.stride(),
        1 / math.sqrt(size), ADJACENT=given.stride(2) == 1, SIGNED=signs is not None, SIZE=size,
        TIMES=size.bit_length() - 1, ROWS=high, DEEP=deep, num_warps=max(1, high * deep // 1024),
        **OPTIONS,
    )  # fmt: skip
    return found
