"""What Triton makes of the kernels of values and noise keys: see test_ahead_of_time."""

from __future__ import annotations

import pytest
from test_ahead_of_time import SHARED, compiled, pytestmark, well_made

__all__ = ["pytestmark"]


@pytest.mark.parametrize("arch", SHARED)
def test_words(arch: int) -> None:
    from quantizers.kernels.gpu.triton_keys import fold
    from quantizers.kernels.gpu.triton_values import values

    constants = dict.fromkeys(("AFFINE", "SCALED", "LIMITED"), True) | {"BLOCK": 4096}
    types = {"x": "!*i8", "result": "!*fp32", "zero_point": "*i32", "scale": "*fp32"}
    well_made(compiled(values, constants, types, arch), arch)
    for loaded, value in ((True, "*i64"), (False, "i64"), (False, "i32")):
        constants = {"LOADED": loaded, "ADVANCED": loaded}
        types = {"key": "*i64", "result": "*i64", "value": value}
        made = compiled(fold, constants, types, arch, {"num_warps": 1})
        assert made.asm["ptx"].count("st.global") == 1 + loaded
