"""Triton's quantizer with a real offset has the bits of the eager path."""

from __future__ import annotations

import pytest
from test_triton_quantizers import INPUTS, normal
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from quantizers import (
    IntFormat,
    Quantizer,
    RealOffset,
    absmax,
    ema,
    floor,
    minmax,
    nearest_even,
    per_axis,
    per_sample,
    per_tensor,
    root_key,
    stochastic,
)
from quantizers.devices.memory import eager
from quantizers.kernels.gpu import offset

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
UNSIGNED = IntFormat(8, signed=False, symmetric=False)


@pytest.mark.parametrize("rounding", [nearest_even, stochastic(), stochastic(8)], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_values(name: str, rounding: object) -> None:
    x, key = INPUTS[name], root_key(3)
    for granularity, rule, bits in (
        (per_tensor, minmax, 8), (per_tensor, absmax, 16), (per_sample, minmax, 4),
    ):  # fmt: skip
        if granularity == per_sample and (x.dim() < 2 or not x.is_contiguous()):
            continue
        fmt = IntFormat(bits, signed=False, symmetric=False)
        by = RealOffset(
            Quantizer(format=fmt, range=rule, granularity=granularity, rounding=rounding)  # type: ignore[arg-type]
        )
        with eager():
            want = by(x, key=key)
        got = offset.values(x.to(DEVICE), by.of, None, key.to(DEVICE), True)
        assert got is not None and same(got, want.elements), granularity
        assert got.stride() == want.elements.stride()


def test_what_no_kernel_serves_is_declined() -> None:
    x = normal(4, 6).to(DEVICE)
    plain = Quantizer(format=UNSIGNED, range=minmax)
    assert offset.values(x, plain, None, None, True) is not None
    assert offset.values(x.double(), plain, None, None, True) is None
    for by in (
        Quantizer(format=UNSIGNED, range=minmax, rounding=floor),
        Quantizer(format=UNSIGNED, range=minmax, rounding=stochastic()),
        Quantizer(format=UNSIGNED, range=minmax, granularity=per_axis(1)),
        Quantizer(format=UNSIGNED, range=ema(minmax)),
    ):
        assert offset.values(x, by, by.init_state(x.shape) or None, None, True) is None
