"""A quantizer in blocks of a matrix, whose scale follows from the block's largest magnitude: one
launch."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.formats import Format, IntFormat, TableFormat
from quantizers.granularity import compact_shape
from quantizers.qtensor import QTensor
from quantizers.ranges.rules import AbsMax, MinMax
from quantizers.scales.scale import Scale

from ..plan import constants
from ..serving import SOURCES
from .device import OPTIONS, power_of_two, there
from .elements import known_of
from .launcher import Launch
from .rules import rule_of

KERNELS = "quantizers.kernels.gpu.triton_blocks"
#: elements that a program takes at once: about so many, at most, and a warp
_BLOCK, _MOST, _EACH = 2048, 2**14, 512
_Matrix = tuple[int, int, int]
_Strides = tuple[int, ...]


class Blocks(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout, as extremes.Whole does.

    dtype, strides   of the elements;  scales: shape of the scales
    outer            whether there is a second level of scales, or a constant in its place
    measure          the launch that finds the largest magnitude of all, where a scale needs it
    """

    dtype: torch.dtype
    strides: tuple[int, ...]
    format: Format
    block: tuple[int, ...]
    scales: tuple[int, ...]
    outer: bool
    measure: Launch | None
    launch: Launch
    programs: int

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor:
        """See whole.Planned; factor: None; running: nothing."""
        elements = torch.empty_strided(x.shape, self.strides, dtype=self.dtype, device=x.device)
        scale = torch.empty(self.scales, dtype=torch.float32, device=x.device)
        outer = ends = None
        if self.outer:
            outer = torch.empty([1] * x.dim(), dtype=torch.float32, device=x.device)
        if self.measure is not None:
            ends = torch.zeros(1, dtype=torch.int32, device=x.device)
        read = (x if t is None else t for t in (outer, ends, key))
        with there(x):
            if self.measure is not None and ends is not None:
                self.measure((self.programs, 1, 1), x, ends)
            self.launch((self.programs, 1, 1), x, elements, scale, *read)
        return QTensor(elements, scale, None, self.format, self.block, outer)


@lru_cache(maxsize=4096)
def whole(
    dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], spec: str
) -> Blocks | None:
    """For a quantizer's `spec`, without memory and factor.  None where no kernel serves: scales
    corrected or stochastic, outer ones but of a whole tensor in fp32, large blocks."""
    by = restored(spec)
    format, rounding = by.format, by.rounding
    if isinstance(format, TableFormat) or dtype not in SOURCES or 0 in shape:
        return None
    signed = type(by.range) is MinMax and format.signed
    rule = rule_of(by.scale, format)
    if rule is None or by.affine or not (type(by.range) is AbsMax or signed):
        return None
    block = by.granularity.block_shape(shape)
    like = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    given, result = _matrices(shape, strides), _matrices(shape, like)
    if given is None or result is None or any(b > 1 for b in block[:-2]):
        return None
    (batches, rows, terms), steps = given
    _, to = result
    across, step = (1, 1, *block)[-2:]
    down, deep = power_of_two(across), power_of_two(step)
    if rule.tops and max(down - across, deep - step) > 1:
        return None  # errors would be added up in another order
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if format.largest < 2.0**-126 or down * deep > _MOST or max(span, math.prod(shape)) >= 2**30:
        return None
    numbers, flags = known_of(format, rounding, constants(format))
    count, blocks = -(-rows // across), -(-terms // step)
    bands = min(max(_BLOCK // (down * deep), 1), power_of_two(count))
    adjacent = 1 if steps[2] == to[2] == 1 else 2 if steps[1] == to[1] == 1 else 0
    even = step == deep and terms % step == 0
    apart: _Strides = (*steps, *to)
    unit, tall = 1, rows
    if (adjacent == 1 and even) or (adjacent == 2 and across == 1):
        unit, tall, apart = _in_units(adjacent, rows, apart)
    sizes = tall, terms, across, step, count, blocks
    tile = {
        "ADJACENT": adjacent, "UNIT": unit, "WHOLE": even, "BANDS": bands, "ACROSS": down,
        "DEEP": deep, "num_warps": max(1, min(8, bands * down * deep // _EACH)), **OPTIONS,
    }  # fmt: skip
    over = by.scale.over is not None
    measure = Launch(KERNELS, "measure", (*sizes, *apart[:3]), **tile) if over else None
    launch = Launch(
        KERNELS, "quantize", (*sizes, *apart, *rule.numbers, rule.tops or (1.0,), *numbers),
        CANDIDATES=len(rule.tops) // 2, SQUARED=rule.squared, INVERSE=_has_inverse(by.scale),
        **rule.flags, **flags, **tile,
    )  # fmt: skip
    target = format.dtype if isinstance(format, IntFormat) else torch.float32
    scales = compact_shape(shape, block)
    programs = batches * -(-count // bands) * blocks
    return Blocks(target, like, format, block, scales, by.scale.outer, measure, launch, programs)


def _in_units(adjacent: int, rows: int, apart: _Strides) -> tuple[int, int, _Strides]:
    """16 where it divides all that a kernel is to know of, else 1, and in it: rows, where they are
    adjacent, and strides, 0 for those that are 1."""
    known = tuple(0 if at % 3 == 3 - adjacent else step for at, step in enumerate(apart))
    tall = rows if adjacent == 2 else 0
    if any(n % 16 for n in (*known, tall)):
        return 1, rows, known
    return 16, tall // 16 or rows, tuple(n // 16 for n in known)


def _matrices(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[_Matrix, _Matrix] | None:
    """(batches, rows, terms) of a tensor, and their strides; None where batches are not evenly
    apart."""
    outer = [(n, step) for n, step in zip(shape[:-2], strides[:-2], strict=True) if n > 1]
    if any(a[1] != b[0] * b[1] for a, b in itertools.pairwise(outer)):
        return None
    rows, terms = (1, 1, *shape)[-2:]
    down, along = (0, 0, *strides)[-2:]
    each = outer[-1][1] if outer else 0
    return (math.prod(shape[:-2]), rows, terms), (each, down, along)


def _has_inverse(scale: Scale) -> bool:
    """Whether scales are powers of two above 2^-128, and divide the elements."""
    alone = scale.over is None and not (scale.candidates or scale.reciprocal)
    return alone and scale.rule != "amax" and scale.format.min_exponent >= -127
