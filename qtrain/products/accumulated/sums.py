"""Products of matrices by an accumulator: `quantizers.accumulate` of every row and column."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quantizers import FloatFormat, accumulate, fold, fp32, kernels
from quantizers.accumulators import Accumulator, Aligned, Exact, Integer
from quantizers.accumulators.alignment import least_exponent
from quantizers.devices.by_device import ByDevice, restored, spec
from quantizers.formats import Format
from quantizers.kernels import team
from quantizers.kernels.serving import MODES, imported

from .exact_sums import by_products
from .gpu.sums import by_kernels
from .numbers import Formats, constants_of, plain

#: values at a time of operands spread over rows and columns, in torch's own operations: 32 MiB
_SPREAD = 2**22


def accumulated(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None = None
) -> Tensor:
    """a: (*batch, i, k), b: (*batch, j, k) -> (*batch, i, j) fp32, or int64 as `Integer`'s.

    As `quantizers.accumulate` of a[..., :, None, :] and b[..., None, :, :].
    """
    return _accumulated(a, b, accumulator, formats, key)


def _spread(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-2], a.shape[-1])
    left, right = a.unsqueeze(-2).expand(shape), b.unsqueeze(-3).expand(shape)
    return _in_parts(left, right, accumulator, formats, key, 0)


def _in_parts(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None, first: int
) -> Tensor:
    """(..., k) each -> (...), cut along the first axes, so that parts follow one another."""
    shape = a.shape[:-1]
    if a.numel() <= _SPREAD or shape.numel() <= 1:
        return accumulate(a, b, accumulator, formats=formats, key=key, first=first)
    axis = next(axis for axis, size in enumerate(shape) if size > 1)
    each = max(_SPREAD * shape[axis] // a.numel(), 1)
    parts = []
    for x, y in zip(a.split(each, axis), b.split(each, axis), strict=True):
        parts.append(_in_parts(x, y, accumulator, formats, key, first))
        first += parts[-1].numel()
    return torch.cat(parts, axis)


_KERNELS = "qtrain.products.accumulated.compiled_sums"


def _compiled(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor | None:
    """The same by matrix products, or a kernel; None where none serves."""
    exact = by_products(a, b, accumulator, formats, key)
    if exact is not None:
        return exact
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns, terms = a.shape[-2], b.shape[-2], a.shape[-1]
    count = math.prod(batch)
    if 0 in (rows, columns, terms, count) or not kernels.serves(a, b):
        return None
    if any(x.dtype != torch.float32 for x in (a, b)) or count * rows * columns >= 2**31:
        return None
    own = imported(_KERNELS)
    if own is None:
        return None
    width = own.COLUMNS
    shape, steps = (*batch, rows, columns), (columns, 1)
    if columns * -(-rows // width) < rows * -(-columns // width):  # fuller tiles
        a, b, rows, columns, steps = b, a, columns, rows, (1, columns)
        formats = formats[1], formats[0]
    told = _told(accumulator, formats)
    if told is None:
        return None
    numbers, constants, chunk, promote = told
    kernel = kernels.made(_KERNELS, "sums", *numbers)
    if kernel is None:
        return None
    left, right = a.contiguous(), b.contiguous()
    result = left.new_empty(count * rows * columns, dtype=torch.float64)
    keys = _keys(accumulator, key, terms)
    share = -(-count * rows * -(-columns // width) // (4 * torch.get_num_threads()))
    words = (
        count, count // math.prod(a.shape[:-2]), count // math.prod(b.shape[:-2]), rows, columns,
        terms, left.data_ptr(), right.data_ptr(), result.data_ptr(), min(max(share, 8), 128), chunk,
        keys[0].data_ptr(), promote, constants.ctypes.data, keys[1].data_ptr(), *steps,
    )  # fmt: skip
    team.run(kernel.address, team.packed(*words), count * rows * columns * terms)
    kept = torch.int64 if isinstance(accumulator, Integer) else torch.float32
    return result.to(kept).view(shape)


def _keys(accumulator: Accumulator, key: Tensor | None, terms: int) -> tuple[Tensor, Tensor]:
    """Of the additions and of the products, numbered as `accumulate` numbers them."""
    none = torch.zeros(1, dtype=torch.int64, device="cpu")
    if not accumulator.noisy:
        return none, none
    if key is None:
        raise ValueError(f"key: got None; {accumulator} needs random bits")
    numbers = torch.arange(2 * terms + 1, device="cpu")
    spread = key.expand(numbers.shape).contiguous()
    return fold(spread, 2 * numbers), fold(spread, 2 * numbers + 1)


def _told(
    accumulator: Accumulator, formats: Formats
) -> tuple[tuple[int, ...], np.ndarray[tuple[int], np.dtype[np.float64]], int, int] | None:
    """The kernel's numbers, constants, chunk and promotion; None where there is no kernel."""
    own = imported(_KERNELS)
    if isinstance(accumulator, Exact):
        return None
    if isinstance(accumulator, Integer):
        if accumulator.overflow == "wrap":
            return None
        half = 2.0 ** (accumulator.bits - 1)
        return (own.SATURATED, 0, 0, 0, 0), np.array([-half, half - 1, *[0.0] * 12]), 0, 0
    if isinstance(accumulator, Aligned):
        least = [least_exponent(one) for one in formats]
        kept = FloatFormat(8, accumulator.kept)
        constants = [*constants_of(kept), *constants_of(fp32), 0.0, *least, accumulator.bits]
        return (
            (own.ALIGNED, 0, 1, 0, 0),
            np.array(constants),
            accumulator.terms,
            accumulator.promote or 0,
        )
    if accumulator.inside == "exact":
        return None
    rounding, product = accumulator.rounding, accumulator.product
    formats_of = [*constants_of(accumulator.format), *constants_of(product or fp32)]
    constants = [*formats_of, 2.0**rounding.random_bits, 0.0, 0.0, 0.0]
    odd = not plain(accumulator, formats)
    numbers = (
        own.SEQUENTIAL, MODES[rounding.mode], odd, product is not None, accumulator.compensated
    )  # fmt: skip
    return tuple(map(int, numbers)), np.array(constants), accumulator.chunk or 0, 0


def _launched(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor | None:
    """The same on a GPU."""
    found = by_kernels(a, b, accumulator, formats, key)
    return by_products(a, b, accumulator, formats, key) if found is None else found


def _empty(a: Tensor, b: Tensor, accumulator: Accumulator, *others: object) -> Tensor:
    """Of the result's shape and dtype, where there are no numbers."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    dtype = torch.int64 if isinstance(accumulator, Integer) else torch.float32
    return a.new_empty((*batch, a.shape[-2], b.shape[-2]), dtype=dtype)


_accumulated = ByDevice(_spread, cpu=_compiled, cuda=_launched, meta=_empty)


def _run(a: Tensor, b: Tensor, key: Tensor | None, told: str) -> Tensor:
    accumulator, formats = restored(told)
    return _accumulated.computed(a, b, accumulator, formats, key)


def _shapes(a: Tensor, b: Tensor, key: Tensor | None, told: str) -> Tensor:
    return _empty(a, b, *restored(told))


def _words(accumulator: Accumulator, a: Format | None, b: Format | None) -> str | None:
    return spec((accumulator, (a, b)))


# a constant of graphs, as `Engine.admitted_on`
_words._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _as_operation(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor:
    found: Tensor = torch.ops.qtrain.accumulated(a, b, key, _words(accumulator, *formats))
    return found


_accumulated.in_graphs(
    "qtrain::accumulated(Tensor a, Tensor b, Tensor? key, str told) -> Tensor",
    _run, _shapes, _as_operation, ("cpu", "cuda"),
)  # fmt: skip
