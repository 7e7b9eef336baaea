"""The sums and extremes of a batch-norm's channels, compiled as the fused quantizers are.

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

import numpy as np

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    f32,
    f32_at,
    function,
    i32,
    i32_at,
    i64,
    i64_at,
    kernel,
    load,
)

from .compiled_passes import before_relu, channel, share, sign

#: kernels are made, and cached on disk, for a number into these: the sum of (x - mean)^2 or
#: |x - mean|; the largest |x - mean| with its index; the largest and smallest x with their indices;
#: the sums of g and g * centered, and with the last two of centered^2 or sign(centered), where
#: centered = x - mean, g: grad_output, masked where the ReLU was off
STATISTICS = (
    "squares", "magnitudes", "largest", "extremes",
    "gradient", "gradient and squares", "gradient and signs",
)  # fmt: skip


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


def statistics(
    kind: int, source: int, planes: bool, grad_source: int, relu: bool, rounding: int
) -> Any:
    """STATISTICS[kind], per block, channel and lane.

    words: channels, width, lanes, x, starts, blocks, grad_output, mean, scale, shift, then the
    results: sums, as many as there are; or largest, its index, smallest, its index.
    """
    size, grad_size = SOURCE_BYTES[source], SOURCE_BYTES[grad_source]
    largest, smallest, gradient = kind in (2, 3), kind == 3, kind >= 4
    squares, magnitude, more = kind in (0, 5), kind == 2, kind >= 5

    def body(data: Any) -> None:
        words = i64_at(data)
        channels, width, lanes, x_base = words[0], words[1], words[2], words[3]
        starts, blocks, g_base = words[4], words[5], words[6]
        mean, scale, shift = words[7], words[8], words[9]
        groups, members = (channels, lanes) if planes else (i64(1), channels)
        start, end = share(blocks * groups)
        while start < end:
            block, low_group, high_group = _part(start, end, groups)
            start += high_group - low_group
            at, last = i64_at(starts)[block], i64_at(starts)[block + 1]
            place = 4 * groups * members * block
            for i in range(members * low_group, members * high_group):
                if largest:
                    f32_at(words[10] + place)[i] = f32(-np.inf)
                    i32_at(words[11] + place)[i] = i32(at)
                else:
                    f32_at(words[10] + place)[i] = f32(0.0)
                if gradient:
                    f32_at(words[11] + place)[i] = f32(0.0)
                if more:
                    f32_at(words[12] + place)[i] = f32(0.0)
                if smallest:
                    f32_at(words[12] + place)[i] = f32(np.inf)
                    i32_at(words[13] + place)[i] = i32(at)
            while at < last:
                run, column, taken = _segment(planes, at, last, width)
                for group in range(low_group, high_group):
                    part = place + 4 * members * group
                    first, second = words[10] + part, words[11] + part
                    third, fourth = words[12] + part, words[13] + part
                    m, s, b = channel(mean, scale, shift, group)
                    done, length = i64(0), taken if planes else channels
                    while done < length:
                        offset = width * (groups * run + group) + column + done
                        x, g = x_base + size * offset, g_base + grad_size * offset
                        index = i32(at + done)
                        count = min(members, length - done) if planes else channels
                        done += members
                        if largest:
                            for i in range(count):
                                v, best = load(source, x, i), f32_at(first)[i]
                                if magnitude:
                                    if not planes:
                                        m = f32_at(mean)[i]
                                    v = f32(abs(f32(v - m)))
                                own = i32(index + i32(i)) if planes else index
                                i32_at(second)[i] = own if v > best else i32_at(second)[i]
                                f32_at(first)[i] = v if v > best else best
                        elif gradient:
                            for i in range(count):
                                if not planes:
                                    m, s, b = channel(mean, scale, shift, i)
                                v = f32(load(source, x, i) - m)
                                w = load(grad_source, g, i)
                                if relu:
                                    w = before_relu(rounding, w, v, s, b)
                                f32_at(first)[i] += w
                                f32_at(second)[i] += f32(w * v)
                        else:
                            for i in range(count):
                                if not planes:
                                    m = f32_at(mean)[i]
                                v = f32(load(source, x, i) - m)
                                f32_at(first)[i] += f32(v * v) if squares else f32(abs(v))
                        if smallest:
                            for i in range(count):
                                v, best = load(source, x, i), f32_at(third)[i]
                                own = i32(index + i32(i)) if planes else index
                                i32_at(fourth)[i] = own if v < best else i32_at(fourth)[i]
                                f32_at(third)[i] = v if v < best else best
                        if more:
                            for i in range(count):
                                if not planes:
                                    m = f32_at(mean)[i]
                                v = f32(load(source, x, i) - m)
                                f32_at(third)[i] += f32(v * v) if squares else sign(v)
                at += taken

    return kernel(body)
