"""A tile of a matrix product on bf16 units (AVX512-BF16), the one loop that all time goes into."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

#: rows and columns of a tile; its sums fill half of the vector registers
ROWS, COLUMNS = 8, 32
_LANES = 16
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_SUMS, _PAIRS = ir.VectorType(_F32, _LANES), ir.VectorType(_I32, _LANES)

binding.initialize_native_asmparser()
#: sums + x[0] y[0] + x[1] y[1] in each lane.  LLVM's name for it changes its types over releases
_ADD = ir.InlineAsm(
    ir.FunctionType(_SUMS, [_SUMS, _PAIRS, _PAIRS]), "vdpbf16ps $3, $2, $0", "=v,0,v,v"
)


@intrinsic
def tile(typingctx: Any, a: Any, b: Any, pairs: Any, result: Any) -> Any:
    """result[r, c] = sum over p of a[p, r] b[p, c], in fp32, ascending.

    Addresses: a of (pairs, ROWS), b of (pairs, COLUMNS), each entry two bf16 numbers whose products
    are both added; result of fp32 (ROWS, COLUMNS).  pairs: at least 1.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, pairs, result = args

        def at(address: Any, bytes_: Any, type_: Any) -> Any:
            return builder.inttoptr(builder.add(address, bytes_), type_.as_pointer())

        vectors = COLUMNS // _LANES
        before, loop = builder.block, builder.append_basic_block("pairs")
        after = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(_I64)
        index.add_incoming(ir.Constant(_I64, 0), before)
        sums = [builder.phi(_SUMS) for _ in range(ROWS * vectors)]
        zeros = ir.Constant(_SUMS, [0.0] * _LANES)
        of_a = builder.mul(index, ir.Constant(_I64, 4 * ROWS))
        of_b = builder.mul(index, ir.Constant(_I64, 4 * COLUMNS))
        columns = []
        for v in range(vectors):
            place = builder.add(of_b, ir.Constant(_I64, 4 * _LANES * v))
            columns.append(builder.load(at(b, place, _PAIRS), align=64))
        ends = []
        for r in range(ROWS):
            one = builder.load(at(a, builder.add(of_a, ir.Constant(_I64, 4 * r)), _I32), align=4)
            first = builder.insert_element(
                ir.Constant(_PAIRS, ir.Undefined), one, ir.Constant(_I32, 0)
            )
            spread = builder.shuffle_vector(
                first, ir.Constant(_PAIRS, ir.Undefined), ir.Constant(_PAIRS, [0] * _LANES)
            )
            for v in range(vectors):
                ends.append(builder.call(_ADD, [sums[r * vectors + v], spread, columns[v]]))
        following = builder.add(index, ir.Constant(_I64, 1))
        for phi, end in zip(sums, ends, strict=True):
            phi.add_incoming(zeros, before)
            phi.add_incoming(end, builder.block)
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)
        builder.position_at_end(after)
        for i, end in enumerate(ends):
            place = ir.Constant(_I64, 4 * _LANES * i)
            builder.store(end, at(result, place, _SUMS), align=64)
        return context.get_dummy_value()

    four = types.int64, types.int64, types.int64, types.int64
    return types.void(*four), generate
