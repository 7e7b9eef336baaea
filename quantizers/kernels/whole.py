"""A quantizer with its range as a device's kernels compute it: what is asked at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quantizers.qtensor import QTensor
from quantizers.ranges.history import History
from quantizers.ranges.rules import RangeRule, State
from quantizers.ranges.running import Ema
from quantizers.settings import Settings

#: of what a range remembers, low, high, share, steps, lows and highs
_STEPS = 3


class Planned(Protocol):
    """A quantizer for tensors of one dtype, shape and layout."""

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor | None:
        """running: low, high, share (fp32, one entry) and steps (int64) of a running range, which
        it may move (see ranges.Ema; of a History lows and highs too), or nothing.  None where the
        kernel cannot be had."""


def _memory(rule: RangeRule | None, state: State) -> tuple[Tensor, ...] | None:
    """What a rule of ours remembers, as kernels take it: see Planned; None where they cannot."""
    window = 1
    if type(rule) is History:
        window = rule.window
    elif type(rule) is not Ema:
        return ()
    kept = tuple([state[name] for name in rule.memory])
    for n, part in enumerate(kept):
        dtype = torch.int64 if n == _STEPS else torch.float32
        size = window if n > _STEPS else 1
        if part.dtype is not dtype or part.numel() != size or not part.is_contiguous():
            return None
    return kept


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
        if by.granularity.of == "flat" and x.dim() != 1:
            return None
        kept = () if state is None else _memory(by.range, state)
        if kept is None:
            return None
        read = [x, *kept]
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
