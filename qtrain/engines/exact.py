"""Exact sums of integer products, by units that hold them exactly.

An engine multiplies integer elements and returns the exact integer sums.  Which engine serves a
product follows from the formats' bounds and the shapes, never from the data.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from qtrain.operations import Convolution, Kind, Linear, Operation


@dataclass(frozen=True)
class Work:
    """The size of an exact product.

    count, per_index   indices along the axis that may be cut, products summed per index
    a, b               the largest magnitudes of the two operands' elements
    """

    count: int
    per_index: int
    a: int
    b: int

    @property
    def bound(self) -> int:
        """The largest magnitude the sum, or any partial sum, can reach."""
        return self.count * self.per_index * self.a * self.b


class Engine(Protocol):
    """`supports` decides from bounds alone; `product` then returns exact integers as fp32, int32
    or fp64, whichever holds `work.bound`."""

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...

    def supports(self, work: Work) -> bool: ...

    def product(
        self, operation: Operation, kind: Kind, a: Tensor, b: Tensor, like: Tensor, work: Work
    ) -> Tensor: ...


def holds(bound: int) -> torch.dtype:
    """The cheapest dtype in which integers up to `bound` add exactly."""
    if bound <= 2**24:
        return torch.float32
    return torch.int32 if bound < 2**31 else torch.float64


def _plain_units(device: torch.device) -> AbstractContextManager[Any]:
    """cuDNN off on CUDA: it may convolve by Winograd or FFT, whose sums of integers are not exact;
    torch's own convolutions are matrix products of unfolded operands."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


class Float32:
    """fp32 units on sums cut so that each part stays within 2^24, the parts added as integers.

    Operands are limited to 2^8: bf16 and TF32 hold those exactly, so that no reduced-precision
    mode of the machine's fp32 units can touch the result.
    """

    name = "float32"
    #: more parts than this cost more than float64
    max_parts = 16

    def _part(self, work: Work) -> int:
        """Indices per part."""
        return min(2**24 // max(work.per_index * work.a * work.b, 1), max(work.count, 1))

    def supports(self, work: Work) -> bool:
        part = self._part(work)
        if max(work.a, work.b) > 2**8 or part < 1 or work.bound >= 2**53:
            return False
        return -(-work.count // part) <= self.max_parts

    def product(
        self, operation: Operation, kind: Kind, a: Tensor, b: Tensor, like: Tensor, work: Work
    ) -> Tensor:
        parts = -(-work.count // self._part(work))
        a, b = a.float(), b.float()
        size = -(-work.count // max(parts, 1))
        dtype = holds(work.bound)
        total: Tensor | None = None
        with _plain_units(a.device):
            if parts <= 1:
                return operation.product(kind, a, b, like)
            for start in range(0, work.count, size):
                length = min(size, work.count - start)
                part = operation.product(
                    kind,
                    operation.narrow(kind, "a", a, start, length),
                    operation.narrow(kind, "b", b, start, length),
                    like,  # its shape is the result's, which a cut of the sum leaves alone
                ).to(dtype)
                total = part if total is None else total.add_(part)
        assert total is not None
        return total


class Reference:
    """fp64 units: exact while the sum stays below 2^53, for every format."""

    name = "float64"

    def supports(self, work: Work) -> bool:
        return work.bound < 2**53

    def product(
        self, operation: Operation, kind: Kind, a: Tensor, b: Tensor, like: Tensor, work: Work
    ) -> Tensor:
        with _plain_units(a.device):
            return operation.product(kind, a.double(), b.double(), like)


reference = Reference()
#: in order of preference
ENGINES: tuple[Engine, ...] = (Float32(), reference)


@cache
def admitted(engine: Engine, device_type: str) -> bool:
    """Whether the engine's worst-case products on this kind of device are exact.

    All-extreme operands at the longest sums it claims, and a pseudo-random 3x3 convolution, whose
    sums a fast (Winograd, FFT) algorithm would get wrong; compared with int64 sums.
    """
    device = torch.device(device_type)
    cases: list[tuple[Operation, tuple[int, ...], tuple[int, ...]]] = [
        (Linear(), (4, 4608), (1, 4, 4608)),
        (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 64, 5, 5), (1, 4, 64, 3, 3)),
    ]
    for operation, input_shape, weight_shape in cases:
        for a, b in ((255, 127), (128, -128)):
            x = torch.full(input_shape, a, dtype=torch.int64)
            w = torch.full(weight_shape, b, dtype=torch.int64)
            ramp = torch.arange(x.numel()).view(input_shape)
            for data in (x, (ramp * 7919) % (2 * a + 1) - a):
                if not _agrees(engine, operation, data, w, device):
                    return False
    return True


def _agrees(
    engine: Engine, operation: Operation, x: Tensor, w: Tensor, device: torch.device
) -> bool:
    count, per_index = operation.terms("forward", x, w)
    work = Work(count, per_index, int(x.abs().max()), int(w.abs().max()))
    if isinstance(operation, Convolution):
        columns = torch.nn.functional.unfold(x.double(), w.shape[3:], padding=1).long()
        expected = (w.flatten(2)[0] @ columns).view(x.shape[0], -1, *x.shape[2:])
    else:
        expected = x @ w[0].t()
    if not engine.supports(work):
        return True
    got = engine.product(operation, "forward", x.to(device), w.to(device), x.to(device), work)
    return torch.equal(got.cpu().long(), expected)


def choose(work: Work, device_type: str, engines: tuple[Engine, ...] | None = None) -> Engine:
    """The first engine that supports the product and is exact on this device.

    engines: to choose from, in order of preference; None: all.

    Raises ValueError when the sum can pass 2^53, which none holds.
    """
    for engine in engines or ENGINES:
        if engine.supports(work) and _constant(engine, device_type):
            return engine
    raise ValueError(
        f"an integer sum of {work.count * work.per_index} products of elements up to {work.a} and "
        f"{work.b} can reach {work.bound:.3g}; engines "
        f"({', '.join(e.name for e in engines or ENGINES)}) are exact below 2^53; use fewer bits"
    )


def _constant(engine: Engine, device_type: str) -> bool:
    return admitted(engine, device_type)


# What torch.compiler.assume_constant_result does, without importing the compiler for it (1.4 s).
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
