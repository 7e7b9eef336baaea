"""A quantizer in one kernel: from a tensor and its scale to elements, or with its range before."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from quantizers.formats import Format
from quantizers.memory import serves
from quantizers.qtensor import QTensor
from quantizers.ranges import AbsMax, MinMax, State
from quantizers.rounding import Rounding, nearest_even
from quantizers.running_range import Ema
from quantizers.settings import Settings

from . import team
from .plan import Plan, plan, plan_whole
from .serving import made


def whole(
    x: Tensor,
    by: Settings,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None = None,
) -> QTensor | None:
    """What a quantizer makes of x * factor.

    x: fp16, bf16 or fp32, any shape of which each granule is a run in memory; range: absmax,
    minmax, or an Ema of these that counts x in, with its `state`; factor: fp32, broadcastable to x,
    one granule only.  None where no kernel serves these.
    """
    rule, rounding = by.range, by.rounding
    read = [x]
    momentum, update, use = None, False, False
    if isinstance(rule, Ema) and rule.use == "current" and state is not None:
        for name in rule.memory:
            part = state[name]
            dtype = torch.int64 if name == "steps" else torch.float32
            if part.dtype is not dtype or part.numel() != 1:
                return None
            read.append(part)
        momentum, update, use = rule.momentum, training, not training or rule.train_on != "batch"
        rule = rule.rule
    if type(rule) not in (AbsMax, MinMax) or not by._plain:
        return None
    noise = key if rounding.random_bits else None
    if rounding.random_bits:
        if noise is None or noise.dtype is not torch.int64 or noise.dim():
            return None
        read.append(noise)
    if factor is not None:
        if factor.dtype is not torch.float32:
            return None
        read.append(factor)
    if not serves(*read):
        return None
    memory = [0, 0, 0, 0]
    if momentum is not None:
        for place in range(4):
            memory[place] = read[1 + place].data_ptr()
    found = plan_whole(
        x.dtype, x.shape, x.stride(), by.granularity, by.format, rounding, momentum,
        None if factor is None else factor.shape,
    )  # fmt: skip
    if found is None:
        return None
    block, compact, steps, shifted, _, path = found
    # empty_strided takes two thirds of the time of empty
    scale = torch.empty_strided(compact, steps, dtype=torch.float32, device=x.device)
    zero_point = None
    if shifted:
        zero_point = torch.empty_strided(compact, steps, dtype=torch.int32, device=x.device)
    slots = (ctypes.c_int32 * (2 * torch.get_num_threads()))()
    elements = _launched(
        "quantizers.kernels.compiled_whole", factor is not None, path, x, scale, zero_point,
        noise, rounding, factor, math.prod(compact), ctypes.addressof(slots),
        type(rule) is AbsMax, by.format.signed, update, use, *memory,
    )  # fmt: skip
    if elements is None:
        return None
    return QTensor(elements, scale, zero_point, by.format, block)


def elements(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding = nearest_even,
    key: Tensor | None = None,
) -> Tensor | None:
    """round(x / scale) + zero_point, clamped to the format: elements as a Quantizer makes them.

    x: fp16, bf16 or fp32; scale (fp32), zero_point (int32): compact, scale None for no division;
    key: 0-d int64.
    -> the format's integer dtype, or fp32 for a FloatFormat, in x's layout; None where no kernel
    serves x.
    """
    noise = key if rounding.random_bits else None
    if rounding.random_bits and (noise is None or noise.dim()):
        return None
    read = [x]
    for part, dtype in ((noise, torch.int64), (scale, torch.float32), (zero_point, torch.int32)):
        if part is not None:
            if part.dtype is not dtype:
                return None
            read.append(part)
    if not serves(*read):
        return None
    scaled = scale is not None
    path = plan(x.dtype, x.shape, x.stride(), block, format, rounding, scaled)
    if (
        path is None
        or (scale is not None and scale.shape != path.compact)
        or (zero_point is not None and zero_point.shape != path.compact)
    ):
        return None
    return _launched(
        "quantizers.kernels.compiled_elements", scaled, path, x, scale, zero_point, noise, rounding
    )


def _launched(
    file: str,
    number: int,
    path: Plan,
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    noise: Tensor | None,
    rounding: Rounding,
    factor: Tensor | None = None,
    *words: int,
) -> Tensor | None:
    """The elements that the kernel of a file makes, told more than all are in `words`; None where
    it cannot be had.  number: into its makers' last choice."""
    kernel = made(file, "quantize", *path.numbers, number)
    if kernel is None:
        return None
    elements = torch.empty_strided(x.shape, path.strides, dtype=path.dtype, device=x.device)
    places, held = [], []  # addresses, of what must live until the kernel has run
    for t in (scale, zero_point, noise, factor):
        if t is None:
            places.append(0)
            continue
        held.append(t.contiguous())
        places.append(held[-1].data_ptr())
    team.run(
        kernel.address,
        (
            *path.words, x.data_ptr(), elements.data_ptr(), *places, rounding.random_bits,
            ctypes.addressof(path.constants), *words,
        ),
        path.walk.size,
    )  # fmt: skip
    return elements
