"""What Triton makes of the kernels of attention's softmax: see test_ahead_of_time."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_ahead_of_time import SHARED, compiled, pytestmark, stack, well_made

__all__ = ["pytestmark"]

TYPES = dict.fromkeys(("x", "mask", "result", "weights", "grad"), "!*fp32") | {"idle": "*i1"}


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize(("keys", "aligned"), [(1024, 16), (256, 4), (8192, 16)])
@pytest.mark.parametrize("adjacent", [True, False])
def test_softmax(arch: int, keys: int, aligned: int, adjacent: bool) -> None:
    from qtrain.layers.gpu.triton_softmax import softmax, softmax_gradient

    rows = max(4096 // keys, 1)
    constants = {
        "MASKED": True, "IDLE": True, "NARROW": False, "ADJACENT": adjacent, "ALIGNED": aligned,
        "ROWS": rows, "KEYS": keys,
    }  # fmt: skip
    own = {"num_warps": rows * keys // 512}
    made = compiled(softmax, constants, TYPES, arch, own)
    ptx: str = made.asm["ptx"]
    _lean(made, ptx, 2 if adjacent else 1)
    assert "div.rn.f32" in ptx and not re.search(r"div\.(full|approx)|(st|ld)\.local", ptx)
    assert made.metadata.shared <= SHARED[arch]
    # exp is of an argument that two fma reduce; tl.exp rounds a product
    powers = len(re.findall(r"ex2\.approx", ptx))
    assert powers and len(re.findall(r"fma\.rn", ptx)) >= 2 * powers
    names = softmax_gradient.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    made = compiled(softmax_gradient, constants, TYPES, arch, own)
    _lean(made, well_made(made, arch), 2 if adjacent else 1)


def _lean(made: Any, ptx: str, operands: int) -> None:
    """16 elements a thread in four loads an operand, four stores, and nothing spilled."""
    assert stack(made) == 0
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 4 * operands
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 4
