"""The passes of a batch-norm, compiled as the fused quantizers are.

x is read in runs of `width` adjacent elements.  A run of a channels-last tensor is a row, with one
element of every channel; with `planes`, of a contiguous one, it is a plane, of one channel, and the
next run is the next channel's.

Sums are taken in fp32 within blocks of each channel's elements, in each of `lanes` places (one
where runs are rows) which take turns, so that neighbours are added at once.  The caller adds the
partial results (blocks, channels, lanes): they depend on the shape alone and not on the number of
threads, which share out the channels of each block (or, of rows, whole blocks).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    TARGET_BYTES,
    as_float,
    element,
    f32,
    f32_at,
    float_bits,
    function,
    halved,
    i32,
    i32_at,
    i64,
    i64_at,
    kernel,
    load,
    store,
    thread,
    threads,
    u8_at,
    u16_at,
    u32,
    widened,
)

#: kernels are made, and cached on disk, for numbers into these
TARGETS = ("float32", "float16", "bfloat16", "float32 of float16", "float32 of bfloat16")
#: what the output is rounded to before the ReLU
ROUNDINGS = ("float32", "float16", "bfloat16")
STATISTICS = ("squares", "magnitudes", "largest", "extremes")
_OUTPUT_BYTES = (4, 2, 2, 4, 4)


@function
def _brain(x: Any) -> Any:
    """float32 -> the bits of the nearest bf16 number, ties to even (in the low half)."""
    bits = float_bits(x)
    rounded = u32(u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16))
    return rounded if x == x else u32(0x7FC0)


@function
def _keep(target: Any, address: Any, i: Any, value: Any) -> None:
    if target == 0:
        f32_at(address)[i] = value
    elif target == 1:
        u16_at(address)[i] = halved(value)
    elif target == 2:
        u16_at(address)[i] = np.uint16(_brain(value))
    elif target == 3:
        f32_at(address)[i] = widened(halved(value))
    else:
        f32_at(address)[i] = as_float(u32(_brain(value) << u32(16)))


@function
def _share(count: Any) -> Any:
    """The first of this thread's part of `count` things, and the end."""
    return count * thread() // threads(), count * (thread() + 1) // threads()


@function
def _numbers(mean: Any, scale: Any, shift: Any, c: Any) -> Any:
    """A channel's."""
    return f32_at(mean)[c], f32_at(scale)[c], f32_at(shift)[c]


@function
def _segment(planes: Any, at: Any, last: Any, width: Any) -> Any:
    """Where element `at` of each channel lies: its row, or its image; its place in the run there;
    and how many elements of a channel, those before `last`, follow one another from it."""
    if planes:
        return at // width, at % width, min(width - at % width, last - at)
    return at, i64(0), i64(1)


@function
def _part(start: Any, end: Any, groups: Any) -> Any:
    """What a thread's share has in its first block: the block, the first of its groups, the end."""
    return start // groups, start % groups, min(groups, start % groups + end - start)


def statistics(source: int, kind: int, planes: bool) -> Any:
    """Per block, channel and lane, by STATISTICS[kind]: the sum of (x - mean)^2 or |x - mean|;
    the largest |x - mean| with its index; the largest and smallest x with their indices."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (12,), np.int64)
        channels, width, lanes, x_base = words[0], words[1], words[2], words[3]
        starts, blocks, mean = words[4], words[5], words[11]
        groups, members = (channels, lanes) if planes else (i64(1), channels)
        start, end = _share(blocks * groups)
        while start < end:
            block, low_group, high_group = _part(start, end, groups)
            start += high_group - low_group
            at, last = i64_at(starts)[block], i64_at(starts)[block + 1]
            place = 4 * groups * members * block
            for i in range(members * low_group, members * high_group):
                if kind <= 1:
                    f32_at(words[6] + place)[i] = f32(0.0)
                else:
                    f32_at(words[7] + place)[i] = f32(-np.inf)
                    i32_at(words[8] + place)[i] = i32(at)
                if kind == 3:
                    f32_at(words[9] + place)[i] = f32(np.inf)
                    i32_at(words[10] + place)[i] = i32(at)
            while at < last:
                run, column, taken = _segment(planes, at, last, width)
                for group in range(low_group, high_group):
                    part = place + 4 * members * group
                    total, high, high_at = words[6] + part, words[7] + part, words[8] + part
                    low, low_at = words[9] + part, words[10] + part
                    m = f32_at(mean)[group]
                    done, length = i64(0), taken if planes else channels
                    while done < length:
                        x = x_base + size * (width * (groups * run + group) + column + done)
                        index = i32(at + done)
                        count = min(members, length - done) if planes else channels
                        done += members
                        if kind <= 1:
                            for i in range(count):
                                if not planes:
                                    m = f32_at(mean)[i]
                                v = f32(load(source, x, i) - m)
                                f32_at(total)[i] += f32(v * v) if kind == 0 else f32(abs(v))
                        else:
                            for i in range(count):
                                v, best = load(source, x, i), f32_at(high)[i]
                                if kind == 2:
                                    if not planes:
                                        m = f32_at(mean)[i]
                                    v = f32(abs(f32(v - m)))
                                own = i32(index + i32(i)) if planes else index
                                i32_at(high_at)[i] = own if v > best else i32_at(high_at)[i]
                                f32_at(high)[i] = v if v > best else best
                        if kind == 3:
                            for i in range(count):
                                v, best = load(source, x, i), f32_at(low)[i]
                                own = i32(index + i32(i)) if planes else index
                                i32_at(low_at)[i] = own if v < best else i32_at(low_at)[i]
                                f32_at(low)[i] = v if v < best else best
                at += taken

    return kernel(body)


def normalize(source: int, target: int, relu: bool, planes: bool) -> Any:
    """(x - mean) * scale + shift, then ReLU, stored as TARGETS[target]."""
    size, target_size = SOURCE_BYTES[source], _OUTPUT_BYTES[target]

    def body(data: Any) -> None:
        words = numba.carray(data, (8,), np.int64)
        runs, width, channels = words[0], words[1], words[2]
        mean, scale, shift = words[5], words[6], words[7]
        start, end = _share(runs)
        for run in range(start, end):
            x, y = words[3] + size * width * run, words[4] + target_size * width * run
            m, s, b = _numbers(mean, scale, shift, run % channels)
            for i in range(width):
                if not planes:
                    m, s, b = _numbers(mean, scale, shift, i)
                v = f32(f32(f32(load(source, x, i) - m) * s) + b)
                if relu:
                    v = f32(0.0) if v < f32(0.0) else v
                _keep(target, y, i, v)

    return kernel(body)


@function
def _rounded(rounding: Any, x: Any) -> Any:
    """x rounded to ROUNDINGS[rounding]."""
    if rounding == 1:
        return widened(halved(x))
    if rounding == 2:
        return as_float(u32(_brain(x) << u32(16)))
    return x


def codes(source: int, target: int, relu: bool, rounding: int, planes: bool) -> Any:
    """(x - mean) * scale + shift, rounded, then ReLU, then quantized to the nearest element of
    the integer dtype TARGETS[target] of the quantizers' kernels, one range for all."""
    size, target_size = SOURCE_BYTES[source], TARGET_BYTES[target]

    def body(data: Any) -> None:
        words = numba.carray(data, (11,), np.int64)
        runs, width, channels = words[0], words[1], words[2]
        mean, scale, shift = words[5], words[6], words[7]
        step = f32_at(words[8])[0]
        step = f32(np.inf) if step == f32(0.0) else step
        zero = f32(0.0)
        if words[9] != 0:
            zero = f32(i32_at(words[9])[0])
        bounds = f32_at(words[10])
        constants = (bounds[0], bounds[1], f32(0), f32(0), f32(0), f32(0), f32(0), f32(0))
        start, end = _share(runs)
        for run in range(start, end):
            x, y = words[3] + size * width * run, words[4] + target_size * width * run
            m, s, b = _numbers(mean, scale, shift, run % channels)
            for i in range(width):
                if not planes:
                    m, s, b = _numbers(mean, scale, shift, i)
                v = _rounded(rounding, f32(f32(f32(load(source, x, i) - m) * s) + b))
                if relu:
                    v = f32(0.0) if v < f32(0.0) else v
                v = f32(v / step)
                v = element(target, 0, v, v, zero, u32(0), u32(0), f32(0), constants)
                store(target, y, i, v)

    return kernel(body)


@function
def _sign(x: Any) -> Any:
    positive = f32(1.0) if x > f32(0.0) else f32(0.0)
    return f32(-1.0) if x < f32(0.0) else positive


@function
def _masked(rounding: Any, grad: Any, centered: Any, scale: Any, shift: Any) -> Any:
    """The gradient before the ReLU of centered * scale + shift, rounded."""
    y = _rounded(rounding, f32(f32(centered * scale) + shift))
    return f32(0.0) if y <= f32(0.0) else grad


def backward_sums(
    source: int, grad_source: int, squares: bool, signs: bool, relu: bool, rounding: int,
    planes: bool,
) -> Any:  # fmt: skip
    """Per block, channel and lane: the sums of g, g * centered, and, as asked, centered^2 or
    sign(centered); centered = x - mean, g: grad_output, masked where the ReLU was off."""
    size, grad_size = SOURCE_BYTES[source], SOURCE_BYTES[grad_source]

    def body(data: Any) -> None:
        words = numba.carray(data, (13,), np.int64)
        channels, width, lanes, x_base = words[0], words[1], words[2], words[3]
        starts, blocks, g_base = words[4], words[5], words[6]
        mean, scale, shift = words[7], words[8], words[9]
        groups, members = (channels, lanes) if planes else (i64(1), channels)
        start, end = _share(blocks * groups)
        while start < end:
            block, low_group, high_group = _part(start, end, groups)
            start += high_group - low_group
            at, last = i64_at(starts)[block], i64_at(starts)[block + 1]
            place = 4 * groups * members * block
            for i in range(members * low_group, members * high_group):
                f32_at(words[10] + place)[i] = f32(0.0)
                f32_at(words[11] + place)[i] = f32(0.0)
                if squares or signs:
                    f32_at(words[12] + place)[i] = f32(0.0)
            while at < last:
                run, column, taken = _segment(planes, at, last, width)
                for group in range(low_group, high_group):
                    part = place + 4 * members * group
                    plain, product, extra = words[10] + part, words[11] + part, words[12] + part
                    m, s, b = _numbers(mean, scale, shift, group)
                    done, length = i64(0), taken if planes else channels
                    while done < length:
                        offset = width * (groups * run + group) + column + done
                        x, g = x_base + size * offset, g_base + grad_size * offset
                        count = min(members, length - done) if planes else channels
                        done += members
                        for i in range(count):
                            if not planes:
                                m, s, b = _numbers(mean, scale, shift, i)
                            v = f32(load(source, x, i) - m)
                            w = load(grad_source, g, i)
                            if relu:
                                w = _masked(rounding, w, v, s, b)
                            f32_at(plain)[i] += w
                            f32_at(product)[i] += f32(w * v)
                        if squares or signs:
                            for i in range(count):
                                if not planes:
                                    m = f32_at(mean)[i]
                                v = f32(load(source, x, i) - m)
                                if squares:
                                    v = f32(v * v)
                                else:
                                    v = _sign(v)
                                f32_at(extra)[i] += v
                at += taken

    return kernel(body)


def backward_input(
    source: int, grad_source: int, target: int, slope: bool, signs: bool, relu: bool,
    rounding: int, planes: bool,
) -> Any:  # fmt: skip
    """g * scale + slope * centered + offset, stored as TARGETS[target]; signs: slope multiplies
    sign(centered) instead."""
    size, grad_size, target_size = (
        SOURCE_BYTES[source],
        SOURCE_BYTES[grad_source],
        _OUTPUT_BYTES[target],
    )

    def body(data: Any) -> None:
        words = numba.carray(data, (11,), np.int64)
        runs, width, channels = words[0], words[1], words[2]
        mean, scale, shift, factor, offset = words[6], words[7], words[8], words[9], words[10]
        start, end = _share(runs)
        for run in range(start, end):
            x, g = words[3] + size * width * run, words[4] + grad_size * width * run
            y = words[5] + target_size * width * run
            c = run % channels
            m, s, b = _numbers(mean, scale, shift, c)
            k, o = f32_at(factor)[c], f32_at(offset)[c]
            for i in range(width):
                if not planes:
                    m, s, b = _numbers(mean, scale, shift, i)
                    k, o = f32_at(factor)[i], f32_at(offset)[i]
                v = f32(load(source, x, i) - m)
                w = load(grad_source, g, i)
                if relu:
                    w = _masked(rounding, w, v, s, b)
                w = f32(f32(w * s) + o)
                if signs:
                    v = _sign(v)
                if slope:
                    w = f32(w + f32(v * k))
                _keep(target, y, i, w)

    return kernel(body)


def add_relu(source: int) -> Any:
    """relu(x + y) of tensors of SOURCES[source] with the same layout, and, a byte each, where it
    was off."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (5,), np.int64)
        start, end = words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()
        x, y, result = words[1] + size * start, words[2] + size * start, words[3] + size * start
        off = words[4] + start
        for i in range(end - start):
            v = f32(load(source, x, i) + load(source, y, i))
            v = _rounded(source, v)
            below = v <= f32(0.0)
            _keep(source, result, i, f32(0.0) if below else v)
            u8_at(off)[i] = np.uint8(1) if below else np.uint8(0)

    return kernel(body)


def masked(source: int) -> Any:
    """The gradient, of SOURCES[source], but 0 where the ReLU was off."""
    size = SOURCE_BYTES[source]

    def body(data: Any) -> None:
        words = numba.carray(data, (4,), np.int64)
        start, end = words[0] * thread() // threads(), words[0] * (thread() + 1) // threads()
        grad, result, off = words[1] + size * start, words[2] + size * start, words[3] + start
        for i in range(end - start):
            v = load(source, grad, i)
            _keep(source, result, i, f32(0.0) if u8_at(off)[i] != 0 else v)

    return kernel(body)
