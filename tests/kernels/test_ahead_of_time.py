"""What Triton makes of the kernels for three generations of GPUs; no GPU is needed to ask."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any

import pytest
from triton_device import INSTALLED

from quantizers.kernels.gpu.device import INTERPRETED

pytestmark = [
    pytest.mark.skipif(
        not INSTALLED or INTERPRETED, reason="needs triton, and not its interpreter"
    ),
    pytest.mark.cases(1, 12),  # the GPUs, three, take turns
]
#: bytes of shared memory that a program may have
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
PAIR = ("i32", "i32")


def compiled(
    kernel: Any, constants: dict[str, Any], types: dict[str, Any], arch: int, own: Any = None
) -> Any:
    """The kernel for a target.  types: of arguments that are no int32; "!" before one: what it
    points at, or it, is a multiple of 16; own: options."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, values, attributes = {}, {}, {}
    options = {"enable_fp_fusion": False, "num_warps": 8, "num_stages": 3, **(own or {})}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
            continue
        kind = types.get(name, "i32")
        if isinstance(kind, str) and kind.startswith("!"):
            kind, attributes[(place,)] = kind[1:], [["tt.divisibility", 16]]
        signature[name] = kind
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def well_made(made: Any, arch: int, fused: int = 0) -> str:
    """The kernel's PTX: no product and sum as one operation but `fused` a thread, no approximate
    division, no flush of subnormal numbers but by the floor or ceiling of a magnitude, nothing
    spilled, and no more shared memory than there is."""
    ptx: str = made.asm["ptx"]
    assert len(re.findall(r"fma\.rn\S*\.f32", ptx)) == fused
    assert not re.search(r"div\.(full|approx)|(?<!cvt\.r[mp]i)\.ftz|(st|ld)\.local", ptx)
    assert made.metadata.shared <= SHARED[arch]
    return ptx


def _said(made: Any, question: str) -> str:
    """By cuobjdump, of the kernel's binary."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, question, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stack(made: Any) -> int:
    """Bytes a thread keeps in memory, spilled registers included, which PTX does not show."""
    return int(re.findall(r"STACK:(\d+)", _said(made, "-res-usage"))[0])


WALK = dict.fromkeys(
    ("sizes", "x_steps", "result_steps", "index_steps", "granule_steps"), PAIR
)  # fmt: skip
NUMBERS = {
    **dict.fromkeys((*(f"c{n}" for n in range(5)), "momentum", "reach", "prescale"), "fp32"),
    "rule": ("fp32", "i32", "i32", "i32", "i32"), "target": ("i32", "i32", "fp32", "fp32", "fp32"),
}  # fmt: skip
POINTERS = {
    "x": "!*fp32", "scale": "*fp32", "zero_point": "*i32", "factor": "*fp32", "key": "*i64",
    "ends": "!*i32", "kept": "*fp32", "running_low": "*fp32", "running_high": "*fp32",
    "running_share": "*fp32", "running_steps": "*i64", "outer": "*fp32", "lows": "*fp32",
    "highs": "*fp32",
}  # fmt: skip
RULE = {
    **dict.fromkeys(("SYMMETRIC", "RUNNING", "UPDATE", "USE"), True), "PAST": "", "WINDOW": 0,
    **dict.fromkeys(("RECIPROCAL", "PRESCALED", "POWER", "NARROW"), False), "LEVELS": 1,
    **dict.fromkeys(("S_SIGNED", "S_ZERO", "S_INF"), True), "S_MODE": "nearest_even",
}  # fmt: skip
#: other rules of a scale, and ranges from before
SCALES = {
    "fp8": {"RECIPROCAL": True}, "delayed": {"RECIPROCAL": True, "PAST": "max", "WINDOW": 1024},
    "hindsight": {"PAST": "ema"}, "power": {"POWER": True, "PRESCALED": True},
    "levels": {"LEVELS": 2, "NARROW": True, "RECIPROCAL": True},
}  # fmt: skip


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("measured", [True, False], ids=["measured", "given"])
@pytest.mark.parametrize("integer", [True, False], ids=["integer", "float"])
def test_elements(arch: int, mode: str, integer: bool, measured: bool) -> None:
    from quantizers.kernels.gpu.triton_elements import elements, whole

    constants = {
        "AXES": 2, "ALONE": True, "SCALED": True, "MEASURED": measured,
        "AFFINE": integer and measured, "FOLDED": True, **RULE, "INTEGER": integer, "SIGNED": True,
        "ZERO": True, "INF": False, "RANDOM": 23 * (mode == "stochastic"), "MODE": mode,
        "SIZE": 512, "STEPS": 2, "UNIT": 16, "BLOCK": 4096,
    }  # fmt: skip
    types = {**WALK, **NUMBERS, **POINTERS, "result": "!*i8" if integer else "!*fp32"}
    if not integer:
        types |= {"c0": "i32", "c1": "i32"}
    # two for a quotient by one scale, of 16 and of 32 elements
    made = compiled(elements, constants, types, arch)
    ptx = well_made(made, arch, 32 * integer)
    # a row's units are read and written 16 bytes at a time
    assert "div.rn.f32" in ptx and "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx
    constants = {name: value for name, value in constants.items() if name in whole.arg_names}
    made = compiled(whole, {**constants, "BLOCK": 8192}, types, arch)
    ptx = well_made(made, arch, 64 * integer)
    assert "div.rn.f32" in ptx
    # every thread has read the running range before one of them moves it
    read, _ = ptx.split("st.global", 1)
    assert "bar.sync" in read.rsplit("ld.global", 1)[1]


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("scale", SCALES)
def test_rules_of_scales(arch: int, scale: str) -> None:
    from quantizers.kernels.gpu.triton_elements import elements, whole

    constants = {
        "AXES": 0, "ALONE": False, "SCALED": True, "MEASURED": True, "AFFINE": False,
        "FOLDED": False, **RULE, **SCALES[scale], "INTEGER": False, "SIGNED": True, "ZERO": True,
        "INF": False, "RANDOM": 0, "MODE": "nearest_even", "SIZE": 512, "STEPS": 2, "UNIT": 1,
        "BLOCK": 4096,
    }  # fmt: skip
    types = {**WALK, **NUMBERS, **POINTERS, "result": "!*fp32", "c0": "i32", "c1": "i32"}
    for kernel in (elements, whole):
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        made = compiled(kernel, own, types, arch)
        ptx = well_made(made, arch)
        # of what a warp has in common, wide arithmetic came out wrong on a GPU
        assert "div.rn.f32" in ptx and not re.search(r"\.f64|(min|max|sub)\.s64", ptx)
        assert stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("random", [0, 23])
def test_offsets(arch: int, random: int) -> None:
    from quantizers.kernels.gpu.triton_offset import offset

    constants = {
        "AXES": 2, "SYMMETRIC": False, "RANDOM": random, "SIZE": 512, "STEPS": 2, "BLOCK": 4096,
    }  # fmt: skip
    types = {**WALK, **POINTERS, "result": "!*fp32", "levels": "fp32"}
    made = compiled(offset, constants, types, arch)
    ptx = well_made(made, arch)
    assert "div.rn.f64" in ptx and "fma.rn.f64" not in ptx and stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
def test_extremes(arch: int) -> None:
    from quantizers.kernels.gpu.triton_range import extremes

    constants = {"AXES": 2, "FOLDED": True, "RUNNING": True, "STEPS": 4, "BLOCK": 4096}
    for unit in (1, 16):
        made = compiled(extremes, {**constants, "UNIT": unit}, {**WALK, **POINTERS}, arch)
        assert ("ld.global.v4.b32" in well_made(made, arch)) is (unit > 1)


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("tile", [(128, 128, 128), (128, 64, 64), (64, 32, 32)], ids=str)
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("moves", ["still", "gather", "scatter", "scatter 2"])
def test_a_convolution_is_on_tensor_cores(
    arch: int, tile: tuple[int, int, int], scales: int, moves: str
) -> None:
    from qtrain.products.engines.gpu.int8.triton_convolution import convolve

    constants = dict(zip(("ROWS", "ACROSS", "DEEP"), tile, strict=True))
    constants |= {
        "WIDE": False, "UNIT": 16, "OUT": 16, "LAST": True, "MOVES": moves, "EVEN": True,
        "X_ROWS": moves == "still", "Y_ROWS": True, "AFFINE": True, "FILLED": False,
        "SCALES": scales, "BIASED": True, "BAND": 8,
    }  # fmt: skip
    types = {
        "x": "!*i8", "w": "!*i8", "y": "!*fp32", "scale": "*fp32" if scales == 2 else "*fp64",
        "other": "*fp32", "bias": "*fp32", "zero_point": "*i32", "sums": "*i32",
    }  # fmt: skip
    made = compiled(convolve, constants, types, arch, {"num_warps": 4})
    # sums take the registers; what is spilled is what comes before and after the steps
    sass = _said(made, "-sass")
    units = [found.start() for found in re.finditer(r"IG?MMA\.", sass)]
    assert not re.search(r"\b(LDL|STL)\b", sass[units[0] : units[-1]])
    unit = r"wgmma\S*\.s32\.s8\.s8" if arch == 90 else r"mma\.sync\S*\.s32\.s8\.s8\.s32"
    ptx = well_made(made, arch)
    assert re.search(unit, ptx) and "st.global.v4.b32" in ptx
    tall, across, deep = tile
    step = ptx.partition("Inner Loop Header")[2].partition("bra")[0]
    assert "mma" in step and "cp.async" in step and not re.search(r"(div|rem)\.[su]", step)
    if arch == 90 and tall == 128:  # loads run ahead of the products: several tiles are there
        assert made.metadata.shared >= 2 * (tall + across) * deep


#: in fp16, summed in fp32
HALVES = {
    80: r"mma\.sync\S*\.f32\.f16\.f16\.f32",
    89: r"mma\.sync\S*\.f32\.f16\.f16\.f32",
    90: r"wgmma\S*\.f32\.f16\.f16",
}


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("tile", [(128, 128, 64), (128, 64, 64), (64, 32, 32)], ids=str)
def test_a_convolution_of_digits_is_on_tensor_cores(arch: int, tile: tuple[int, int, int]) -> None:
    from qtrain.products.engines.gpu.digits.triton_convolution import multiply

    constants = dict(zip(("ROWS", "ACROSS", "DEEP"), tile, strict=True))
    constants |= {
        "WIDE": False, "MOVES": "gather", "EVEN": True, "FLUSH": True, "LONG": False,
        "SCALED": True, "BIASED": True, "BAND": 8,
    }  # fmt: skip
    strides = [f"{x}_{axis}" for x, axes in (("x", "nghw"), ("w", "gprs")) for axis in axes]
    types = dict.fromkeys([*strides, "y_n", "y_g", "y_h", "y_w", "summed"], "!i32")
    types |= {"x": "!*fp16", "w": "!*fp16", "y": "!*fp32", "scale": "*fp64", "bias": "*fp32"}
    made = compiled(multiply, constants, types, arch)
    assert re.search(HALVES[arch], well_made(made, arch)) and stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("tile", [(128, 128, 64), (128, 64, 64), (64, 32, 64)], ids=str)
def test_a_gradient_of_digits_is_on_tensor_cores(arch: int, tile: tuple[int, int, int]) -> None:
    from qtrain.products.engines.gpu.digits.triton_correlation import correlate

    constants = dict(zip(("ROWS", "ACROSS", "DEEP"), tile, strict=True)) | {"WIDE": False}
    sizes = ("produced", "summed", "x_digit", "z_digit", "z_n", "z_h", "z_w")
    types = {"x": "!*fp16", "z": "!*fp16", "y": "!*i32", **dict.fromkeys(sizes, "!i32")}
    made = compiled(correlate, constants, types, arch)
    assert re.search(HALVES[arch], well_made(made, arch)) and stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
def test_digits_and_chunks(arch: int) -> None:
    from qtrain.products.engines.gpu.digits.triton_digits import combine, digits
    from quantizers.kernels.gpu.triton_chunks import chunked_scale

    constants = dict.fromkeys(("WIDE", "AFFINE", "TWO", "ADJACENT"), True)
    constants |= {"UNIT": 16, "PIXELS": 64, "CHANNELS": 64}
    types = {"x": "!*i16", "y": "!*fp16", "zero_point": "*i32"}
    made = compiled(digits, constants, types, arch)
    assert "st.global.v4" in well_made(made, arch) and stack(made) == 0
    flags = dict.fromkeys(("WIDE", "SCALED", "BIASED", "ADJACENT"), True)
    constants = {**flags, "UNIT": 16, "LEFT": 2, "RIGHT": 2, "TOGETHER": 8, "BLOCK": 128}
    types = {"x": "!*i32", "y": "!*fp32", "scale": "*fp64", "bias": "*fp32"}
    made = compiled(combine, constants, types, arch)
    assert "cvt.rn.f32.s64" in well_made(made, arch) and stack(made) == 0
    types = {**NUMBERS, **POINTERS, "lowest": "fp32", "largest": "fp32"}
    constants = {**RULE, "AFFINE": True, "SIGNED": True, "CHUNKS": 128, "PARTS": 32}
    constants = {name: constants[name] for name in chunked_scale.arg_names if name in constants}
    made = compiled(chunked_scale, constants, types, arch)
    assert "div.rn.f64" in well_made(made, arch) and stack(made) == 0


@pytest.mark.parametrize("arch", SHARED)
def test_what_goes_before_a_convolution(arch: int) -> None:
    from qtrain.products.engines.gpu.int8.triton_prepare import prepare

    constants = {
        "WIDE": False, "UNIT": 16, "X_UNIT": 16, "LAST": True, "ALIGNED": True, "PADDED": False,
        "UNSIGNED": True, "PIXELS": 128, "CHANNELS": 128, "TOGETHER": 1, "DEEP": 128,
    }  # fmt: skip
    types = {"x": "!*u8", "w": "!*i8", "y": "!*i8", "sums": "!*i32", "zero_point": "*i32"}
    # 16 bytes at a time
    assert "ld.global.v4.b32" in well_made(compiled(prepare, constants, types, arch), arch)


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("other", ["u8", "i8", "fp32"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5)], ids=str)
@pytest.mark.parametrize("channels", [3, 64, 128])
def test_a_gradient_is_on_tensor_cores(
    arch: int, other: str, kernel: tuple[int, int], channels: int
) -> None:
    from qtrain.products.engines.gpu.half.plan import Tile
    from qtrain.products.engines.gpu.half.triton_gradient import gradient

    tile, even = Tile.of(128, channels, *kernel), channels % 16 == 0
    constants = {
        "G_AFFINE": False, "X_AFFINE": other == "u8", "SCALED": True, "FLAT": kernel == (1, 1),
        "PACKED": tile.packed, "TAPS": tile.taps, "BF16": other != "i8", "WIDENED": False,
        "WIDE": False, "TALL": tile.tall, "ACROSS": tile.across, "DEEP": tile.deep,
    }  # fmt: skip
    aligned = ["produced", "g_m", "g_g", *(["channels", "x_n", "x_g", "x_h", "x_w"] * even)]
    types = dict.fromkeys(aligned, "!i32") | {
        "g": "!*bf16" if other == "u8" else "!*fp32", "x": f"!*{other}", "y": "!*fp32",
        "g_zero": "*i32", "x_zero": "*i32", "scale": "*fp64",
    }  # fmt: skip
    sizes = 2 if other == "u8" else 4, 4 if other == "fp32" else 1
    made = compiled(gradient, constants, types, arch, tile.options(*sizes))
    ptx = well_made(made, arch)
    dtype = "f16" if other == "i8" else "bf16"
    unit = rf"wgmma\S*\.f32\.{dtype}\.{dtype}" if arch == 90 else rf"mma\S*\.f32\.{dtype}\.{dtype}"
    assert re.search(unit, ptx)
    # loads run ahead of the products, 16 bytes at a time
    assert "cp.async.cg" in ptx


@pytest.mark.parametrize("arch", SHARED)
def test_a_sum_of_parts(arch: int) -> None:
    from qtrain.products.engines.gpu.half.triton_gradient import add

    types = {"partial": "!*fp32", "y": "!*fp32", "scale": "*fp32"}
    well_made(compiled(add, {"SCALED": True, "DOWN": 16, "ACROSS": 128}, types, arch), arch)
