"""What is said to hold a format's elements holds every one of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qtrain.products.precision import half, significant
from quantizers import FloatFormat, IntFormat, TableFormat
from quantizers.formats import NAMED, Format

FORMATS: dict[str, Format] = {
    **NAMED,
    "far": FloatFormat(5, 4, bias=130),
    "further": FloatFormat(4, 7, bias=127),
    "narrow and large": FloatFormat(5, 7, bias=14, specials="finite"),
    "int11 affine": IntFormat(11, symmetric=False),
}
TABLES = [name for name, format in NAMED.items() if isinstance(format, TableFormat)]


def test_nothing_is_said_of_a_table() -> None:
    assert TABLES and all(half(NAMED[name]) is significant(NAMED[name]) is None for name in TABLES)


def numbers(format: Format) -> Tensor:
    """Every element, less every zero point that there can be."""
    if isinstance(format, IntFormat):
        reach = format.high - format.low
        return torch.arange(-reach, reach + 1, dtype=torch.float32)
    values = format.decode(torch.arange(2**format.bits))
    return values[values.isfinite()]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("fp32", *TABLES)])
def test_the_16_bit_dtype_holds_every_element(name: str) -> None:
    format = FORMATS[name]
    values = numbers(format)
    held = [
        dtype
        for dtype in (torch.bfloat16, torch.float16)
        if torch.equal(values.to(dtype).float(), values)
    ]
    assert half(format) == (held[0] if held else None)
    digits = significant(format)
    assert digits is not None
    mantissa, _ = torch.frexp(values)
    assert torch.equal(mantissa * 2.0**digits, (mantissa * 2.0**digits).round())


def test_of_several_formats() -> None:
    bf16, fp16, int8, int16 = (NAMED[name] for name in ("bf16", "fp16", "int8", "int16"))
    assert half(bf16, int8) is torch.bfloat16 and half(fp16, int8) is torch.float16
    assert half(bf16, fp16) is None and half(int8, int16) is None and half(bf16, None) is None
    assert significant(bf16, fp16) == 11 and significant(fp16, None) is None
    assert half(NAMED["fp32"]) is None
