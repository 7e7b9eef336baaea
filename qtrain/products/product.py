"""One of the three products of an operation, as a value: its axes follow from their labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from .operations import Kind, Operand, Operation
from .plan import constant

#: of each product, as places in (input, weight, output)
_PLACES: dict[Kind, dict[str, int]] = {
    "forward": {"a": 0, "b": 1, "result": 2},
    "grad_input": {"a": 2, "b": 1, "result": 0},
    "grad_weight": {"a": 2, "b": 0, "result": 1},
}
#: labels of channels, which lie group after group: of the group and within it
_PARTS = {"c": "gi", "d": "go"}
_Axes = tuple[tuple[int, ...], tuple[int, ...]]


def _parts(labels: str) -> set[str]:
    return {part for label in labels for part in _PARTS.get(label, label)}


@constant
def _one_each(labels: str, dims: int) -> str:
    """A label for each of so many axes."""
    for label in "*xyk":
        labels = labels.replace(label, label * (dims - len(labels) + 1))
    return labels


@constant
def _axes(labels: str, dims: int, result: str) -> _Axes:
    labels = _one_each(labels, dims)
    kept = {axis for axis, label in enumerate(labels) if _parts(label) <= _parts(result)}
    return tuple(sorted(kept)), tuple(axis for axis in range(dims) if axis not in kept)


def multiply_adds(
    operation: Operation, input: Sequence[int], weight: Sequence[int], output: Sequence[int]
) -> int:
    """Of each of an operation's three products, of operands of these shapes (weight: canonical).

    output = input (x) weight is a sum of terms input * weight, and each backward product
    differentiates it: all three multiply as often, each weight once at each position it meets.
    """
    return math.prod(weight) * math.prod(Product(operation, "grad_weight").terms(output, input))


class Product(NamedTuple):
    """What is multiplied: see `Operation.labels`.

    An axis of an operand is kept where the result has its label, else summed.
    """

    operation: Operation
    kind: Kind

    def run(self, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        """`Operation.product`."""
        return self.operation.product(self.kind, a, b, like)

    def axes(self, operand: Operand, dims: int) -> _Axes:
        """(kept, summed): the axes of an operand that has `dims`, in order."""
        return _axes(self._labels(operand), dims, self._labels("result"))

    def split_axis(self, operand: Operand, dims: int) -> int:
        """The summed axis along which a product may be cut into partial sums: the first."""
        return self.axes(operand, dims)[1][0]

    def narrow(self, operand: Operand, x: Tensor, start: int, length: int) -> Tensor:
        """The slice of an operand at [start, start + length) of the split axis, in each group."""
        axis = self.split_axis(operand, x.dim())
        groups = self._groups(operand, axis, x.dim())
        if groups == 1:
            return x.narrow(axis, start, length)
        grouped: Tensor = x.unflatten(axis, (groups, -1)).narrow(axis + 1, start, length)
        return grouped.flatten(axis, axis + 1)

    def parts(self, a: Tensor, b: Tensor, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The operands cut after every `size` of `count` indices along the split axis."""
        if size >= count:  # else the compiler makes one graph for every count
            yield a, b
            return
        for start in range(0, count, size):
            length = min(size, count - start)
            yield self.narrow("a", a, start, length), self.narrow("b", b, start, length)

    def terms(self, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        """(indices along the split axis, products summed per index at most) of operands of these
        shapes."""
        first = self.split_axis("a", len(a))
        # an entry of a kernel meets each position of the smaller of two maps at most once
        fewer: Operand = "b"
        if self.kind == "grad_weight" and not self.operation.transposed:
            fewer = "a"
        sizes = a if fewer == "a" else b
        _, *others = self.axes(fewer, len(sizes))[1]
        count = a[first] // self._groups("a", first, len(a))
        return count, math.prod([sizes[axis] for axis in others])

    def multiplications(self, a: Sequence[int], b: Sequence[int]) -> int:
        """Multiplications at stride 1 in a product of operands of these shapes: in each matrix of
        a batch; in a convolution's grad_weight for each position of the kernel."""
        left, right = self._labels("a", len(a)), self._labels("b", len(b))
        batch = set(left) & set(right) & set(self._labels("result"))
        total = math.prod([n for label, n in zip(left, a, strict=True) if label not in batch])
        kept, _ = self.axes("b", len(b))
        for axis, (label, size) in enumerate(zip(right, b, strict=True)):
            if label == "k" or (axis in kept and not _parts(label) <= _parts(left)):
                total *= size // self._groups("b", axis, len(b))
        return total

    def lifted(self, operand: Operand, sizes: Sequence[int]) -> list[int]:
        """The shape, broadcastable to the product, of what is so long along an operand's axes: 1
        along those that are summed."""
        labels, (kept, _) = self._labels(operand, len(sizes)), self.axes(operand, len(sizes))
        found: dict[str, list[int]] = {}
        for axis in kept:
            groups = self._groups(operand, axis, len(sizes))
            *group, own = list(_PARTS.get(labels[axis], labels[axis]))
            found.setdefault(own, []).append(sizes[axis] // groups)
            found.update({part: [groups] for part in group})
        shape: list[int] = []
        for label in self._labels("result"):
            if label in "xyk":
                shape += [1] * sum(other in "xyk" for other in labels)
            elif label == "*":
                shape += found.get(label, [])
            else:
                shape.append(math.prod([n for p in _parts(label) for n in found.get(p, [1])]))
        return shape

    def ones(self, operand: Operand, shape: Sequence[int]) -> list[int]:
        """The shape of an operand that is the same along every axis that only it has among those
        kept: 1 there."""
        kept, _ = self.axes(operand, len(shape))
        others = _parts(self._labels("b" if operand == "a" else "a"))
        labels = self._labels(operand, len(shape))
        return [
            size if axis not in kept or _parts(label) <= others
            else self._groups(operand, axis, len(shape))
            for axis, (label, size) in enumerate(zip(labels, shape, strict=True))
        ]  # fmt: skip

    def _labels(self, of: str, dims: int = 0) -> str:
        """The labels of operand a or b, or of the result; with `dims`: one for each axis."""
        found = self.operation.labels[_PLACES[self.kind][of]]
        return _one_each(found, dims) if dims else found

    def _groups(self, operand: Operand, axis: int, dims: int) -> int:
        """How many groups of channels lie along an axis, one after the other."""
        return self.operation.groups if self._labels(operand, dims)[axis] in _PARTS else 1
