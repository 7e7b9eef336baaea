"""Update: what of an optimizer's step is in low precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantizers import (
    FloatFormat,
    Granularity,
    IntFormat,
    Quantizer,
    QuantizerLike,
    Rounding,
    TableFormat,
)
from quantizers import formats as _formats
from quantizers import nearest_even as _nearest_even
from quantizers.names import take_names
from quantizers.protocol import init_state, needs_key

from ... import checks
from .expansion import Expanded

#: what a slot of an update takes
Kept = FloatFormat | Quantizer | QuantizerLike | Expanded
#: the name of all states that have no name of their own
ALL = "*"


@dataclass(frozen=True, kw_only=True)
class Update:
    """Weights, gradients and states in few bits: `low_precision_(optimizer, Update(...))`.

    weight        None: master weights in fp32.  Else what the weights are after every step: a
                  FloatFormat or its name, rounded without a scale, or a quantizer
    rounding      of a weight given as a format, or its name: nearest_even, stochastic(8), ...
    compensation  FloatFormat, or its name, in which what a weight lost is kept for its next update
                  (Kahan 1965; Zamirai et al. 2020, arXiv 2010.06192); None: it is lost
    gradient      what gradients pass through before the step, in place: a FloatFormat, its name, or
                  a quantizer; None: nothing
    states        name of the optimizer's state ("exp_avg", "momentum_buffer", or "*" for all that
                  have an axis and no name of their own) -> in what it is kept between steps: a
                  FloatFormat, its name, a quantizer (8-bit maps, blocks), or Expanded
    min_size      states of fewer elements stay in fp32, as bitsandbytes' min_8bit_size has them

    With w the weight and p = fl32(what the optimizer makes of it), and round the weight's rounding,

        w' = round(p)                                       without compensation
        y = (p - w) + c;  w' = round(w + y);  c' = fl(y - (w' - w))          with it, in fp64

    The optimizer itself computes in fp32.  A quantizer's own rounding counts.  Where blocks
    name more axes than a tensor has, it is a row of them, (1, ..., n).

    TypeError or ValueError for a bare IntFormat or TableFormat, which need a scale, for a quantizer
    with a memory, for a rounding or a compensation without a weight's format, and for a min_size
    without states.
    """

    weight: Kept | None = None
    rounding: Rounding = _nearest_even
    compensation: FloatFormat | None = None
    gradient: Kept | None = None
    states: Mapping[str, Kept] = field(default_factory=dict, hash=False)
    min_size: int = 0

    if TYPE_CHECKING:  # the fields, of which most take a name

        def __init__(
            self,
            *,
            weight: Kept | str | None = ...,
            rounding: Rounding | str = ...,
            compensation: FloatFormat | str | None = ...,
            gradient: Kept | str | None = ...,
            states: Mapping[str, Kept | str] = ...,
            min_size: int = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        take_names(self, weight="format", rounding="rounding", compensation="format")
        take_names(self, gradient="format")
        checks.instance("rounding", self.rounding, Rounding, "a Rounding such as stochastic()")
        if self.compensation is not None:
            need = "a FloatFormat such as bf16, or None"
            checks.instance("compensation", self.compensation, FloatFormat, need)
        need = 'in what it is kept by a state\'s name, {"exp_avg": "bf16"}'
        checks.mapping("states", self.states, need)
        known = {name: _named(name, kept) for name, kept in self.states.items()}
        object.__setattr__(self, "states", known)
        for place, kept in (("weight", self.weight), ("gradient", self.gradient)):
            if isinstance(kept, Expanded):
                checks.refuse(place, kept, "a format or a quantizer; Expanded is of states")
        for place, kept in self._given():
            _check(place, kept)
        if self.weight is None and self.rounding != _nearest_even:
            raise ValueError(
                f"rounding: got {self.rounding} without a weight's format; give weight='bf16' or "
                f"another, or leave it out: master weights in fp32 are not rounded"
            )
        if not isinstance(self.weight, FloatFormat | None) and self.rounding != _nearest_even:
            raise ValueError(
                f"rounding: got {self.rounding} beside a quantizer as weight, which has its own; "
                f"give it there: Quantizer(..., rounding={str(self.rounding)!r})"
            )
        if self.weight is None and self.compensation is not None:
            raise ValueError(
                f"compensation: got {self.compensation} without a weight's format: nothing is lost "
                f"of master weights in fp32; give weight='bf16', or leave it out"
            )
        checks.integer("min_size", self.min_size, low=0)
        if self.min_size and not self.states:
            raise ValueError(
                f"min_size: got {self.min_size} without states, which alone it is of; give "
                f'states={{"exp_avg": "bf16"}} or others, or leave it out'
            )
        if not self._given():
            raise ValueError(
                "Update: got nothing that is in low precision; give weight=, gradient= or states="
            )

    def _given(self) -> list[tuple[str, Kept]]:
        """Each slot that is filled, by its place."""
        own = [("weight", self.weight), ("gradient", self.gradient)]
        own += [(f"states[{name!r}]", kept) for name, kept in self.states.items()]
        return [(place, kept) for place, kept in own if kept is not None]

    def granularities(self) -> list[tuple[str, Granularity]]:
        """How each quantizer of ours cuts a tensor, by its place."""
        return [
            (place, kept.granularity)
            for place, kept in self._given()
            if isinstance(kept, Quantizer | Expanded)
        ]

    def rounded(self, x: Tensor, key: Tensor | None) -> Tensor:
        """Values of the weight's format.  x: fp32 or fp64, any shape -> fp32."""
        assert self.weight is not None
        return kept_values(self.weight, x, key, self.rounding)

    def keeps(self, tensor: str) -> tuple[str, bool]:
        """In what "weight" or a state is kept, in words, and whether that rounds stochastically."""
        own = self.weight if tensor == "weight" else self.of_state(tensor)
        if isinstance(own, FloatFormat):
            rounding = self.rounding if tensor == "weight" else _nearest_even
            own = Quantizer(format=own, range=None, rounding=rounding)
        assert own is not None
        noisy = needs_key(own.quantizer if isinstance(own, Expanded) else own)
        return _said(own), noisy

    def of_state(self, name: str) -> Kept | None:
        """In what a state is kept; None: as it is."""
        return self.states.get(name, self.states.get(ALL))

    @property
    def identity(self) -> str:
        """A text that is another for every update, and the same in every process."""
        slots = {**dict(self._given()), "rounding": self.rounding, "lost": self.compensation}
        said = [f"{place}: {_identity(kept)}" for place, kept in slots.items()]
        return "; ".join([*said, f"min_size: {self.min_size}"] if self.min_size else said)

    def __str__(self) -> str:
        parts = []
        if self.weight is not None:
            stated = "" if self.rounding == _nearest_even else f", {self.rounding}"
            parts.append(f"weight {_said(self.weight)}{stated}")
        if self.compensation is not None:
            parts.append(f"compensation {_said(self.compensation)}")
        if self.gradient is not None:
            parts.append(f"gradient {_said(self.gradient)}")
        parts += [f"{name} {_said(kept)}" for name, kept in self.states.items()]
        if self.min_size:
            parts.append(f"states of fewer than {self.min_size:,} elements in fp32")
        return "; ".join(parts)


def kept_values(
    kept: Kept, x: Tensor, key: Tensor | None, rounding: Rounding = _nearest_even
) -> Tensor:
    """What is left of x when it is kept so: fp32, x's shape.  key: 0-d int64."""
    if isinstance(kept, Expanded):
        return kept(x, key)
    if isinstance(kept, FloatFormat):
        kept = Quantizer(format=kept, range=None, rounding=rounding)
    whole = cut_shape(kept.granularity, x.shape) if isinstance(kept, Quantizer) else x.shape
    return kept(x.reshape(whole), key=key).dequantize().to(torch.float32).view(x.shape)


def cut_shape(granularity: Granularity, shape: torch.Size) -> torch.Size:
    """A tensor's shape with axes of 1 before it where blocks count more of them from its end."""
    named = max((-axis for axis, _ in granularity.sizes), default=0)
    return torch.Size([*[1] * (named - len(shape)), *shape])


def _check(place: str, kept: Any) -> None:
    if isinstance(kept, Expanded | FloatFormat):
        return
    if isinstance(kept, IntFormat | TableFormat):
        raise ValueError(
            f"{place}: got {kept}, whose elements need a scale; give a quantizer, "
            f"Quantizer(format={str(kept)!r}, granularity=groups(256))"
        )
    checks.quantizer(place, kept)
    checks.without_parameters(place, kept)
    if init_state(kept, (1, 1)):
        raise ValueError(
            f"{place}: got {_said(kept)}, whose range has a memory; give one without: range=absmax"
        )


def _named(state: str, kept: Any) -> Any:
    if not isinstance(kept, str):
        return kept
    try:
        return _formats.get(kept)
    except ValueError as error:
        raise ValueError(f"states[{state!r}]: {error}") from error


def _ours(kept: Any) -> bool:
    return kept is None or isinstance(kept, FloatFormat | Quantizer | Expanded | Rounding)


def _said(kept: Any) -> str:
    return str(kept) if _ours(kept) else type(kept).__qualname__


def _identity(kept: Any) -> str:
    """Of an object of the user's own, whose repr may be its address, its class."""
    return repr(kept) if _ours(kept) else type(kept).__qualname__
