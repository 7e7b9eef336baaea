"""Scales of granules."""

from __future__ import annotations

from struct import pack

import torch
from torch import Tensor

from quantizers.devices.memory import serves
from quantizers.formats import FloatFormat

from . import team
from .plan import constants
from .serving import made


def powers(
    amax: Tensor, headroom: float, emax: int, edge: int, format: FloatFormat
) -> Tensor | None:
    """See scales.rules._power; None where no kernel serves amax, fp32."""
    if amax.dtype is not torch.float32 or amax.numel() == 0 or not serves(amax):
        return None
    kernel = made("quantizers.kernels.compiled_scales", "powers")
    if kernel is None:
        return None
    amax = amax.contiguous()
    found = torch.empty_like(amax)
    over = constants(format)[3]
    words = amax.numel(), emax, edge, format.min_exponent, amax.data_ptr(), found.data_ptr()
    numbers = pack("3d", headroom, format.largest, over)
    team.run(kernel.address, team.packed(*words) + numbers, amax.numel())
    return found
