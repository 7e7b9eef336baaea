"""A quantizer of a recipe with one fault of some size, and where in a recipe it is planted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qtrain import Recipe
from qtrain.inspection.row import SLOT_OF
from quantizers import IntFormat, QTensor, Quantizer, random_bits
from quantizers.protocol import init_state, needs_key

#: kind -> the smallest size; the largest is 1,000 times it.  Those that rules were written for,
FORESEEN = {
    "clipped range": 0.03,  # the scale is divided by 1 + size
    "coarse scale": 0.1,  # the scale is multiplied by 1 + size
    "scale 0": 1e-3,  # of no size
    "biased rounding": 1e-3,  # size steps are added before rounding
    "shared noise": 1e-3,  # a share of the elements has its random numbers from the first axis' 0
    "stale range": 0.03,  # the scale is the first call's, times or by 1 + size
}
#: and those that none was written for
UNFORESEEN = {
    "bad channel": 0.03,  # one channel is times or by 1 + size
    "transposed scale": 1e-3,  # a share of the channels has each other's scales, in turned order
    "wrong axis": 1e-3,  # a share of the rows is divided by its own largest, times its channels'
    "zero point off by one": 1e-3,  # a share of the elements is a step too high
    "rounding to odd": 1e-3,  # a share of the elements that lie between codes goes to the odd one
    "dead tile": 1e-3,  # a share of the elements is 0
    "drifting range": 1e-3,  # the scale is times or by 1 + size, once more at every call
}
KINDS = {**FORESEEN, **UNFORESEEN}
DECADES = 3
#: these need a scale
OF_SCALE = ("clipped range", "coarse scale", "scale 0", "stale range", "drifting range")
#: and make it too small, too large, or either in turn
OF_RANGE = ("clipped range", "coarse scale", "stale range", "drifting range")


@dataclass(frozen=True)
class Fault:
    """layer, role: where; kind, size: what; up: its direction, where there are two; place: a number
    in 0 to 1, which channel where it is one."""

    layer: str
    role: str
    kind: str
    size: float
    up: bool
    place: float

    def saved(self) -> dict[str, Any]:
        return asdict(self)


class Faulty:
    """A recipe's quantizer with a fault.  The elements lie on its format's grid and within it; what
    the fault leaves alone is rounded as the quantizer rounds."""

    def __init__(self, base: Quantizer, fault: Fault) -> None:
        self.base, self.fault = base, fault
        self.format, self.granularity = base.format, base.granularity
        self.noisy = needs_key(base) or fault.kind == "shared noise"
        self._calls, self._first = 0, None

    def init_state(self, shape: Any) -> dict[str, Tensor]:
        return init_state(self.base, shape)

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Tensor | None = None, training: bool = True
    ) -> QTensor:
        q = self.base(x, state=state or None, key=key, training=training)
        if q.scale is not None:
            q = q._replace(scale=self._scale(q.scale, training))
        scale = torch.ones(()) if q.scale is None else q.spread(q.scale)
        y = self._value(x.detach().double())
        position = y / torch.where(scale == 0, torch.inf, scale.double())
        step = q.format.spacing(position)
        rounded = self._rounded(position / step, key) * step
        if q.zero_point is not None:
            rounded = rounded + q.spread(q.zero_point)
        rounded = rounded.clamp(q.format.low, q.format.high)
        if isinstance(q.format, IntFormat):
            rounded = rounded.nan_to_num(0.0)
        self._calls += training
        return q._replace(elements=rounded.to(q.elements.dtype))

    def _scale(self, scale: Tensor, training: bool) -> Tensor:
        size, kind = 1 + self.fault.size, self.fault.kind
        if kind == "stale range":
            if self._first is None:
                self._first = scale.clone()
            if self._first.shape == scale.shape:
                scale = self._first
            return scale * size if self.fault.up else scale / size
        power = {
            "clipped range": -1.0, "coarse scale": 1.0,
            "drifting range": self._calls if self.fault.up else -self._calls,
        }.get(kind, 0.0)  # fmt: skip
        return scale * 0 if kind == "scale 0" else scale * size**power

    def _value(self, x: Tensor) -> Tensor:
        """What the faulty quantizer takes x for."""
        kind, size = self.fault.kind, self.fault.size
        rows, channels = axes(x)
        if kind == "bad channel":
            one = min(int(self.fault.place * x.shape[channels]), x.shape[channels] - 1)
            factor = torch.ones(x.shape[channels], dtype=x.dtype)
            factor[one] = 1 + size if self.fault.up else 1 / (1 + size)
            return x * _along(factor, x, channels)
        if kind == "transposed scale":
            own = _peaks(x, channels)
            count = max(2, round(size * len(own)))
            factor = torch.ones_like(own)
            factor[:count] = (own[:count].flip(0) / own[:count]).nan_to_num(1.0, 1.0, 1.0)
            return x * _along(factor, x, channels)
        if kind == "wrong axis":
            own, right = _peaks(x, rows), _along(_peaks(x, channels), x, channels)
            factor = (right / _along(own, x, rows)).nan_to_num(1.0, 1.0, 1.0)
            chosen = torch.arange(len(own)) < max(1, round(size * len(own)))
            return torch.where(_along(chosen, x, rows), x * factor, x)
        return x

    def _rounded(self, position: Tensor, key: Tensor | None) -> Tensor:
        """Whole numbers from positions in steps."""
        kind, size = self.fault.kind, self.fault.size
        if kind == "biased rounding":
            position = position + (size if self.fault.up else -size)
        if kind == "zero point off by one":
            position = position + _part(position, size)
        if kind == "dead tile":
            position = torch.where(_part(position, size), 0.0, position)
        if self.noisy:
            assert key is not None
            noise = _uniform(key, position)
            if kind == "shared noise":
                rows, _ = axes(position)
                one = noise.narrow(rows, 0, 1).expand_as(noise)
                noise = torch.where(_part(position, size), one, noise)
            found = (position + noise).floor()
        else:
            found = position.round()
        if kind == "rounding to odd":
            odd = 2 * (position / 2).floor() + 1
            odd = torch.where(position == position.round(), position, odd)
            found = torch.where(_part(position, size), odd, found)
        return found


def axes(x: Tensor) -> tuple[int, int]:
    """(rows, channels): axis 1 of four axes and more are channels, else the last; rows are the
    first other axis of more than one entry (of weights the outputs), or the first."""
    channels = 1 if x.dim() >= 4 else x.dim() - 1
    others = [axis for axis in range(x.dim()) if axis != channels and x.shape[axis] > 1]
    return (others or [0])[0], channels


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    return values.view([-1 if i == axis else 1 for i in range(x.dim())])


def _peaks(x: Tensor, axis: int) -> Tensor:
    """The largest magnitude of each index of an axis."""
    return x.abs().movedim(axis, 0).flatten(1).amax(1)


def _part(x: Tensor, share: float) -> Tensor:
    """The leading share of the elements in C order, at least one, as a mask."""
    count = max(1, round(share * x.numel()))
    return (torch.arange(x.numel()) < count).view(x.shape)


def _uniform(key: Tensor, x: Tensor) -> Tensor:
    return random_bits(key, x.shape).double() / 2**32 % 1


def planted(recipe: Recipe, fault: Fault) -> Recipe:
    """The recipe with the fault in the quantizer of its role, and in what takes the tensor that
    this quantizer made, but in no other."""
    product, operand = SLOT_OF[fault.role]
    slot = recipe.slots[product, operand]
    assert isinstance(slot.quantizer, Quantizer) and not slot.reused
    kept = recipe
    for (own, name), other in recipe.slots.items():
        if product == "forward" and own != "forward" and name == operand and not other.reused:
            kept = replace(kept, **{own: replace(getattr(kept, own), **{name: other.quantizer})})
    broken = replace(getattr(kept, product), **{operand: Faulty(slot.quantizer, fault)})
    return replace(kept, **{product: broken})


def decades(kind: str, size: float) -> float:
    """A size in decades above the smallest of its kind."""
    return math.log10(size / KINDS[kind])
