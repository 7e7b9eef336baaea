"""The probe that measures a layer: the numeric error of each operand and product, by role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quantizers import QTensor

from .error_sums import Sums
from .histograms import code_counts, value_counts
from .layer_products import Computed
from .operations import Kind
from .recomputation import in_backward
from .sampling import sampled

#: the role under which each operand slot is reported
OPERANDS = {
    ("forward", "input"): "input",
    ("forward", "weight"): "weight",
    ("grad_input", "grad_output"): "grad_output (grad_input)",
    ("grad_weight", "grad_output"): "grad_output (grad_weight)",
    ("grad_input", "weight"): "weight (grad_input)",
    ("grad_weight", "input"): "input (grad_weight)",
}
#: the role under which each product's result is reported
RESULTS: dict[Kind, str] = {
    "forward": "output",
    "grad_input": "grad_input",
    "grad_weight": "grad_weight",
}
#: The order in which a layer's roles are listed.
ROLES = (
    "input",
    "weight",
    "output",
    "grad_output (grad_input)",
    "weight (grad_input)",
    "grad_input",
    "grad_output (grad_weight)",
    "input (grad_weight)",
    "grad_weight",
)


@dataclass
class Detail:
    """What else is known of a role, over every call of a layer.

    values   counts in the bins of `value_counts`, of the tensor before it was quantized
    codes    counts in the bins of `code_counts`; None for a product
    scales   (smallest, median, largest) scale of the granules of each call; of two that a median
             lies between, the lower
    """

    values: Tensor | None = None
    codes: Tensor | None = None
    scales: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, x: Tensor, q: Tensor | QTensor) -> None:
        self.values = _sum(self.values, value_counts(x))
        if isinstance(q, QTensor):
            self.codes = _sum(self.codes, code_counts(q))

    def add_scale(self, scale: Tensor | None) -> None:
        if scale is not None:
            ordered = scale.detach().flatten().sort().values
            middle = (ordered.numel() - 1) // 2
            low, median, high = ordered[[0, middle, -1]].tolist()
            self.scales.append((low, median, high))

    @property
    def scale(self) -> tuple[float, float, float] | None:
        """The smallest scale of all calls, the mean of their medians, the largest."""
        if not self.scales:
            return None
        lows, medians, highs = zip(*self.scales, strict=True)
        return min(lows), sum(medians) / len(medians), max(highs)


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _compiles() -> bool:
    """Whether torch.compile waits for what this thread calls: parts of a model it could not trace
    run so."""
    return torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False)


@dataclass
class Recorder:
    """The probe of one layer, or of all that share its name.

    limit     how many elements of each tensor are looked at (`sampled`) and described in detail;
              None: all, without detail
    """

    limit: int | None = None
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

    def operand(self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool) -> None:
        if operand != "grad_output" and in_backward():
            return  # a recomputed forward: counted already
        role = OPERANDS[kind, operand]
        sums = self._add(role, x, q)
        if self.limit is not None:
            self.details[role].add_scale(q.scale)
        if folded:
            other = "weight" if kind == "grad_input" else "input"
            sums.note = f"grad_output times the {other}'s scale, as it is quantized"

    def result(self, product: Computed) -> None:
        operation, kind, a, b, _, bias, result, _ = product
        if kind == "forward" and in_backward():
            return
        role = RESULTS[kind]
        if b is None:
            other = "weight" if kind == "grad_input" else "input"
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

    def engine(self, kind: Kind, name: str) -> None:
        pass

    def rows(self) -> Iterator[tuple[str, Sums, Detail | None]]:
        """(role, its sums, its detail where there is one), in the order of ROLES."""
        for role in ROLES:
            if role in self.sums:
                yield role, self.sums[role], self.details.get(role)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a layer's copy, in memory or in a file, is not watched

    def _add(self, role: str, x: Tensor, q: Tensor | QTensor) -> Sums:
        sums = self.sums.setdefault(role, Sums())
        if self.limit is not None:
            x, q = sampled(x, q, limit=self.limit)  # type: ignore[assignment]
            self.details.setdefault(role, Detail()).add(x, q)
        sums.add(x, q)
        return sums

    def _shadow_dtype(self, a: Tensor, b: Tensor) -> torch.dtype:
        """In which a product is computed for comparison.

        fp64; fp32 is enough beside the errors of 16 bits and fewer, and a fourth of the time, but
        elsewhere than on the CPU fp32 products may run in TF32.
        """
        if self.limit is None or a.device.type != "cpu":
            return torch.float64
        return torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))
