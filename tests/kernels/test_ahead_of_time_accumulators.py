"""What Triton makes of the kernels of accumulators: see test_ahead_of_time.

No sum and product are one operation, in fp64 neither; all outputs of a program stay in registers,
of which each thread has 255, and nothing passes shared memory.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_ahead_of_time import SHARED, compiled, pytestmark, stack, well_made

from quantizers import (
    FloatFormat,
    accumulators,
    bf16,
    ceil,
    e4m3,
    e5m2,
    fp16,
    int8,
    stochastic,
)
from quantizers.kernels.serving import imported

__all__ = ["pytestmark"]

E6M9 = FloatFormat(6, 9)
sequential, unit = accumulators.sequential, accumulators.get
CASES: list[tuple[Any, Any, Any]] = [
    (sequential(E6M9), e4m3, e5m2),
    (sequential(E6M9, chunk=64), e5m2, fp16),
    (sequential(E6M9, chunk=64), bf16, bf16),
    (sequential(E6M9, chunk=64, inside="exact"), e4m3, e4m3),
    (sequential(E6M9, rounding=stochastic(8)), e4m3, e4m3),
    (sequential(E6M9, rounding=stochastic(), product=bf16, chunk=64), bf16, bf16),
    (sequential(E6M9, rounding=ceil), e4m3, e4m3),
    (sequential(E6M9, compensated=True), e4m3, e4m3),
    (sequential(bf16, compensated=True, chunk=64), bf16, bf16),
    (unit("H100", "e4m3", promote=128), e4m3, e5m2),
    (unit("H100", "fp16"), fp16, fp16),
    (accumulators.integer(16, overflow="saturate"), int8, int8),
    (accumulators.integer(32, overflow="saturate"), int8, int8),
]  # fmt: skip
TYPES: dict[str, Any] = {
    "a": "!*fp32", "b": "!*fp32", "y": "!*fp32", "keys": "*i64", "_": "!*fp32", "low": "fp32",
    **dict.fromkeys(("least_a", "least_b", "scale"), "fp32"),
    **dict.fromkeys(("format", "narrow", "kept"), ("fp32",) * 5),
}  # fmt: skip


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize(("accumulator", "one", "other"), CASES, ids=str)
def test_sums_stay_in_registers(arch: int, accumulator: Any, one: Any, other: Any) -> None:
    from qtrain.products.accumulated.gpu.choice import chosen
    from qtrain.products.accumulated.gpu.sums import TILES

    kernel = chosen(accumulator, (one, other), 1024)
    assert kernel is not None
    tall, across = TILES[kernel.first]
    constants = {**kernel.constants, "FAR": arch == 89, "ROWS": tall, "ACROSS": across, "BAND": 8}
    types = {**TYPES, "y": "!*i64"} if kernel.name == "saturated" else TYPES
    made = compiled(
        getattr(imported(kernel.module), kernel.name), constants, types, arch, {"num_warps": 4}
    )
    ptx = well_made(made, arch)
    assert stack(made) == 0 and made.metadata.shared == 0 and "fma.rn.f64" not in ptx
    assert ("mul.rn.f64" in ptx) == kernel.constants["WIDE"]


@pytest.mark.parametrize("arch", SHARED)
def test_keys(arch: int) -> None:
    from qtrain.products.accumulated.gpu.triton_sequential import keys

    made = compiled(keys, {"BLOCK": 1024}, {"key": "*i64", "result": "!*i64"}, arch)
    assert "st.global" in well_made(made, arch) and stack(made) == 0
