"""What Triton makes of the kernel of sums in blocks; see test_ahead_of_time."""

from __future__ import annotations

import re

import pytest
from test_ahead_of_time import HALVES, NUMBERS, SHARED, compiled, pytestmark, stack, well_made

__all__ = ["pytestmark"]


@pytest.mark.parametrize(
    ("tile", "way", "deep", "parts", "two"),
    [
        (1, "single", 32, 1, 2), (0, "chained", 32, 1, 0), (2, "single", 16, 1, 1),
        (0, "chained", 64, 2, 0), (2, "pair", 64, 2, 2), (3, "long", 64, 8, 2),
        (3, "single", 32, 1, 2), (4, "single", 32, 1, 2), (4, "chained", 16, 1, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", SHARED)
def test_sums_in_blocks_are_on_tensor_cores(
    arch: int, tile: int, way: str, deep: int, parts: int, two: int
) -> None:
    """Of fp16, whose sums are exact: those of fp8 keep 13 bits."""
    from qtrain.products.blockwise.gpu.sums import TILES
    from qtrain.products.blockwise.gpu.triton_sums import block_sums

    rows, across, turn, warps, stages, registers = TILES[tile if arch == 90 else max(tile, 2)]
    constants = {
        "WIDE": False, "WINDOWS": turn == 1, "TWO_A": two > 0, "TWO_B": two > 1, "SUM": way,
        "PARTS": parts, "ROWS": rows, "ACROSS": across, "DEEP": deep,
        "TURN": turn if parts == 1 else 1, "BAND": 8,
    }  # fmt: skip
    types = {
        "a": "!*fp16", "b": "!*fp16", "y": "!*fp32", "scale_a": "!*fp32", "scale_b": "!*fp32",
        "table": "!*i32", "unit": "fp32",
    }  # fmt: skip
    own = {"num_warps": warps, "num_stages": stages, "maxnreg": None if turn == 1 else registers}
    made = compiled(block_sums, constants, types, arch, own)
    ptx = well_made(made, arch)
    assert (
        re.search(HALVES[arch if rows > 32 else 80], ptx)
        and not re.search("mma.*e4m3", ptx)
        and stack(made) == 0
    )
    assert ("cvt.rn.f32.s64" in ptx) == (way == "long")
    if way == "single" and two == 1:  # the sum of two products is rounded once, in fp32
        dots = re.findall(r"tt\.dot .*, %(\w+)[ ,:]", made.asm["ttir"])
        assert dots and all(name.startswith("cst") for name in dots)


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("two", [True, False])
def test_digits_of_blocks(arch: int, two: bool) -> None:
    from qtrain.products.blockwise.gpu.triton_digits import digits

    constants = {"ADJACENT": 2 - two, "WIDE": False, "TWO": two, "DEEP": 32}
    types = {
        "x": "!*fp32", "y": "!*fp16", "scale": "*fp32", "z": "!*fp32", "per_unit": "fp32"
    }  # fmt: skip
    made = compiled(digits, constants, types, arch, {"num_warps": 8})
    assert "st.global" in well_made(made, arch) and stack(made) == 0


@pytest.mark.parametrize(
    ("power", "integer", "random", "levels", "candidates"),
    [(True, False, 23, 1, 0), (False, False, 8, 2, 0), (False, True, 0, 1, 0),
     (False, False, 0, 2, 2)],
)  # fmt: skip
@pytest.mark.parametrize("arch", SHARED)
def test_a_quantizer_in_blocks(
    arch: int, power: bool, integer: bool, random: int, levels: int, candidates: int
) -> None:
    from quantizers.kernels.gpu.triton_blocks import measure, quantize

    tile = {
        "ADJACENT": 1, "UNIT": 16, "WHOLE": True, "BANDS": 8, "ACROSS": 8, "DEEP": 32
    }  # fmt: skip
    constants = {
        **tile, "CANDIDATES": candidates, "SQUARED": True, "LEVELS": levels,
        "RECIPROCAL": not power, "PRESCALED": False, "POWER": power, "INVERSE": power,
        "NARROW": not integer, "S_SIGNED": not power, "S_ZERO": not power, "S_INF": False,
        "S_MODE": "near", "INTEGER": integer, "SIGNED": True, "ZERO": True, "INF": False,
        "RANDOM": random, "MODE": "stochastic" if random else "nearest_even",
    }  # fmt: skip
    types = {
        **NUMBERS, "c0": "i32", "c1": "i32", "tops": ("fp32",) * max(2 * candidates, 1),
        "x": "!*fp32", "result": "!*i8" if integer else "!*fp32", "scale": "*fp32", "key": "*i64",
        "outer": "*fp32", "ends": "*i32",
        **({"c0": "fp32", "c1": "fp32"} if integer else {}),
    }  # fmt: skip
    made = compiled(quantize, constants, types, arch, {"num_warps": 4})
    ptx = well_made(made, arch)
    assert "div.rn.f32" in ptx and stack(made) == 0
    # of what a warp has in common, wide arithmetic came out wrong on a GPU
    assert candidates or not re.search(r"\.f64|(min|max|sub)\.s64", ptx)
    made = compiled(measure, tile, types, arch, {"num_warps": 4})
    assert "max.s32" in well_made(made, arch) and stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("adjacent", [True, False])
def test_a_rotation(arch: int, adjacent: bool) -> None:
    from qtrain.recipe.gpu.triton_rotations import rotated

    constants = {
        "ADJACENT": adjacent, "SIGNED": True, "SIZE": 16, "TIMES": 4, "ROWS": 64, "DEEP": 64
    }  # fmt: skip
    types = {"x": "!*fp32", "signs": "!*fp32", "result": "!*fp32", "factor": "fp32"}
    made = compiled(rotated, constants, types, arch, {"num_warps": 4})
    assert "st.global" in well_made(made, arch) and stack(made) == 0
