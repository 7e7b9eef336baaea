"""accumulate: what every accumulator gives, a term at a time; kernels and products equal it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, tensor_checks
from ..formats import Format, IntFormat, fp32
from ..rounding import round_to_float
from .alignment import aligned_sum
from .exactness import exact_sum
from .models import Accumulator, Aligned, Exact, Integer, Sequential
from .running import running_sum

Formats = tuple[Format | None, Format | None]


def accumulate(
    a: Tensor,
    b: Tensor,
    accumulator: Accumulator,
    start: Tensor | None = None,
    *,
    formats: Formats = (None, None),
    key: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """start + sum over k of a[..., k] b[..., k], as the accumulator computes it.

    a, b     (..., K), broadcast; floating point, the values exact in fp32; for `Integer` integers,
             of any dtype, up to 2^24
    start    (...), what the sum begins at; None: 0
    formats  those of a's and b's elements, whose smallest exponents `Aligned` takes for subnormal
             elements and zeros; None, and what is no floating-point format: fp32's.  That the
             values are theirs is not checked
    key      0-d int64, of the random bits of a stochastic rounding: those of `random_bits` of the
             result's shape, its key folded with twice k (and that plus 1 for a product's rounding,
             K and the chunk's number for k where a chunk is added)
    first    number of the result's first element among those that the random bits count, where it
             is a part of a larger result

    -> (...), fp32; int64 for `Integer`.  inf and NaN as IEEE's additions make them.

    Raises TypeError/ValueError for other operands, for a stochastic rounding without a key, and for
    formats that the unit does not take.
    """
    if not isinstance(accumulator, Accumulator):
        checks.refuse("accumulator", accumulator, "one of quantizers.accumulators'")
    whole = isinstance(accumulator, Integer)
    a, b = (_operand(name, x, whole) for name, x in (("a", a), ("b", b)))
    need = f"a, b: got {tuple(a.shape)} and {tuple(b.shape)}, need (..., K) and (..., K)"
    if not a.dim() or not b.dim() or a.shape[-1] != b.shape[-1]:
        raise ValueError(need)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError as error:
        raise ValueError(
            f"{need}, whose axes but the last broadcast; a matrix product is a.unsqueeze(-2), "
            "b.unsqueeze(-3)"
        ) from error
    total = a.new_zeros(a.shape[:-1])
    if start is not None:
        start = _operand("start", start, whole)
        if start.shape != total.shape:
            raise ValueError(f"start: got {tuple(start.shape)}, need {tuple(total.shape)}")
        total = total + start
    if isinstance(accumulator, Integer):
        return _integers(a, b, accumulator, total)
    if isinstance(accumulator, Exact):
        found = exact_sum(torch.cat([total.unsqueeze(-1), a * b], -1))
        return round_to_float(found, fp32).float()
    if isinstance(accumulator, Sequential):
        return running_sum(a, b, accumulator, total, key, first).float()
    return aligned_sum(a, b, accumulator, total, _taken(accumulator, formats)).float()


def _operand(name: str, x: Tensor, whole: bool) -> Tensor:
    """In fp64, or for an integer sum in int64."""
    tensor_checks.tensor(name, x)
    wide = x.to(torch.int64 if whole else torch.float64)
    if whole and name != "start" and x.numel() and not x.is_meta:
        if not torch.equal(wide.to(x.dtype), x) or wide.abs().max() > 2**24:
            raise ValueError(f"{name}: an integer accumulator sums integers up to 2^24")
    elif x.dtype == torch.float64 and not ((wide.float().double() == wide) | wide.isnan()).all():
        raise ValueError(f"{name}: got values that are not exact in fp32; round them first")
    return wide


def needs(accumulator: Accumulator, format: Format | None) -> str | None:
    """What elements an accumulator needs in the place of a format's, in words; None where it takes
    them.  format: None for elements that are not quantized."""
    if isinstance(accumulator, Integer) and not isinstance(format, IntFormat):
        return "integers"
    if isinstance(accumulator, Aligned) and accumulator.takes and format not in accumulator.takes:
        return " or ".join(map(str, accumulator.takes))
    return None


def _taken(accumulator: Aligned, formats: Formats) -> Formats:
    for own in formats:
        need = None if own is None else needs(accumulator, own)
        if need is not None:
            raise ValueError(f"formats: got {own}; {accumulator} multiplies {need}")
    return formats


def _integers(a: Tensor, b: Tensor, accumulator: Integer, total: Tensor) -> Tensor:
    half = 1 << (accumulator.bits - 1)
    for k in range(a.shape[-1]):
        total = total + a[..., k] * b[..., k]
        if accumulator.overflow == "saturate":
            total = total.clamp(-half, half - 1)
        else:
            total = ((total + half) & (2 * half - 1)) - half
    return total
