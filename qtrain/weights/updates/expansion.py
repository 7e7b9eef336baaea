"""Dynamic range expansion: groups of numbers as powers of themselves that fill a format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantizers import FloatFormat, Granularity, Quantizer, Rounding, groups
from quantizers import e4m3 as _e4m3
from quantizers import nearest_even as _nearest_even

from ... import checks

#: steps of the exponent, 1 / 8, and its least: as COAT's kernels have it
_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """A state whose groups are expanded before they are quantized, and compressed again after:
    dynamic range expansion of COAT (Xi et al. 2024, arXiv 2410.19313).

        y = sign(x) (|x| / c)^k        c = sqrt(max |x| * min |x|) of the group, zeros left out
        k = floor(8 log2(reach) / log2(max / min)) / 8, at least 1 / 8
        x' = sign(q(y)) |q(y)|^(1 / k) c        q: the format under the scale max |y| / largest

    k is log_R(reach), R = max / min, rounded down to eighths, as the authors' kernels have it
    (NVlabs/COAT 80ec99f, fp8_adamw_expand_cuda_kernel.cu).  A group of one magnitude has k = 1.

    format      FloatFormat of the elements, or its name
    size        elements that follow one another in C order and share c and k
    reach       the largest ratio of magnitudes that the format is to hold; None: its largest over
                its smallest value; those kernels take 448^2 / 2 of e4m3, in place of 448 * 512
    rounding    of the elements, or its name

    c, k and powers are computed in fp64, so values repeat on one machine.
    """

    format: FloatFormat = _e4m3
    size: int = 128
    reach: float | None = None
    rounding: Rounding = _nearest_even

    if TYPE_CHECKING:  # the fields, of which some take a name

        def __init__(
            self,
            *,
            format: FloatFormat | str = ...,
            size: int = ...,
            reach: float | None = ...,
            rounding: Rounding | str = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        made = Quantizer(format=self.format, granularity=groups(self.size), rounding=self.rounding)
        if not isinstance(made.format, FloatFormat):
            checks.refuse("format", self.format, "a FloatFormat, whose values lie as powers do")
        object.__setattr__(self, "format", made.format)
        object.__setattr__(self, "rounding", made.rounding)
        if self.reach is not None:
            checks.number("reach", self.reach, low=1, positive=True)

    @property
    def quantizer(self) -> Quantizer:
        """What quantizes the expanded numbers."""
        return Quantizer(format=self.format, granularity=groups(self.size), rounding=self.rounding)

    @property
    def granularity(self) -> Granularity:
        return groups(self.size)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """c and k of every element's group: fp64, (groups, 1) each.  x: any shape."""
        rows = _rows(x, self.size).double().abs()
        top = rows.amax(1, keepdim=True)
        low = torch.where(rows > 0, rows, float("inf")).amin(1, keepdim=True)
        low = torch.where(top > 0, low, top)
        reach = self.reach or self.format.largest / self.format.smallest
        wanted = torch.log2(torch.tensor(reach, dtype=torch.float64, device=x.device))
        width = torch.log2(top / low)
        k = torch.where(width > 0, (_STEPS * wanted / width).floor() / _STEPS, 1.0)
        return (top * low).sqrt(), k.clamp(min=1 / _STEPS)

    def __call__(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """x: fp32, any shape -> the values that are kept, fp32.  key: for a stochastic rounding."""
        c, k = self.parts(x)
        rows = _rows(x, self.size)
        y = (rows.double().abs() / torch.where(c > 0, c, 1.0)) ** k
        flat = torch.copysign(y, rows).float().reshape(-1)[: x.numel()]
        q = self.quantizer(flat, key=key).dequantize().double()
        back = _rows(q, self.size)
        values = torch.copysign(back.abs() ** (1 / k) * c, back)
        return values.reshape(-1)[: x.numel()].view(x.shape).float()

    def __str__(self) -> str:
        reach = "" if self.reach is None else f" to {self.reach:g}"
        return f"{self.quantizer}, expanded{reach}"


def _rows(x: Tensor, size: int) -> Tensor:
    """The elements in rows of `size`; the last is filled with the last element."""
    flat = x.reshape(-1)
    short = -flat.numel() % size
    if short:
        flat = torch.cat([flat, flat[-1:].expand(short)])
    return flat.view(-1, size)
