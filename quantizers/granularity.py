"""Which elements share a scale: a tiling of the tensor by equal blocks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import checks, tensor_checks


@dataclass(frozen=True)
class Granularity:
    """A tiling: along each named axis blocks of the given size, along the rest `rest`.

    sizes   ((axis, size), ...); negative axes count from the end; the last block may be shorter
    rest    "whole": unnamed axes are not cut;  "each": every index has its own block
    of      "tensor": axes are the tensor's own;  "product": of the matrix that a product sees in an
            operand, whose last axis it sums over: see `blocks`;  "flat": of all elements in C
            order, as one axis: see `groups`
    """

    sizes: tuple[tuple[int, int | None], ...] = ()
    rest: Literal["whole", "each"] = "whole"
    of: Literal["tensor", "product", "flat"] = "tensor"

    def __post_init__(self) -> None:
        pairs = self.sizes
        if not isinstance(pairs, tuple) or any(
            not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs
        ):
            checks.refuse("granularity.sizes", pairs, "a tuple of (axis, block size)")
        for axis, size in pairs:
            checks.integer("axis", axis, low=-8, high=7)
            if size is not None:
                checks.integer("block size", size, low=1, high=2**31)
        axes = [axis for axis, _ in pairs]
        if len(set(axes)) != len(axes):
            raise ValueError(f"granularity: axis named twice in {axes}")
        checks.choice("rest", self.rest, ("whole", "each"))
        checks.choice("of", self.of, ("tensor", "product", "flat"))
        if self.of == "flat" and (axes != [-1] or pairs[0][1] is None):
            raise ValueError(f"granularity: got {pairs} of a flat tensor; use groups(128)")

    def seen(self, shape: Sequence[int | None]) -> Sequence[int | None]:
        """The shape of the tensor that is cut: of all elements in a row, where it is cut flat."""
        if self.of != "flat" or None in shape:
            return shape
        return torch.Size([math.prod(shape)])  # type: ignore[arg-type]

    def block_shape(self, shape: Sequence[int | None]) -> tuple[int, ...]:
        """Block size along each axis of a tensor of `shape`, at most the axis itself, at least 1;
        along the one axis of all its elements, where they are cut flat.

        An axis of unknown size (None) may be left whole (its block size is then 1) and must not
        be cut: ValueError.
        """
        if not isinstance(shape, torch.Size):
            tensor_checks.shape("shape", shape, unknown=True)
        shape = self.seen(shape)
        blocks: list[int | None] = [None if self.rest == "whole" else 1] * len(shape)
        seen = set()
        for axis, size in self.sizes:
            if not -len(shape) <= axis < len(shape):
                allowed = f"name an axis from {-len(shape)} to {len(shape) - 1}"
                raise ValueError(
                    f"granularity names axis {axis}, but the tensor has {len(shape)} axes "
                    f"(shape {tuple(shape)}); {allowed if shape else 'take per_tensor or groups()'}"
                )
            if axis % len(shape) in seen:
                raise ValueError(f"granularity names axis {axis % len(shape)} twice: {self.sizes}")
            seen.add(axis % len(shape))
            blocks[axis] = size
        for axis, (size, block) in enumerate(zip(shape, blocks, strict=True)):
            if size is None and block is not None:
                raise ValueError(
                    f"granularity {self} cuts axis {axis}, whose size changes from batch to batch: "
                    f"a range with memory, or a learned one, needs granules that stay; leave that "
                    f"axis whole"
                )
        return tuple(
            1 if size is None else max(size, 1) if block is None else max(min(block, size), 1)
            for size, block in zip(shape, blocks, strict=True)
        )

    @property
    def square(self) -> bool:
        """Whether a block of a matrix is one of its transpose, too."""
        return dict(self.sizes).get(-2, 1) == dict(self.sizes).get(-1, 1)

    def __str__(self) -> str:
        if self.of == "product":
            kept, along = (dict(self.sizes).get(axis, 1) for axis in (-2, -1))
            if along is None:
                return "per row of the product" if kept == 1 else f"per {kept} rows of the product"
            return f"blocks of {along} along the sum" + (f", {kept} across" if kept != 1 else "")
        if self.of == "flat":
            return f"groups of {self.sizes[0][1]}"
        if not self.sizes:
            return "per tensor" if self.rest == "whole" else "per element"
        if self.rest == "whole" and all(size == 1 for _, size in self.sizes):
            return "per axis " + ",".join(str(axis) for axis, _ in self.sizes)
        return "blocks " + ",".join(f"{axis}:{size or 'all'}" for axis, size in self.sizes)


per_tensor = Granularity()
per_sample = Granularity(((0, 1),))
per_token = Granularity(((-1, None),), rest="each")


def per_axis(*axes: int) -> Granularity:
    """A scale for each index along `axes`."""
    return Granularity(tuple((axis, 1) for axis in axes))


def per_channel() -> Granularity:
    """A scale for each output channel of a weight, seen as (groups, out, in, *kernel):
    per_axis(0, 1).  (per_axis(0) is a scale for each group: one in all, where there are none.)"""
    return per_axis(0, 1)


def blocks(size: int | None, across: int = 1) -> Granularity:
    """Blocks along the sum: `size` neighbours that a product adds up, of `across` neighbours that
    it keeps, share a scale.  blocks(32) is MX's, blocks(16, 16) a tile that serves a weight in both
    of its products, blocks(None) a scale for each index that is kept (a token, a channel).

    In a recipe the product says which axes these are, in each of its operands, see
    `qtrain.products.matrices`: all leading axes count as one, in C order; a convolution's channels
    are cut at each position of its kernel.  A quantizer on its own takes the last axis for the sum
    and the one before for what is kept.  The last block of an axis may be shorter.
    """
    return Granularity(
        (((-1, size),) if across == 1 else ((-2, across), (-1, size))), rest="each", of="product"
    )


def groups(size: int) -> Granularity:
    """Groups of `size` elements that follow one another in C order, whatever the axes, share a
    scale; the last may be shorter.  groups(128), as optimizers keep their states (Dettmers et al.
    2021, arXiv 2110.02861; COAT, arXiv 2410.19313).

    A QTensor then has one axis of scales and one size in `block`.  Not for operands of a product,
    whose sums run through groups: `blocks` are cut along these.
    """
    return Granularity(((-1, size),), rest="each", of="flat")


def per_block(sizes: Mapping[int, int], *, rest: Literal["whole", "each"] = "each") -> Granularity:
    """The spelling of before: blocks of the given sizes along axes of the tensor; the other axes
    are cut into single indices, or left whole.

    DeprecationWarning: `blocks` are cut along the sum in every operand of a recipe, a `Granularity`
    of sizes along axes of a tensor.
    """
    if not isinstance(sizes, Mapping):
        checks.refuse("sizes", sizes, "a mapping from axis to size, {-1: 32}")
    made = Granularity(tuple(sizes.items()), rest=rest)
    warnings.warn(
        f"per_block is deprecated; give blocks({sizes.get(-1, 32)}), blocks along the sum of a "
        f"product, or {made!r}, blocks along the tensor's own axes",
        DeprecationWarning,
        stacklevel=2,
    )
    return made


def compact_shape(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """Number of blocks along each axis; an empty axis counts one block, so that it has a scale."""
    return tuple(max(-(-size // b), 1) for size, b in zip(shape, block, strict=True))


def is_plain(shape: Sequence[int], block: Sequence[int]) -> bool:
    """Whether every axis is either whole or cut into single indices, so that scales broadcast."""
    return all(b == 1 or b >= size for size, b in zip(shape, block, strict=True))


def expand(compact: Tensor, shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """Per-block values repeated over their elements.  compact_shape -> broadcastable to `shape`."""
    for axis, (size, b) in enumerate(zip(shape, block, strict=True)):
        if 1 < b < size:
            index = torch.arange(size, device=compact.device) // b
            compact = compact.index_select(axis, index)
    return compact


def blocked(x: Tensor, block: Sequence[int]) -> tuple[Tensor, list[int]]:
    """x viewed so that some axes run within the blocks: (view, those axes).

    Ragged tails are padded with the axis' last element, which changes no minimum or maximum.
    Reducing the returned axes with keepdim=False after moving gives compact_shape.
    """
    shape, inner = [], []
    for axis, (size, b) in enumerate(zip(tuple(x.shape), block, strict=True)):
        count = -(-size // b)
        if count * b != size:
            index = torch.arange(count * b, device=x.device).clamp(max=size - 1)
            x = x.index_select(axis, index)
        shape.append(count)
        inner.append(len(shape))
        shape.append(b)
    return x.reshape(shape), inner
