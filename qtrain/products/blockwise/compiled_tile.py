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
#: what makes a signed byte an unsigned one, which the first operand of int8 units is
SHIFT = 128
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


def tile(unit: int, far: int) -> Any:
    """result[r, j] += fl32(start[j] + sum over k of a_r[k] b[k, j]) * fl24(scale[r] * others[j]).

    far: whether fp32 may not hold that fl24 as a normal number.  Arguments: addresses of four rows
    of a, of b and of start, how many terms (at least 1), and the addresses of scale (fp32, ROWS),
    of others (fp32, columns) and of the result (fp32, (ROWS, columns)).
    fp32 or fp64: a is fp32, b of the unit, (terms, columns); start is 0.  int8: a unsigned, b
    signed, (terms / 4, columns, 4), start int32; terms count in fours.
    """
    columns, integer = COLUMNS[unit], unit == INTEGER
    width = _LANES if integer else columns
    one_type = (_F32, _F64, _I32)[unit]
    vector, floats = ir.VectorType(one_type, width), ir.VectorType(_F32, width)
    vectors, size = columns // width, 8 if unit == DOUBLE else 4

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *rows, b, start, terms, scale, others, result = args

        def at(address: Any, bytes_: Any, type_: Any) -> Any:
            if isinstance(bytes_, int):
                bytes_ = ir.Constant(_I64, bytes_)
            return builder.inttoptr(builder.add(address, bytes_), type_.as_pointer())

        def load(address: Any, bytes_: Any, type_: Any) -> Any:
            return builder.load(at(address, bytes_, type_), align=1)

        def spread(one: Any) -> Any:
            undefined = ir.Constant(ir.VectorType(one.type, width), ir.Undefined)
            first = builder.insert_element(undefined, one, ir.Constant(_I32, 0))
            zeros = ir.Constant(ir.VectorType(_I32, width), [0] * width)
            return builder.shuffle_vector(first, undefined, zeros)

        def begin(v: int) -> Any:
            zeros = ir.Constant(vector, None)
            return load(start, 4 * width * v, vector) if integer else zeros

        starts = [begin(v) for v in range(vectors)]
        before, loop = builder.block, builder.append_basic_block("terms")
        after = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(_I64)
        index.add_incoming(ir.Constant(_I64, 0), before)
        sums = [builder.phi(vector) for _ in range(ROWS * vectors)]
        of_a = builder.mul(index, ir.Constant(_I64, 4))
        of_b = builder.add(b, builder.mul(index, ir.Constant(_I64, columns * size)))
        entries = [load(of_b, size * width * v, vector) for v in range(vectors)]
        ends = []
        for r, row in enumerate(rows):
            one = load(row, of_a, _I32 if integer else _F32)
            one = spread(one)
            one = builder.fpext(one, vector) if unit == DOUBLE else one
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
        for place, total in enumerate(ends):
            r, v = divmod(place, vectors)
            if integer:
                total = builder.sitofp(total, floats)
            elif unit == DOUBLE:
                total = builder.fptrunc(total, floats)
            one, other = spread(load(scale, 4 * r, _F32)), load(others, 4 * width * v, floats)
            part = _scaled(builder, total, one, other, far)
            old = load(result, 4 * width * place, floats)
            builder.store(builder.fadd(old, part), at(result, 4 * width * place, floats), align=1)
        return context.get_dummy_value()

    @intrinsic
    def added(
        typingctx: Any, a0: Any, a1: Any, a2: Any, a3: Any, b: Any, start: Any, terms: Any,
        scale: Any, others: Any, result: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 10), generate

    return added


def _scaled(builder: Any, total: Any, a: Any, b: Any, far: int) -> Any:
    """fl32(total * fl24(a * b)) of vectors of fp32: see `engines.scales`."""
    if not far:
        return builder.fmul(total, builder.fmul(a, b))
    lanes = total.type.count
    wide, bits = ir.VectorType(_F64, lanes), ir.VectorType(_I64, lanes)

    def all_of(number: int) -> Any:
        return ir.Constant(bits, [number] * lanes)

    exact = builder.fmul(builder.fpext(a, wide), builder.fpext(b, wide))
    n = builder.bitcast(exact, bits)
    odd = builder.and_(builder.lshr(n, all_of(29)), all_of(1))
    rounded = builder.and_(builder.add(builder.add(n, all_of(0xFFFFFFF)), odd), all_of(~0x1FFFFFFF))
    # the exponent of what is not finite is all ones, which adding could pass
    top = all_of(0x7FF << 52)
    finite = builder.icmp_unsigned("!=", builder.and_(n, top), top)
    scale = builder.bitcast(builder.select(finite, rounded, n), wide)
    return builder.fptrunc(builder.fmul(builder.fpext(total, wide), scale), total.type)
