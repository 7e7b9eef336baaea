"""The sums behind every figure of a numeric error: one row from any number of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .report import Row


@dataclass
class Sums:
    """What a row needs, summed over every call of a layer, in fp64."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    power: float = 0.0
    error: float = 0.0
    magnitude: float = 0.0
    clipped: int = 0
    zeroed: int = 0
    saturated: int = 0
    nonfinite: int = 0
    low: float = math.inf
    high: float = -math.inf
    note: str = ""

    def add(self, x: Tensor, q: Tensor | QTensor) -> None:
        """x and what became of it, of the same shape: a quantized tensor or a plain one."""
        if x.numel() == 0:
            return
        if isinstance(q, QTensor):
            self.clipped += int(outside(x, q).sum())
            self.saturated += int(_saturated(q).sum())
            q = q.dequantize()
        x, q = x.detach().double(), q.detach().double()
        error = q - x
        self.elements += x.numel()
        self.signal += x.square().sum().item()
        self.noise += error.square().sum().item()
        self.dot += (x * q).sum().item()
        self.power += q.square().sum().item()
        self.error += error.sum().item()
        self.magnitude += x.abs().sum().item()
        self.zeroed += int(((x != 0) & (q == 0)).sum())
        self.nonfinite += int((~torch.isfinite(q)).sum())
        finite = x[torch.isfinite(x)]
        if finite.numel() > 0:
            self.low = min(self.low, finite.min().item())
            self.high = max(self.high, finite.max().item())

    def row(self, layer: str, role: str) -> Row:
        count = max(self.elements, 1)
        if math.isfinite(self.noise) and math.isfinite(self.signal):
            ratio = math.inf if self.noise == 0 else self.signal / self.noise
            sqnr = -math.inf if ratio == 0 else 10 * math.log10(ratio)
            norms = math.sqrt(self.signal) * math.sqrt(self.power)
            cosine = self.dot / norms if norms > 0 else float(self.signal == self.power)
        else:
            sqnr = cosine = math.nan
        gain = math.nan if math.isnan(sqnr) else 0.0
        if self.signal > 0 and not math.isnan(sqnr):
            gain = (self.dot - self.signal) / self.signal
        if self.magnitude > 0:
            relative = self.error / self.magnitude
        else:
            relative = 0.0 if self.error == 0 else math.nan
        none = 0.0 if self.elements == 0 else math.nan
        low, high = (self.low, self.high) if self.low <= self.high else (none, none)
        return Row(
            layer, role, sqnr, cosine, self.error / count, self.clipped / count,
            self.zeroed / count, self.nonfinite, low, high, self.elements, self.note,
            relative_bias=relative, saturated=self.saturated / count, gain=gain,
        )  # fmt: skip


def outside(x: Tensor, q: QTensor) -> Tensor:
    """Where x lies outside the interval its format and scale can represent."""
    if q.format is None:
        return torch.zeros_like(x, dtype=torch.bool)
    x = x.double()
    scale = q.spread(q.scale).double() if q.scale is not None else torch.ones((), device=x.device)
    if isinstance(q.format, IntFormat):
        shift = q.spread(q.zero_point) if q.zero_point is not None else 0
        low, high = (q.format.low - shift) * scale, (q.format.high - shift) * scale
        return (x < low - scale / 2) | (x > high + scale / 2)
    return x.abs() > q.format.largest * scale * (1 + 2.0**-20)  # the scale's own rounding


def _saturated(q: QTensor) -> Tensor:
    """Where an element is the format's largest or smallest; not where that stands for 0, as the
    lowest code does for all a ReLU cut off."""
    if q.format is None:
        return torch.zeros_like(q.elements, dtype=torch.bool)
    if isinstance(q.format, IntFormat):
        ends = (q.elements == q.format.low) | (q.elements == q.format.high)
        return ends & (q.dequantize() != 0)
    return q.elements.abs() >= q.format.largest
