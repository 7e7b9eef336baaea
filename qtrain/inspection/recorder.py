"""The probe that measures a layer: the numeric error of each operand and product, by role."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quantizers import QTensor
from quantizers.accumulators import Accumulator, endless

from ..autograd.recomputation import in_backward
from ..products.operations import Kind
from ..products.probe import Computed, Probe
from ..recipe import OPERANDS
from ..recipe.units import Unit
from .detail import Detail
from .figures import Sums
from .pair import TensorPair, in_steps
from .row import OPERAND_ROLES, RESULTS, ROLES, SUMS
from .sampling import sampled
from .weight_watch import WeightWatch, parameter


def _compiles() -> bool:
    """Whether torch.compile waits for what this thread calls: parts of a model it could not trace
    run so."""
    return torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False)


@dataclass
class Recorder(Probe):
    """The probe of one layer, or of all that share its name.

    limit     how many elements of each tensor are looked at (`sampled`) and described in detail;
              None: all, without detail
    channel_axis   of inputs and outputs
    """

    limit: int | None = None
    channel_axis: int = -1
    sums: dict[str, Sums] = field(default_factory=dict)
    details: dict[str, Detail] = field(default_factory=dict)

    def watches(self, training: bool) -> bool:
        """Whether a call in this mode is measured: for a record of training, only there.

        ValueError where that would change the last bits of a training.
        """
        if self.limit is None:
            return True
        if torch.compiler.is_compiling() or _compiles():
            raise ValueError(
                "Monitor: the model runs compiled, and a measured step would run uncompiled, with "
                "other last bits; close() the monitor, or do not compile the model"
            )
        return training

    def operand(
        self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool, backward: bool
    ) -> None:
        if not backward and in_backward():
            return  # a recomputed forward: counted already
        role = OPERAND_ROLES[kind, operand]
        sums = self._add(role, x, q)
        if self.limit is not None:
            detail = self.details[role]
            axis = 1 if operand == "weight" else self.channel_axis
            detail.add_whole(x, q, axis)
            first = role == "weight" and detail.weight is None
            if first and in_steps(q) and parameter(x):
                detail.weight = WeightWatch(x, q, self.limit)
        if folded:
            _, other = OPERANDS[kind]
            sums.note = f"grad_output times the {other}'s scale, as it is quantized"

    def result(self, product: Computed) -> None:
        operation, kind, a, b, _, bias, result, *_ = product
        if kind == "forward" and in_backward():
            return
        role = RESULTS[kind]
        if b is None:
            _, other = OPERANDS[kind]
            note = f"not all compared: the {other} was changed in place before the backward pass"
            self.sums.setdefault(role, Sums()).note = note
            self.details.setdefault(role, Detail())
            return
        wide = self._shadow_dtype(a, b)
        if kind == "forward":
            exact = operation.native(
                a.to(wide), b.to(wide), None if bias is None else bias.to(wide)
            )
        else:
            like = torch.empty_like(result, dtype=wide)
            exact = operation.product(kind, a.to(wide), b.to(wide), like)
        self._add(role, exact, result)

    def summed(self, kind: Kind, unit: Unit, found: Tensor, by: Callable[..., Tensor]) -> None:
        again = kind == "forward" and in_backward()
        if again or not isinstance(unit, Accumulator):
            return
        sums = self._add(SUMS[kind], by(torch.float64), found)
        wide = torch.where(found.isfinite(), found, 0)
        if endless(unit) != unit:
            wide = by(endless(unit))
        if self.limit is not None:
            found, wide = sampled(found, self.limit), sampled(wide, self.limit)
        sums.clipped += int(((found != wide) & ~(found.isnan() & wide.isnan())).sum())
        if sums.clipped:
            sums.note = f"{sums.clipped:,} sums overflowed"

    def rows(self) -> Iterator[tuple[str, Sums, Detail | None]]:
        """(role, its sums, its detail where there is one), in the order of `ROLES`."""
        for role in ROLES:
            if role in self.sums:
                yield role, self.sums[role], self.details.get(role)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a layer's copy, in memory or in a file, is not watched

    def _add(self, role: str, x: Tensor, q: Tensor | QTensor) -> Sums:
        sums = self.sums.setdefault(role, Sums())
        if self.limit is not None:
            x, q = sampled(x, self.limit), sampled(q, self.limit)  # type: ignore[type-var]
        pair, quantized = TensorPair(x, q), isinstance(q, QTensor)
        sums.add(pair, quantized=quantized)
        if self.limit is not None:
            self.details.setdefault(role, Detail()).add(pair, quantized=quantized)
        return sums

    def _shadow_dtype(self, a: Tensor, b: Tensor) -> torch.dtype:
        """In which a product is computed for comparison.

        fp64; fp32 is enough beside the errors of 16 bits and fewer, and a fourth of the time, but
        elsewhere than on the CPU fp32 products may run in TF32.
        """
        if self.limit is None or a.device.type != "cpu":
            return torch.float64
        return torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))
