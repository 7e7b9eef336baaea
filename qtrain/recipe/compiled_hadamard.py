"""The Hadamard transform of runs of neighbours, compiled as the fused quantizers are."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantizers.kernels.compiled import (
    SOURCE_BYTES,
    f32,
    f32_at,
    f64_at,
    i64,
    i64_at,
    kernel,
    load,
    thread,
    threads,
)

#: neighbours that one vector holds
_LANES = 16


def _near(lanes: int) -> Any:
    """The additions of neighbours up to lanes / 2 apart, of `lanes` fp32 numbers at an address."""
    vector, flags = (ir.VectorType(kind, lanes) for kind in (ir.FloatType(), ir.IntType(1)))
    places = ir.VectorType(ir.IntType(32), lanes)
    steps = [1 << n for n in range(lanes.bit_length() - 1)]

    @intrinsic
    def added(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], vector.as_pointer())
            v, undefined = builder.load(place, align=4), ir.Constant(vector, ir.Undefined)
            for step in steps:
                others = ir.Constant(places, [lane ^ step for lane in range(lanes)])
                upper = ir.Constant(flags, [bool(lane & step) for lane in range(lanes)])
                other = builder.shuffle_vector(v, undefined, others)
                v = builder.fadd(other, builder.select(upper, builder.fneg(v), v))
            builder.store(v, place, align=4)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return added


def rotated(source: int, size: int) -> Any:
    """`Hadamard.__call__`.

    words: lines, terms of one; the addresses of x, of the signs (fp32, size) and of the result
    (fp32, terms rounded up to a multiple of size); what sums are multiplied with, as the bits of
    fp64.
    """
    lanes = min(size, _LANES)
    near = _near(lanes)

    def body(data: Any) -> None:
        words = i64_at(data)
        scale = f32(f64_at(data)[5])
        terms, signs = words[1], f32_at(words[3])
        own = -(-terms // size)
        parts, v = words[0] * own, np.empty(size, np.float32)
        for part in range(parts * thread() // threads(), parts * (thread() + 1) // threads()):
            done = part % own * size
            start, length = part // own * terms + done, min(i64(size), terms - done)
            x, out = words[2] + SOURCE_BYTES[source] * start, f32_at(words[4] + 4 * part * size)
            if length == size:
                for i in range(size):
                    v[i] = f32(load(source, x, i) * signs[i])
            else:
                for i in range(size):
                    one = load(source, x, i) if i < length else f32(0.0)
                    v[i] = f32(one * signs[i])
            for i in range(0, size, lanes):
                near(v.ctypes.data + 4 * i)
            step = lanes
            while step < size:
                for i in range(0, size, 2 * step):
                    for j in range(i, i + step):
                        one, other = v[j], v[j + step]
                        v[j], v[j + step] = f32(one + other), f32(one - other)
                step *= 2
            for i in range(size):
                out[i] = f32(v[i] * scale)

    return kernel(body)
