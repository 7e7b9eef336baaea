"""What the tests of quantizers share: bitwise equality, compiling, and awkward numbers."""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from quantizers import FloatFormat, Rounding, formats, stochastic
from quantizers.rounding import ceil, floor, half_away, nearest_even, toward_zero

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MODES: list[Rounding] = [nearest_even, half_away, toward_zero, floor, ceil, stochastic(23)]

SMALL: list[FloatFormat] = [
    formats.e5m2,
    formats.e4m3,
    formats.e3m2,
    formats.e2m3,
    formats.e2m1,
    formats.e3m0,
    formats.e8m0,
]

VARIANTS: list[FloatFormat] = [
    FloatFormat(4, 3, name="e4m3 ieee"),
    FloatFormat(4, 3, specials="fn", overflow="nan", name="e4m3 to nan"),
    FloatFormat(5, 2, overflow="saturate", name="e5m2 saturating"),
    FloatFormat(4, 3, bias=11, specials="finite", name="e4m3 bias 11"),
    FloatFormat(4, 4, signed=False, name="unsigned ieee"),
    FloatFormat(4, 4, signed=False, specials="finite", name="unsigned finite"),
    FloatFormat(4, 1, specials="fn", name="e4m1, top binade of one value"),
    FloatFormat(4, 3, zero=False, specials="finite", name="e4m3 without zero"),
    FloatFormat(4, 0, specials="fn", name="e4m0"),
    FloatFormat(1, 4, specials="finite", name="e1m4"),
]


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal dtype, shape and values; NaN equals NaN, -0 differs from +0."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    actual, expected = actual.cpu(), expected.cpu()
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    nan = torch.isnan(expected)
    same = (actual == expected) & (torch.signbit(actual) == torch.signbit(expected))
    return bool(torch.where(nan, torch.isnan(actual), same).all())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph, through C++ where there is a compiler."""
    has_cpp = any(shutil.which(name) for name in ("g++", "clang++"))
    torch.compiler.reset()
    fast = torch.compile(function, fullgraph=True, backend="inductor" if has_cpp else "aot_eager")

    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, raised while it compiles
            return fast(*args, **kwargs)

    return call


def awkward(fmt: FloatFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every value of a small format, midpoints, their neighbours, overflow, specials, both signs.

    1-d, `dtype`.
    """
    grid = torch.tensor(reference.grid(fmt), dtype=torch.float64)
    top = grid[-1]
    step = 2.0 ** (torch.frexp(top).exponent - 1 - fmt.mantissa)
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), grid, top + step * torch.arange(1, 4)])
    points = torch.cat([grid, (grid[1:] + grid[:-1]) / 2, grid * 1.25, grid[1:2] / 4]).to(dtype)
    huge = torch.finfo(torch.float32).max
    extra = [1e-45, 1e-40, 2.0**-126, huge, float("inf"), float("nan")]
    points = torch.cat([points, torch.tensor(extra, dtype=dtype)])
    inf = torch.full_like(points, float("inf"))
    points = torch.cat([points, points.nextafter(inf), points.nextafter(-inf)])
    return torch.cat([points, -points])
