"""The error that a quantizer itself makes, against what unbiased rounding could make of the same
tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import QTensor, QuantizerLike

from .sampling import sampled
from .unbiased import neighbours

#: How many times the expected root-mean-square error of unbiased rounding a healthy error may be:
#: 1.6 bits.
SIZE = 3.0
#: How many times that error a healthy bias may be: of rounding toward one side it is 1.22.
BIAS = 0.7
#: What of a signal is less than its own rounding in fp32.
_NOTHING = 2.0**-20


class OwnError(NamedTuple):
    """An operand's own error in units of the expected error of unbiased rounding, root-mean-square.

    size    of the whole error; bias: of its mean part, see `own_error`
    leaves  "error", "bias" or "", where both are healthy
    """

    size: float
    bias: float
    leaves: str


def own_error(quantizer: QuantizerLike, x: Tensor, q: QTensor, limit: int) -> OwnError | None:
    """The error of q = quantizer(x), over at most `limit` elements; None where x is not finite.

    Each element lies between two neighbouring values of its format, over the range of the whole
    tensor: down <= x <= up.  Rounding that is unbiased has there the error variance
    e = (up - x)(x - down) and errors of at most up - down.  The error d = q - x leaves

    - as "error" where sum d^2 > SIZE^2 sum e + 10 max (up - down)^2.  Rounding to the nearest never
      does (its d^2 <= e), unbiased rounding once in 3 million tensors (Bernstein's inequality);
    - as "bias" where its part along 1, sign(x) and x is longer than BIAS sqrt(sum e) and than
      5.5 standard errors (again with Bernstein's term), and so is that of d less the error of
      nearest rounding: data that lie on a few values bias that, too.
    """
    low, high = neighbours(quantizer, x, q)
    some = sampled(x, q, low, high, limit=limit)
    own, found, down, up = (
        (t if isinstance(t, Tensor) else t.dequantize()).detach().double().flatten() for t in some
    )
    if own.numel() == 0 or not bool(torch.isfinite(own).all()):
        return None
    error, below, above = found - own, own - down, up - own
    outside = (below < 0) | (above < 0)  # a scale that was itself rounded down clips
    expected = torch.where(outside, torch.minimum(below.square(), above.square()), below * above)
    step = (up - down).abs()
    nothing = _NOTHING**2 * float(own.square().sum())
    scale = math.sqrt(float(expected.sum()) + nothing)
    if scale == 0:  # x is 0
        return OwnError(0.0, 0.0, "") if not bool(error.any()) else OwnError(math.inf, 0.0, "error")
    energy = float(error.square().sum())
    nearest = torch.where(above < below, above, -below)
    bias, significant = _bias(own, error, nearest, expected, step)
    allowed = SIZE**2 * scale**2 + 10 * float(step.max()) ** 2
    leaves = ""
    if not energy <= allowed:  # or not a number
        leaves = "error"
    elif significant and bias > BIAS * scale:
        leaves = "bias"
    return OwnError(math.sqrt(energy) / scale, bias / scale, leaves)


def _bias(
    x: Tensor, error: Tensor, nearest: Tensor, expected: Tensor, step: Tensor
) -> tuple[float, bool]:
    """The length of the error's part along 1, sign(x) and x, less that of nearest rounding where
    that is shorter; whether it is more than chance."""
    basis = _orthonormal([torch.ones_like(x), x.sign(), x])
    parts, rest = basis @ error, basis @ (error - nearest)
    length = min(float(parts.norm()), float(rest.norm()))
    variance = float((basis.square() @ expected).sum())
    largest = float((basis.abs() * step).max())
    return length, length > 5.5 * math.sqrt(variance) + 10 * largest


def _orthonormal(vectors: list[Tensor]) -> Tensor:
    """The vectors made orthonormal, less those that hardly differ from the ones before: (k, n)."""
    found: list[Tensor] = []
    for vector in vectors:
        length = float(vector.norm())
        for other in found:
            vector = vector - (vector @ other) * other
        if float(vector.norm()) > 0.05 * length:
            found.append(vector / vector.norm())
    return torch.stack(found)
