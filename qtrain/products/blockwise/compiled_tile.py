"""A tile of sums, four rows and some columns, that stays in registers while terms are added to it:
the loop that block sums spend their time in."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from quantizers.kernels.compiled import has

#: units: fp32, fp64, int8 (four terms an entry)
FLOAT, DOUBLE, INTEGER = 0, 1, 2
ROWS, COLUMNS = 4, (64, 32, 64)
#: bytes of a term in a's memory, in b's
BYTES = ((4, 4), (4, 8), (1, 1))
_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_LANES = 16

binding.initialize_native_asmparser()
_SUMS = ir.VectorType(_I32, _LANES)
#: sums + four products of unsigned and signed bytes in each lane
_ADD = ir.InlineAsm(
    ir.FunctionType(_SUMS, [_SUMS, _SUMS, _SUMS]), "vpdpbusd $3, $2, $0", "=v,0,v,v"
)


def has_int8() -> bool:
    """Whether there are units that add four products of bytes."""
    return has("avx512vnni")


def tile(unit: int) -> Any:
    """result[r, j] = start[j] + sum over k of a_r[k] b[k, j], k ascending.

    Arguments: addresses of four rows of a, of b and of start, how many terms (at least 1), and the
    address of the result, (ROWS, COLUMNS).  fp32 or fp64: a is fp32, b of the unit; start is 0.
    int8: a unsigned, b signed, (terms / 4, COLUMNS, 4), start and result int32; terms count in
    fours.
    """
    columns, integer = COLUMNS[unit], unit == INTEGER
    number = (_F32, _F64, _I32)[unit]
    width = _LANES if integer else columns
    vector, vectors = ir.VectorType(number, width), columns // width
    step_a, step_b = (size * (4 if integer else 1) for size in BYTES[unit])

    @intrinsic
    def added(
        typingctx: Any, a0: Any, a1: Any, a2: Any, a3: Any, b: Any, start: Any, terms: Any, to: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *rows, b, start, terms, to = args

            def at(address: Any, bytes_: Any, type_: Any) -> Any:
                if isinstance(bytes_, int):
                    bytes_ = ir.Constant(_I64, bytes_)
                return builder.inttoptr(builder.add(address, bytes_), type_.as_pointer())

            def spread(one: Any) -> Any:
                undefined = ir.Constant(vector, ir.Undefined)
                first = builder.insert_element(undefined, one, ir.Constant(_I32, 0))
                zeros = ir.Constant(ir.VectorType(_I32, width), [0] * width)
                return builder.shuffle_vector(first, undefined, zeros)

            def first(v: int) -> Any:
                if not integer:
                    return ir.Constant(vector, [0.0] * width)
                return builder.load(at(start, 4 * width * v, vector), align=4)

            starts = [first(v) for v in range(vectors)]
            before, loop = builder.block, builder.append_basic_block("terms")
            after = builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            index = builder.phi(_I64)
            index.add_incoming(ir.Constant(_I64, 0), before)
            sums = [builder.phi(vector) for _ in range(ROWS * vectors)]
            of_a = builder.mul(index, ir.Constant(_I64, step_a))
            of_b = builder.mul(index, ir.Constant(_I64, columns * step_b))
            entries = [
                builder.load(
                    at(b, builder.add(of_b, ir.Constant(_I64, width * step_b * v)), vector), align=4
                )
                for v in range(vectors)
            ]  # fmt: skip
            ends = []
            for r, row in enumerate(rows):
                one = builder.load(at(row, of_a, _I32 if integer else _F32), align=1)
                if unit == DOUBLE:
                    one = builder.fpext(one, _F64)
                one = spread(one)
                for v, entry in enumerate(entries):
                    total = sums[r * vectors + v]
                    if integer:
                        ends.append(builder.call(_ADD, [total, one, entry]))
                    else:  # products are exact, or are rounded with the sum
                        product = builder.fmul(one, entry, flags=["contract"])
                        ends.append(builder.fadd(total, product, flags=["contract"]))
            following = builder.add(index, ir.Constant(_I64, 1))
            for place, (phi, end) in enumerate(zip(sums, ends, strict=True)):
                phi.add_incoming(starts[place % vectors], before)
                phi.add_incoming(end, builder.block)
            index.add_incoming(following, builder.block)
            builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)
            builder.position_at_end(after)
            size = width * (8 if unit == DOUBLE else 4)
            for place, end in enumerate(ends):
                builder.store(end, at(to, size * place, vector), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return added
