"""What Triton makes of the norms' kernels for three generations of GPUs."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from test_ahead_of_time import SHARED, compiled, pytestmark, well_made

__all__ = ["pytestmark"]

#: of statistics; a pass has twice as many rows
TILES = {"channels-last": (False, 32, 64), "contiguous": (True, 2048, 1)}
#: by their names, in all kernels
TYPES = {
    **dict.fromkeys(("x", "y", "grad", "result"), "!*fp32"),
    **dict.fromkeys(("mean", "sigma", "scale", "shift", "factor", "offset", "weight"), "*fp32"),
    **dict.fromkeys(("bias", "values", "nothing", "highs", "lows", "step", "slope"), "*fp32"),
    **dict.fromkeys(("sums", "squares", "grads", "products", "extras"), "*fp64"),
    **dict.fromkeys(("high_ats", "low_ats", "ats", "zero_point"), "*i32"),
    **dict.fromkeys(("running_mean", "running_var", "grad_weight", "grad_bias"), "*fp32"),
    **dict.fromkeys(("channels", "width", "count"), "i32"),
    "where": "*i64", "steps": "*i64", "off": "*i8",
}  # fmt: skip
NUMBERS = dict.fromkeys(("eps", "constant", "longer_factor", "momentum", "unbiased"), "fp32")


def types_for(layout: str) -> dict[str, Any]:
    """Rows of 64 channels, runs of 196 elements."""
    return TYPES if TILES[layout][0] else TYPES | {"channels": "!i32"}


def tile(name: str, times: int = 1) -> dict[str, Any]:
    planes, rows, columns = TILES[name]
    aligned = 4 if planes else 1
    return {"PLANES": planes, "ALIGNED": aligned, "ROWS": times * rows, "COLUMNS": columns}


@pytest.mark.parametrize("layout", TILES)
@pytest.mark.parametrize("arch", SHARED)
def test_statistics(arch: int, layout: str) -> None:
    from qtrain.norms.kernels.gpu import triton_statistics as kernels

    types, own_tile = {**types_for(layout), "steps": "i32"}, {**tile(layout), "AHEAD": 3}
    for squares, extremes in ((True, True), (True, False), (False, True), (False, False)):
        constants = {"SQUARES": squares, "EXTREMES": extremes, **own_tile}
        made = compiled(kernels.moments, constants, types, arch)
        assert "cp.async.cg" in well_made(made, arch)  # 16 bytes at a time, ahead of their use
    for kind in ("squares", "magnitudes", "largest"):
        own = types | {"sums": "*fp32"} if kind == "largest" else types
        well_made(compiled(kernels.about, {"KIND": kind, **own_tile}, own, arch), arch)
    for relu, extra in product((True, False), ("", "squares", "signs")):
        constants = {"RELU": relu, "ROUNDING": 2 * relu, "EXTRA": extra, **own_tile}
        well_made(compiled(kernels.gradient, constants, types, arch), arch)


@pytest.mark.parametrize("arch", SHARED)
def test_what_follows_of_a_channel(arch: int) -> None:
    from qtrain.norms.kernels.gpu import triton_channels as few
    from qtrain.norms.kernels.gpu import triton_finish as kernels

    types = {**TYPES, **NUMBERS, "factor": "fp32"}
    flags = {"WEIGHT": True, "BIAS": True}
    kinds = [("extremes", ""), ("squares", "root"), ("magnitudes", ""), ("ones", "one")]
    for (kind, stable), shape in product(kinds, ((1, 1024, 1), (16, 64, 1), (1, 1, 64))):
        constants = {
            "KIND": kind,
            "STABLE": stable,
            "ENDS": True,
            "NOTHING": True,
            "CENTERED": True,
            **flags,
        }
        constants |= dict(zip(("CHUNKS", "PARTS", "COLUMNS"), shape, strict=True))
        made = compiled(kernels.statistics, constants, types, arch)
        assert "div.rn.f32" in well_made(made, arch)
    constants = {"STABLE": "root", **flags, "COLUMNS": 64}
    assert "sqrt.rn.f32" in well_made(compiled(few.affine, constants, types, arch), arch)
    types["factor"] = "*fp32"
    for slope in ("l2", "centered", "sign", "values", ""):
        constants = {"SLOPE": slope, "STABLE": "", "CENTERED": True, "PARTS": 1024, "COLUMNS": 1}
        well_made(compiled(kernels.gradient, constants, types, arch), arch)
    constants = {"COUNTED": True, "COLUMNS": 64}
    well_made(compiled(few.track, constants, types, arch), arch)
    for gathered in (True, False):
        constants = {"GATHERED": gathered, "RELU": True, "ROUNDING": 2, "PLANES": False}
        own = types | {"result": "*fp32"}
        own |= {"lows": "*i64", "highs": "*i64"} if gathered else {}
        well_made(compiled(few.images, constants | {"COLUMNS": 64}, own, arch), arch)


@pytest.mark.parametrize("layout", TILES)
@pytest.mark.parametrize("arch", SHARED)
def test_passes(arch: int, layout: str) -> None:
    from qtrain.norms.kernels.gpu import triton_passes as kernels

    types = {**types_for(layout), "low": "fp32", "high": "fp32"}
    for codes in (False, True):
        constants = {"RELU": True, "ROUNDING": 1, "CODES": codes, "AFFINE": codes}
        own = types | ({"y": "!*i8"} if codes else {})
        made = compiled(kernels.normalize, constants | tile(layout, 2), own, arch)
        ptx = well_made(made, arch, 32 * codes)  # two for a quotient by one scale
        assert ("div.rn.f32" in ptx) is codes and "ld.global.v4.b32" in ptx
    for slope, carriers in (("", 2), ("centered", 0), ("sign", 0)):
        constants = {"RELU": True, "ROUNDING": 2, "SLOPE": slope, "CARRIERS": carriers, "TARGET": 0}
        well_made(compiled(kernels.backward, constants | tile(layout, 2), types, arch), arch)
    constants = {"PLANES": tile(layout)["PLANES"], "BLOCK": 1024}
    well_made(compiled(kernels.add_at, constants, types | {"grad": "*fp32"}, arch), arch)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("arch", SHARED)
def test_residual(arch: int, masked: bool) -> None:
    from qtrain.norms.kernels.gpu.triton_passes import residual

    constants = {"MASKED": masked, "SOURCE": 0, "BLOCK": 4096}
    types = TYPES | {"off": "!*i8", "count": "!i32"}
    assert "ld.global.v4.b32" in well_made(compiled(residual, constants, types, arch), arch)
