"""Whether an engine's products are exact on a device: found by trying, never from its name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..convolution import Convolution
from ..operations import KINDS, BatchedMatmul, Kind, Linear, Operation
from .engine import Engine, Span, Work
from .epilogue import Epilogue

_Case = tuple[Operation, tuple[int, ...], tuple[int, ...]]
#: operation, shape of the input and of the canonical weight
_CASES: tuple[_Case, ...] = (
    (Linear(), (4, 4608), (1, 4, 4608)),
    (Linear(), (33, 70), (1, 9, 70)),
    (Linear(), (140000, 2), (1, 3, 2)),  # beyond int32
    (BatchedMatmul(), (2, 33, 4608), (2, 70, 4608)),
    (BatchedMatmul(), (2, 1030, 65), (2, 9, 65)),
    (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 64, 5, 5), (1, 24, 64, 3, 3)),
    (Convolution((2, 2), (1, 1), (1, 1), 1), (1, 17, 8, 7), (1, 16, 17, 3, 3)),
    (Convolution((2, 2), (0, 0), (1, 1), 1), (1, 64, 7, 8), (1, 32, 64, 1, 1)),
    (Convolution((1, 1), (2, 2), (2, 2), 2), (1, 32, 6, 6), (2, 16, 16, 3, 3)),
    (Convolution((1, 1), (1, 1), (1, 1), 32), (1, 32, 6, 6), (32, 1, 1, 3, 3)),
    (Convolution((2, 2), (1, 1), (1, 1), 2), (3, 4, 40, 40), (2, 3, 2, 3, 3)),
    (Convolution((1, 1), (1, 1), (1, 1), 1), (1, 120, 4, 4), (1, 130, 120, 3, 3)),
)
#: what a and b are drawn from
_SPANS = (
    (Span(0, 255), Span(-128, 127)),
    (Span(-128, 127), Span(-128, 127)),
    (Span(-32767, 32767), Span(-128, 127)),
    (Span(-128, 127), Span(0, 65535)),
    (Span(-2048, 2047), Span(-32768, 32767)),
)


@cache
def admitted(engine: Engine, device_type: str) -> bool:
    """Whether the engine's products on this kind of device are exact, extreme operands included.

    Every kind of product of matrices and of convolutions with stride, dilation, groups and zero
    point, those that the engine supports; compared with float64's sums.
    """
    if engine.device_types and device_type not in engine.device_types:
        return False
    if device_type == "meta":  # no numbers, so none is wrong
        return True
    device = torch.device(device_type)
    # no mode, such as the watch over a model's first forward, and no default device of the user's
    with _disable_current_modes(), torch.device("cpu"):
        return all(
            _agrees(engine, operation, kind, shapes, spans, device)
            for operation, *shapes in _CASES
            for kind in KINDS
            for spans in _SPANS
        )


def _draws(a: Span, b: Span, shapes: list[torch.Size]) -> Iterator[list[Tensor]]:
    """The extreme sums, and pseudo-random operands; int64."""
    for values in ((a.high, b.low), (a.high, b.high), (a.low, b.low)):
        yield [torch.full(shape, value) for shape, value in zip(shapes, values, strict=True)]
    yield [
        (torch.arange(shape.numel()) * 7919 % (span.high - span.low + 1) + span.low).view(shape)
        for shape, span in zip(shapes, (a, b), strict=True)
    ]


def _agrees(
    engine: Engine,
    operation: Operation,
    kind: Kind,
    shapes: list[Any],
    spans: tuple[Span, Span],
    device: torch.device,
) -> bool:
    x, w = (torch.zeros(shape, dtype=torch.float32) for shape in shapes)
    output = operation.product("forward", x, w, x)
    left, right, like = {
        "forward": (x, w, x),
        "grad_input": (output, w, x),
        "grad_weight": (output, x, w),
    }[kind]
    count, per_index = operation.terms(kind, left.shape, right.shape)
    sizes = (count, per_index, *spans)
    whole = Work(*sizes)
    if not engine.supports(operation, kind, whole):
        whole = Work(*sizes, sums=False)
    works = [whole]
    if engine.takes_zero_point:
        works.append(Work(*sizes, zero_point=True, sums=False))
    works = [work for work in works if engine.supports(operation, kind, work)]
    for a, b in _draws(*spans, [left.shape, right.shape]) if works else ():
        for work in works:
            zero_point = spans[0].high - 50 if work.zero_point else 0
            # exact: every sum is far below 2^53
            exact = operation.product(kind, (a - zero_point).double(), b.double(), like)
            got = engine.product(
                operation, kind, a.to(device), b.to(device), like.to(device), work,
                zero_point=torch.tensor(zero_point, device=device) if work.zero_point else None,
                epilogue=None if work.sums else Epilogue(),
            )  # fmt: skip
            if not torch.equal(got.cpu(), exact.to(got.dtype)):
                return False
    return True


class Tried:
    """What every engine is."""

    def exact_on(self: Engine, device_type: str) -> bool:
        """Whether the engine is admitted on this kind of device; tried once."""
        return admitted(self, device_type)

    # What torch.compiler.assume_constant_result does, without importing the compiler for it
    # (1.4 s).  It calls a method with constants alone; an engine is none to torch before 2.13.
    exact_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
