"""grad_weight on the bf16 units of a CPU, compiled as the fused quantizers are.

sums[item, row, tap, column] = sum over positions of a[item, position, row]
                               (b[item, position moved by the tap, column] - zero point)

Blocks of positions are added one after the other, in fp32, whatever thread has which tiles.
"""

from __future__ import annotations

from typing import Any

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
    thread,
    threads,
)

from .compiled_packing import (
    A_TILE,
    B_TILE,
    DOWN,
    KIND_BYTES,
    POSITIONS,
    pack_a,
    pack_b,
    rows_met,
)
from .compiled_tile import COLUMNS, ROWS, tile

#: places of the words: sizes (PART: rows that a thread packs at once), steps in elements, addresses
#: (0 for what there is not; BEYOND: is told 1 where units cannot hold an operand), memory for each
#: thread, then `Moves`
(
    ITEMS, POSITION, ROW, TAPS, COLUMN, PART, A_ITEM, A_STEP, B_ITEM, B_STEP, A, B, BLANK,
    ZERO_POINT, SCALE, RESULT, BEYOND, SCRATCH, SCRATCH_STEP, MOVES,
) = range(20)  # fmt: skip


def scratch(part: int) -> int:
    """Bytes that a thread needs."""
    return 64 + 8 * POSITIONS + 4 * ROWS * COLUMNS + B_TILE + A_TILE * -(-part // ROWS)


@function
def _added(found: Any, to: Any, columns: Any, first: Any, last: Any, scale: Any) -> None:
    """Sums onto those of the blocks before; times the scale after the last."""
    out, sums = f32_at(to), f32_at(found)
    for i in range(columns):
        v = sums[i]
        if not first:
            v = f32(out[i] + v)
        if last:
            v = f32(f32(v * DOWN) * scale)
        out[i] = v


def grad_weight(source: int, kind: int) -> Any:
    """The kernel for a of a source and b of a kind (`KIND_BYTES`) -> fp32, rows adjacent."""
    size, wide = SOURCE_BYTES[source], KIND_BYTES[kind]

    def body(data: Any) -> None:
        words, moves = i64_at(data), i64_at(data + 8 * MOVES)
        rows, taps, columns, part = words[ROW], words[TAPS], words[COLUMN], words[PART]
        positions, across = words[POSITION], (columns + COLUMNS - 1) // COLUMNS
        parts, panels = (rows + part - 1) // part, taps * across
        zero, scale = i32(0), f32(1.0)
        if words[ZERO_POINT] != 0:
            zero = i32_at(words[ZERO_POINT])[0]
        if words[SCALE] != 0:
            scale = f32_at(words[SCALE])[0]
        table = (words[SCRATCH] + words[SCRATCH_STEP] * thread() + 63) // 64 * 64
        sums = table + 8 * POSITIONS
        right = sums + 4 * ROWS * COLUMNS
        left = right + B_TILE
        units, beyond = words[ITEMS] * parts * panels, False
        at, end = units * thread() // threads(), units * (thread() + 1) // threads()
        while at < end:  # the panels of this thread among those of some rows of an item
            item, begin = at // panels // parts, at // panels % parts * part
            own = min(part, rows - begin)
            low, high = at % panels, min(panels, at % panels + end - at)
            at += high - low
            a = words[A] + size * (item * words[A_ITEM] + begin)
            b = words[B] + wide * item * words[B_ITEM]
            result = words[RESULT] + 4 * (item * rows + begin) * taps * columns
            for first in range(0, positions, POSITIONS):
                count, seen = min(i64(POSITIONS), positions - first), i64(-1)
                start = a + size * first * words[A_STEP]
                beyond |= pack_a(source, start, size * words[A_STEP], count, own, left)
                for panel in range(low, high):
                    tap, column = panel // across, panel % across * COLUMNS
                    if tap != seen:
                        step = wide * words[B_STEP]
                        rows_met(moves, tap, b, step, words[BLANK], first, count, table)
                        seen = tap
                    some = min(i64(COLUMNS), columns - column)
                    beyond |= pack_b(
                        kind, table, count, words[BLANK], wide * column, some, zero, right
                    )
                    for row in range(0, own, ROWS):
                        tile(left + row // ROWS * A_TILE, right, (count + 1) // 2, sums)
                        for r in range(min(i64(ROWS), own - row)):
                            place = result + 4 * (((row + r) * taps + tap) * columns + column)
                            _added(
                                sums + 4 * COLUMNS * r, place, some, first == 0,
                                first + count == positions, scale,
                            )  # fmt: skip
        if beyond:
            i32_at(words[BEYOND])[0] = i32(1)

    return kernel(body)
