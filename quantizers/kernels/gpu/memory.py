"""A quantizer's range, and what it remembers of tensors before, as kernels are told of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from quantizers.ranges.history import History
from quantizers.ranges.rules import RangeRule
from quantizers.ranges.running import Ema

from .device import power_of_two

#: the longest history that a program moves at once
_MOST = 4096


class Memory(NamedTuple):
    """rule             of one tensor's range
    momentum, window   of a running one; None, 0 where there is none
    flags              see triton_scale._range
    """

    rule: RangeRule | None
    momentum: float | None
    window: int
    flags: dict[str, Any]


def memory_of(rule: RangeRule | None, running: bool, training: bool) -> Memory:
    """Of a quantizer's rule; running: its memory is there; training: it moves.  Its `rule` is still
    one with a memory where no kernel has that."""
    momentum, window, past, use = None, 0, "", running
    one = rule
    if running and type(rule) is History and rule.window <= _MOST:
        one, momentum, window, past = rule.rule, 0.0, rule.window, str(rule.use)
    elif running and type(rule) is Ema:
        one, momentum = rule.rule, rule.momentum
        past = "ema" if rule.use == "previous" else ""
        use = not training or rule.train_on != "batch"
    flags = {
        "RUNNING": running, "UPDATE": running and training, "USE": use, "PAST": past,
        "WINDOW": power_of_two(window) if window else 0,
    }  # fmt: skip
    return Memory(one, momentum, window, flags)
