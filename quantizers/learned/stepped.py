"""Stepped: what quantizers with a learned step share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .. import checks, tensor_checks
from ..elements import as_real, elements_of
from ..formats import IntFormat
from ..granularity import Granularity, compact_shape, expand, per_tensor
from ..names import take_names
from ..qtensor import QTensor
from ..ranges.rules import State, absmax
from ..scales.errors import folded
from ..steps import range_of


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Integers in learned steps: value = step * clamp(round(x / step), low, high).

    format        an IntFormat or its name, "int4"; low and high are its own.  Zero is exact, an
                  affine one has no zero point: IntFormat(4, symmetric=False) is -8 .. 7
    granularity   which elements share a step: per_tensor, or single indices of some axes, as
                  per_channel() of weights

    Rounded to nearest, ties to even, by division in fp32 (fp64 for fp64 x).  A step of 0 gives
    zeros; a non-finite element makes its granule's step NaN.

    The learned tensors are fp32, () or, with a granularity, (granules), in C order, and come in
    `state`: `init_parameters` makes them, `fit` sets them by a first tensor, `backward` gives their
    gradients, whose terms are computed in x's dtype, at least fp32, and added up in fp64 in an
    order that the shape alone decides.
    """

    if TYPE_CHECKING:  # the format takes a name

        def __init__(self, *, format: IntFormat | str, granularity: Granularity = ...) -> None: ...

    format: IntFormat
    granularity: Granularity = per_tensor
    noisy: ClassVar[bool] = False
    #: the learned tensors
    learned: ClassVar[tuple[str, ...]] = ("step",)
    #: whether a learned tensor is a logarithm, which one rate moves in proportion
    logarithmic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        take_names(self, format="format")
        if not isinstance(self.format, IntFormat):
            checks.refuse("format", self.format, "an IntFormat or its name, such as 'int4'")
        checks.instance("granularity", self.granularity, Granularity, "a Granularity")
        own = self.granularity
        if own.of != "tensor" or own.rest != "whole" or any(size != 1 for _, size in own.sizes):
            raise ValueError(
                f"granularity: got {own}, whose granules differ from shape to shape, and a learned "
                f"step belongs to one; give per_tensor, or axes such as per_channel()"
            )

    def init_parameters(self, shape: Sequence[int | None]) -> State:
        """Ones, for tensors of `shape` (None: a size that changes, which no step may cut)."""
        tensor_checks.shape("shape", shape, unknown=True)
        block = self.granularity.block_shape(shape)
        count = math.prod(compact_shape([size or 1 for size in shape], block))
        size = () if not self.granularity.sizes else (count,)
        return {name: torch.ones(size) for name in self.learned}

    def step_of(self, state: State) -> Tensor:
        """The steps as they are used, one a granule, fp32."""
        raise NotImplementedError

    def trouble(self, x: Tensor, operand: str) -> str:
        """What is bound to go wrong with an operand of a layer whose first tensor is x, not empty;
        "" where nothing is known."""
        if lost := self._lost(x):
            return (
                f"{100 * lost:.2g} % of the first tensor is negative, which {self} makes 0; take a "
                f"signed format, or an LSQPlus"
            )
        if operand == "grad_output" and not self.logarithmic:
            largest = float(x.abs().max())
            return (
                f"{self} learns a {self.learned[0]} of the gradients' size, at most {largest:.2g} "
                f"in the first tensor, which a rate for weights carries through 0; take a "
                f"LearnedClip, or give it a group of parameters with a rate of that size"
            )
        return ""

    def _lost(self, x: Tensor) -> float:
        """The share of x, not empty, that is negative where the format has no sign."""
        return 0.0 if self.format.signed else int((x < 0).sum()) / x.numel()

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        """x: fp16, bf16, fp32 or fp64, any shape; state: the learned tensors; key: not needed."""
        x = tensor_checks.real(x).detach()
        block = self.granularity.block_shape(x.shape)
        step = self._spread(self.step_of(self._checked(state, x)).detach(), x).float()
        _, largest = range_of(x, absmax, block, None, training)
        marked = torch.where(torch.isfinite(largest), step, float("nan"))
        elements = elements_of(x, step, None, block, self.format)
        return QTensor(elements, marked, None, self.format, block)

    def _first(self, x: Tensor) -> Tensor:
        """x, of which there is something to fit to; else TypeError or ValueError."""
        if not tensor_checks.real(x).numel():
            raise ValueError(f"x: got shape {tuple(x.shape)}, with no element to fit {self} to")
        return x

    def _checked(self, state: State | None, x: Tensor) -> State:
        need = {} if state is None else state
        return tensor_checks.state(need, self.learned, x)

    def _spread(self, learned: Tensor, x: Tensor) -> Tensor:
        """A learned tensor in the shape of x's granules."""
        compact = compact_shape(x.shape, self.granularity.block_shape(x.shape))
        if learned.numel() != math.prod(compact):
            raise ValueError(
                f"state: got {tuple(learned.shape)}, need one entry for each of "
                f"{math.prod(compact)} granules, as init_parameters({tuple(x.shape)}) makes them"
            )
        return learned.reshape(compact)

    def _ratio(self, x: Tensor, state: State) -> Tensor:
        """x / step, 0 where that is 0; x real."""
        step = self._spread(self.step_of(state), x).to(x.dtype)
        step = torch.where(step == 0, float("inf"), step)
        return x / expand(step, x.shape, self.granularity.block_shape(x.shape))

    def _summed(self, terms: Tensor) -> Tensor:
        """The terms of each granule added up, fp64, in the learned tensors' shape."""
        return self._folded(terms, torch.add)

    def _largest(self, x: Tensor) -> Tensor:
        """The largest of each granule, fp64, in the learned tensors' shape."""
        return self._folded(x, torch.maximum)

    def _folded(self, x: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        found = folded(x.double(), self.granularity.block_shape(x.shape), combine)
        return found.reshape(()) if not self.granularity.sizes else found.flatten()

    def _real(self, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in the dtype they are computed in.  ValueError unless of one shape."""
        if tensor_checks.real(grad, "grad").shape != tensor_checks.real(x).shape:
            raise ValueError(f"grad: got {checks.shown(grad)}, need x's shape {tuple(x.shape)}")
        x = as_real(x)
        return grad.to(x.dtype), x

    def __str__(self) -> str:
        parts = [f"{type(self).__name__} {self.format}"]
        if self.granularity != per_tensor:
            parts.append(str(self.granularity))
        return ", ".join(parts)
