"""Columns of a matrix put beside one another, in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

#: rows and columns that are turned at once
LANES = 16
_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


def turned(wide: bool) -> Any:
    """to[i, j] = x[j, i] of LANES x LANES numbers of fp32, whatever their bits; wide: to fp64.

    Arguments: address of x, bytes from row to row, and the same of the result.
    """
    vector = ir.VectorType(_F32, LANES)

    @intrinsic
    def turn(typingctx: Any, x: Any, x_step: Any, to: Any, to_step: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_step, to, to_step = args

            def at(address: Any, step: Any, row: int, kind: Any) -> Any:
                place = builder.add(address, builder.mul(step, ir.Constant(_I64, row)))
                return builder.inttoptr(place, kind.as_pointer())

            rows = [builder.load(at(x, x_step, row, vector), align=4) for row in range(LANES)]
            step = 1
            while step < LANES:  # squares of `step` off the diagonal change places
                low = [n if not n & step else LANES + n - step for n in range(LANES)]
                high = [n + step if not n & step else LANES + n for n in range(LANES)]
                masks = [ir.Constant(ir.VectorType(_I32, LANES), mask) for mask in (low, high)]
                for row in range(LANES):
                    if not row & step:
                        pair = rows[row], rows[row + step]
                        rows[row], rows[row + step] = (
                            builder.shuffle_vector(*pair, mask) for mask in masks
                        )
                step *= 2
            kind = ir.VectorType(_F64, LANES) if wide else vector
            for row, value in enumerate(rows):
                value = builder.fpext(value, kind) if wide else value
                builder.store(value, at(to, to_step, row, kind), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return turn
