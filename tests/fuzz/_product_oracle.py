"""What a product must be: its definition in float64, one block of the sum after another.

Torch's own operation runs on the elements; what lies outside a block is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

Kind = Literal["forward", "grad_input", "grad_weight"]
Family = Literal["linear", "matmul", "conv", "transposed"]


@dataclass
class Geometry:
    """An operation, as the oracle computes it: in float64, of the layer's own weight layout."""

    family: Family
    run: Callable[[Tensor, Tensor], Tensor]
    groups: int = 1

    def canonical(self, weight: Tensor) -> Tensor:
        if self.family == "linear":
            return weight[None]
        if self.family == "matmul":
            return weight
        grouped = weight.unflatten(0, (self.groups, -1))
        return grouped.transpose(1, 2) if self.family == "transposed" else grouped

    def raw(self, weight: Tensor) -> Tensor:
        if self.family == "linear":
            return weight[0]
        if self.family == "matmul":
            return weight
        return (weight.transpose(1, 2) if self.family == "transposed" else weight).flatten(0, 1)

    @property
    def space(self) -> bool:
        return self.family in ("conv", "transposed")

    def product(self, kind: Kind, a: Tensor, b: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """a, b: float64; x, w: of the shapes of input and canonical weight."""
        if kind == "forward":
            return self.run(a, self.raw(b))
        x = (torch.zeros_like(x, dtype=torch.float64) if kind == "grad_input" else b).clone()
        w = (torch.zeros_like(w, dtype=torch.float64) if kind == "grad_weight" else b).clone()
        inner, outer = x.requires_grad_(), self.raw(w).detach().requires_grad_()
        with torch.enable_grad():
            output = self.run(inner, outer)
            if kind == "grad_input":
                return torch.autograd.grad(output, inner, a)[0]
            return self.canonical(torch.autograd.grad(output, outer, a)[0])

    def cut(self, kind: Kind, dims_a: int) -> tuple[int, int]:
        """The axes of a and b along which the sum may be cut."""
        if self.family == "matmul":
            return {"forward": (2, 2), "grad_input": (2, 1), "grad_weight": (1, 1)}[kind]
        if kind == "grad_weight":
            return 0, 0
        return (1 if self.space else dims_a - 1), (2 if kind == "forward" else 1)

    def lifted(self, kind: Kind, operand: str, scale: Tensor, start: int, dims_a: int) -> Tensor:
        """A scale, one entry an element, at the block that begins at `start`, broadcastable to the
        product: canonical for grad_weight."""
        at_a, at_b = self.cut(kind, dims_a)
        at = scale.narrow(at_a if operand == "a" else at_b, start, 1)
        if self.family == "matmul":
            rows = operand == "a" and kind != "grad_weight"
            return at if rows or (operand == "b" and kind != "forward") else at.transpose(1, 2)
        if self.family == "linear":
            if kind == "grad_weight":
                line = at[(0,) * (at.dim() - 1)]
                return line[None, :, None] if operand == "a" else line[None, None]
            return at if operand == "a" else at.flatten()
        if operand == "a" and kind != "grad_weight":
            return at[(slice(None), *[slice(0, 1)] * (at.dim() - 1))]
        ones = [1] * (at.dim() - (2 if kind == "grad_weight" else 3))
        if kind == "grad_weight":
            line = at[(0, slice(None), *[0] * len(ones))].view(self.groups, -1)
            return line.view(self.groups, *((-1, 1) if operand == "a" else (1, -1)), *ones)
        return at[(..., *[0] * len(ones))].reshape(1, -1, *ones)


def scales(q: QTensor) -> Tensor | None:
    """One for each element."""
    return None if q.scale is None else spread(q, q.scale)


def spread(q: QTensor, compact: Tensor) -> Tensor:
    for axis, size in enumerate(q.elements.shape):
        index = (torch.arange(size) // q.block[axis]).clamp(max=compact.shape[axis] - 1)
        compact = compact.index_select(axis, index)
    return compact


def codes(q: QTensor) -> Tensor:
    values = q.elements.double()
    return values if q.zero_point is None else values - spread(q, q.zero_point).double()


@dataclass
class Result:
    """A product: fp32 as it must be, or, exact, within a bound of it."""

    value: Tensor
    bound: Tensor | None = None

    def differs(self, found: Tensor) -> str | None:
        value = self.value
        if found.shape != value.shape:
            return f"has shape {tuple(found.shape)}, need {tuple(value.shape)}"
        if self.bound is None:
            same = (found == value) | (found.isnan() & value.isnan())
            if bool(same.all()):
                return None
            return f"differs in {int((~same).sum())} of {same.numel()} elements"
        wrong = (found.double() - value).abs() > self.bound
        wrong |= found.isnan() != value.isnan()
        return f"is beyond its bound in {int(wrong.sum())} elements" if bool(wrong.any()) else None


def expected(
    geometry: Geometry, kind: Kind, a: QTensor, b: QTensor, x: Tensor, w: Tensor, bias: Any = None
) -> Result:
    """One product by its definition; x, w: of the shapes of input and canonical weight."""
    left, right = codes(a), codes(b)
    cut = geometry.cut(kind, left.dim())
    count = right.shape[cut[1]]
    steps = [
        q.block[axis] if q.scale is not None else count for q, axis in zip((a, b), cut, strict=True)
    ]
    channels = left.shape[cut[0]]  # of all groups
    steps[0] = count if steps[0] >= channels else steps[0]
    step = max(min(*steps, count), 1)
    integers = all(isinstance(q.format, IntFormat) for q in (a, b))
    total: Tensor | None = None
    bound = torch.zeros(())
    masks = [torch.ones((), dtype=torch.float64)]
    if step < count and geometry.space and kind != "grad_weight":  # position by position
        kernel = right.shape[3:]
        masks = [*torch.eye(kernel.numel(), dtype=torch.float64).view(-1, *kernel)]
    for mask, start in itertools.product(masks, range(0, max(count, 1), step)):
        inside = right
        if step < count:
            place = torch.arange(count).view([-1 if i == cut[1] else 1 for i in range(right.dim())])
            inside = right * ((place >= start) & (place < start + step)) * mask
        sums = geometry.product(kind, left, inside, x, w)
        parts = [
            geometry.lifted(kind, operand, scale, min(start, max(count - 1, 0)), left.dim())
            for operand, scale in (("a", scales(a)), ("b", scales(b)))
            if scale is not None
        ]
        factor: Any = 1.0
        if parts:
            factor = parts[0] * parts[1] if len(parts) == 2 else parts[0]
        if integers:
            part = sums.float() * factor
        else:
            part = sums * (factor.double() if isinstance(factor, Tensor) else factor)
            magnitude = geometry.product(kind, left.abs(), inside.abs(), x, w)
            bound = bound + magnitude * (abs(factor.double()) if parts else 1.0)
        total = part if total is None else total + part
    assert total is not None
    if bias is not None:
        total = total + bias
    if integers:
        return Result(total)
    terms = geometry.product(kind, torch.ones_like(left), torch.ones_like(right), x, w)
    extra = bound if bias is None else bound + bias.abs()
    return Result(total, (terms + 4 + count // step) * 2.0**-23 * extra + 1e-30)
