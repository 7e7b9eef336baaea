"""What holds every element of operands, from their formats alone."""

from __future__ import annotations

import torch

from quantizers import FloatFormat, IntFormat
from quantizers.formats import Format, bf16, fp16


def significant(*formats: Format | None) -> int | None:
    """Bits of significand that hold every element, its zero point taken off."""
    found = 0
    for own in formats:
        if isinstance(own, FloatFormat):
            found = max(found, own.mantissa + 1)
        elif isinstance(own, IntFormat):
            found = max(found, (own.high - own.low).bit_length())
        else:
            return None
    return found


def half(*formats: Format | None) -> torch.dtype | None:
    """The 16-bit dtype that holds every element, its zero point taken off; bf16 where both do."""
    digits = significant(*formats)
    for dtype, target in ((torch.bfloat16, bf16), (torch.float16, fp16)):
        if digits is not None and digits <= target.mantissa + 1:
            if all(_reaches(target, own) for own in formats):
                return dtype
    return None


def _reaches(target: FloatFormat, own: Format | None) -> bool:
    """Whether the target has numbers as large and as small."""
    if isinstance(own, IntFormat):
        return own.high - own.low <= target.largest
    return isinstance(own, FloatFormat) and (
        own.largest <= target.largest and own.smallest >= target.smallest
    )
