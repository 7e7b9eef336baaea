"""A quantizer with its range as a device's kernels compute it: what is asked at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quantizers.qtensor import QTensor
from quantizers.ranges.rules import State
from quantizers.ranges.running import Ema
from quantizers.settings import Settings

#: of a running range: low, high, share, steps
_MEMORY = (torch.float32,) * 3 + (torch.int64,)


class Planned(Protocol):
    """A quantizer for tensors of one dtype, shape and layout."""

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor | None:
        """running: low, high, share (fp32, one entry) and steps (int64) of a running range, which
        it may move (see running_range.Ema), or nothing.  None where the kernel cannot be had."""


def form(
    plan: Callable[..., Planned | None], serves: Callable[..., bool]
) -> Callable[..., QTensor | None]:
    """A form of steps.quantize.

    plan     of a dtype, shape, strides, a quantizer's spec, whether it has a running range and
             whether that moves, a factor's shape; None where no kernel serves
    serves   whether kernels may read tensors
    """

    def whole(
        x: Tensor,
        by: Settings,
        state: State | None,
        key: Tensor | None,
        training: bool,
        factor: Tensor | None = None,
    ) -> QTensor | None:
        kept: tuple[Tensor, ...] = ()
        read = [x]
        if type(by.range) is Ema and state is not None:
            kept = tuple([state[name] for name in Ema.memory])
            for part, dtype in zip(kept, _MEMORY, strict=True):
                if part.dtype is not dtype or part.numel() != 1:
                    return None
            read += kept
        if not by.rounding.random_bits:
            key = None
        elif key is None or key.dtype is not torch.int64 or key.dim():
            return None
        else:
            read.append(key)
        if factor is not None:
            if factor.dtype is not torch.float32:
                return None
            read.append(factor)
        if by._spec is None or not serves(*read):
            return None
        found = plan(
            x.dtype, x.shape, x.stride(), by._spec, bool(kept), training,
            None if factor is None else factor.shape,
        )  # fmt: skip
        return None if found is None else found(x, factor, key, kept)

    return whole
