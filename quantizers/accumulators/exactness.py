"""Sums without a rounding, or with one that a later rounding does not see."""

from __future__ import annotations

import torch
from torch import Tensor

#: bits of a digit, and the exponent of the lowest one: below every product of two fp32 numbers
_DIGIT, _LOWEST, _COUNT = 24, -312, 25


def odd_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b, both fp64, rounded to odd: of the two nearest numbers the one whose last bit is 1.

    A rounding to at most 51 bits afterwards is that of the exact sum (Boldo and Melquiond 2008).
    """
    total = a + b
    other = total - a
    error = (a - (total - other)) + (b - other)  # exact (Knuth's TwoSum)
    bits = total.view(torch.int64)
    away = (error > 0) == (total > 0)
    odd = torch.where(away, bits + 1, bits - 1).view(torch.float64)
    inexact = (error != 0) & torch.isfinite(total) & (bits & 1 == 0)
    return torch.where(inexact, odd, total)


def exact_sum(terms: Tensor) -> Tensor:
    """(..., N), products of two fp32 numbers -> (...): their sum, rounded to odd as `odd_sum`'s is;
    both fp64.

    In digits of 24 bits, of which up to 2^29 add without a rounding.
    """
    rest = torch.where(torch.isfinite(terms), terms, 0.0)
    digits = []
    for place in reversed(range(_COUNT)):
        exponent = _LOWEST + _DIGIT * place
        part = (rest * 2.0**-exponent).trunc()
        rest = rest - part * 2.0**exponent
        digits.append(part.sum(-1).to(torch.int64))
    total = _of_digits(torch.stack(digits[::-1]))
    return torch.where(torch.isfinite(terms).all(-1), total, terms.sum(-1))


def _of_digits(digits: Tensor) -> Tensor:
    """(digits, ...) int64, the lowest first -> fp64."""
    negative = _carried(digits)[-1] < 0
    digits = _carried(torch.where(negative, -digits, digits))
    at = torch.arange(len(digits), device=digits.device).view(-1, *[1] * (digits.dim() - 1))
    top = torch.where(digits != 0, at, 0).amax(0, keepdim=True).clamp(min=2)
    first, second, third = (digits.gather(0, top - i).double() for i in range(3))
    rest = ((digits != 0) & (at < top - 2)).any(0, keepdim=True)
    unit = 2.0**_DIGIT
    value = odd_sum((first * unit + second) * unit, third + 0.5 * rest)
    exponent = (top - 2) * _DIGIT + _LOWEST
    value = torch.ldexp(value, exponent.double())[0]
    return torch.where(negative, -value, value)


def _carried(digits: Tensor) -> Tensor:
    """With one more, the only one below 0 or above 2^24 - 1."""
    found, carry = [], torch.zeros_like(digits[0])
    for digit in digits:
        digit = digit + carry
        carry = digit >> _DIGIT
        found.append(digit - (carry << _DIGIT))
    return torch.stack([*found, carry])
