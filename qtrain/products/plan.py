"""What a product's plan follows from: all that is known of its operands but their numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from quantizers import QTensor
from quantizers.formats import Format

P = ParamSpec("P")
T = TypeVar("T")


class Sketch(NamedTuple):
    """A QTensor without its numbers; scale, zero_point: their shapes, or None."""

    shape: tuple[int, ...]
    format: Format | None
    block: tuple[int, ...]
    scale: tuple[int, ...] | None
    zero_point: tuple[int, ...] | None


def sketches(*operands: QTensor) -> list[Sketch]:
    """All that is known of operands but their numbers."""
    found = []
    for elements, scale, zero_point, fmt, block, _ in operands:
        shape = None if scale is None else scale.shape
        shift = None if zero_point is None else zero_point.shape
        found.append(Sketch(elements.shape, fmt, block, shape, shift))
    return found


def planned(function: Callable[P, T]) -> Callable[P, T]:
    """Keeps a function's results: a network meets the same shapes at every step.

    The arguments must be hashable; the compiler, whose sizes may be symbols, calls it anew.
    """
    kept = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        run = function if torch.compiler.is_compiling() else kept
        return run(*args, **kwargs)  # type: ignore[arg-type]

    return call


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Keeps a function's results, which the compiler takes as they are, tracing nothing.

    The arguments must be constants: numbers, text.  As torch.compiler.assume_constant_result,
    without importing the compiler for it (1.4 s).
    """
    kept = lru_cache(maxsize=None)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return kept(*args, **kwargs)  # type: ignore[arg-type]

    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call
