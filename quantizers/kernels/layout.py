"""How a kernel walks a tensor: rows of adjacent elements, whatever the memory layout."""

from __future__ import annotations

from typing import NamedTuple

from ..granularity import compact_shape

#: axes of a walk besides the row
OUTER = 4


class Walk(NamedTuple):
    """The axes of a tensor, merged where they are adjacent, outermost first in memory.

    size           all elements
    row            elements of a row; they are adjacent in x and in the result
    index_step     what one step along the row adds to the logical index
    granule_step   what the next granule along the row, after `run` elements of each, adds to the
                   granule's number; 0 where a row lies in one
    outer          sizes, then strides in x, result, logical index and granule, of OUTER axes
    """

    size: int
    row: int
    index_step: int
    granule_step: int
    run: int
    outer: tuple[int, ...]


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor in C order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(strides[::-1])


def walk(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    result: tuple[int, ...],
    block: tuple[int, ...],
    indexed: bool,
    runs: bool = False,
) -> Walk | None:
    """The walk over x (shape, strides) and a result with strides `result`; None where a kernel
    cannot: ragged blocks, rows that are not adjacent in memory, too many axes.

    block     block size along each axis; granules are numbered in C order
    indexed   whether the kernel needs logical indices (for noise)
    runs      whether a row may hold several elements of each of several granules: blocks along the
              innermost axis may then be ragged
    """
    run = 1
    granules = contiguous(compact_shape(shape, block))
    logical = contiguous(shape) if indexed else (0,) * len(shape)
    axes: list[tuple[int, ...]] = []
    every = zip(shape, block, strides, result, logical, granules, strict=True)
    for size, b, *steps, granule in every:
        if runs and 1 < b < size and steps[0] == steps[1] == 1:
            run = b
            axes += ((size, *steps, granule),)
            continue
        if b < size and size % b:
            return None
        axes += ((max(size // b, 1), *(step * b for step in steps), granule),)
        axes += ((min(size, b), *steps, 0),)
    axes = sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: (-axis[1], -axis[2]))
    merged: list[list[int]] = []
    for axis in axes:
        if merged:
            outer = merged[-1]
            free = (1, 2) if not indexed else (1, 2, 3)
            each = run if axis is axes[-1] else 1
            same = outer[4] * each == axis[4] * axis[0]
            if same and all(outer[i] == axis[i] * axis[0] for i in free):
                merged[-1] = [outer[0] * axis[0], *axis[1:]]
                continue
        merged.append(list(axis))
    if not merged:
        merged = [[1, 1, 1, 0, 0]]
    size, x_step, result_step, index, granule = merged.pop()
    if x_step != 1 or result_step != 1 or granule not in (0, 1) or len(merged) > OUTER:
        return None
    count = size
    for outer_axis in merged:
        count *= outer_axis[0]
    if count >= 2**31:
        return None
    unit = [1, 0, 0, 0, 0]
    padded = [unit] * (OUTER - len(merged)) + merged
    flat = tuple(numbers[field] for field in range(5) for numbers in padded)
    return Walk(count, size, index, granule, run, flat)


def is_granule_major(path: Walk) -> bool:
    """Whether the granules follow one another along the walk, in their own order."""
    if path.granule_step:
        return False
    sizes, granules = path.outer[:OUTER], path.outer[4 * OUTER :]
    expected = 0
    for size, step in zip(reversed(sizes), reversed(granules), strict=True):
        if size == 1:
            continue
        if step != (expected or (step and 1)):
            return False
        expected = (expected or 1) * size if step else expected
    return True
