"""Codes by one scale: the quotient of a multiplication and two fused ones is the division's, and
scales and numbers of all sizes have the eager path's codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from quantizers import IntFormat, root_key, stochastic
from quantizers.devices.memory import eager
from quantizers.elements import elements_of
from quantizers.kernels.gpu import quantizers as kernels
from quantizers.rounding import Rounding, nearest_even

FP32, FP64 = np.float32, np.float64


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c, fp32, rounded once: the product is exact in fp64, the sum is rounded to odd there,
    which leaves the rounding to fp32 as it is."""
    product, c = a.astype(FP64) * b.astype(FP64), c.astype(FP64)
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)
    bits = total.view(np.int64)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + toward, bits)
    return odd.view(FP64).astype(FP32)


def quotient(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """As triton_uniform.quotient on a GPU."""
    inverse = FP32(1) / by
    near = x * inverse
    return fma(fma(near, -by, x), inverse, near)


def significands(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(2**23, 2**24, size, dtype=np.int64)


def test_the_quotient_is_the_divisions() -> None:
    rng = np.random.default_rng(0)
    x, by = significands(rng, 2**21), significands(rng, 2**21)
    half = 2**20
    by[:half] = 2**24 - 1 - np.arange(half) // 16  # whose reciprocals are the least exact
    # nearest the midpoints of quotients: 2^k x is 1 .. 3 from a multiple of `by`, k 24 or 25
    odd = by | 1
    inverse = np.ones_like(by)
    for _ in range(24):
        inverse = np.where(inverse & 1, inverse + odd, inverse) >> 1  # of 2, once more
    further = np.where(inverse & 1, inverse + odd, inverse) >> 1
    hard = [near * n % odd for near in (inverse, further) for n in (1, 2, 3, -1, -2, -3)]
    cases = [(x, by), *((z + odd * (z < 2**23), odd) for z in hard)]
    for above, below in cases:
        fits = (above >= 2**23) & (above < 2**24)
        a, b = above[fits].astype(FP32), below[fits].astype(FP32)
        assert fits.sum() > 2**18 and np.array_equal(quotient(a, b), a / b)
    size = rng.integers(-99, 100, x.size)
    scale = rng.integers(-70, 100, x.size)
    a, b = (np.ldexp(n.astype(FP32), e - 23) for n, e in ((x, size), (by, scale)))
    with np.errstate(all="ignore"):
        true = a / b
    fits = (true > 2.0**-126) & (true < 2.0**100)
    assert fits.sum() > 2**20 and np.array_equal(quotient(a[fits], b[fits]), true[fits])
    for end in (0.0, 2.0**-149):
        assert np.abs(quotient(np.full(1, end, FP32), np.ones(1, FP32))) <= end


@served
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rounding", [nearest_even, stochastic(), stochastic(1)], ids=str)
def test_scales_of_all_sizes(rounding: Rounding) -> None:
    at = torch.linspace(-1, 1, 513).repeat(3)
    specials = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45, -0])
    formats = [IntFormat(8), IntFormat(8, symmetric=False), IntFormat(4), IntFormat(16)]
    formats += [IntFormat(8, signed=False, symmetric=False)]
    numbers = (0.0, -0.5, 1.0, 0.99999994, 0.037, float("inf"), float("nan"))
    steps = (*numbers, *(2.0**n * 1.3 for n in (-140, -71, -70, -60, 60, 99, 100, 126)))
    for format in formats:
        for n, number in enumerate(steps):
            scale = torch.tensor([number])
            x = torch.cat([at * (number * 2.0 ** (format.bits - n % 3)), specials, at])
            zeros = (None,) if format.symmetric else (None, 3, -(2**17), 2**30)
            for zero in zeros:
                shift = None if zero is None else torch.tensor([zero], dtype=torch.int32)
                given = x, scale, shift, (*x.shape,), format, rounding, root_key(n)
                with eager():
                    want = elements_of(*given)
                there = (part.to(DEVICE) if isinstance(part, Tensor) else part for part in given)
                got = kernels.elements(*there)
                assert got is not None and same(got, want), (format, number, zero)
