"""The sums behind every figure of a numeric error: one row from any number of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .pair import TensorPair
from .row import Row


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

    def add(self, pair: TensorPair, *, quantized: bool) -> None:
        """A tensor and what became of it; quantized: by a format that it can lie outside of."""
        if pair.x.numel() == 0:
            return
        x, value, error = pair.x, pair.value, pair.error
        if quantized:
            self.clipped += int(pair.outside.sum())
            self.saturated += int(pair.saturated.sum())
        signal = x.square().sum().item()
        self.elements += x.numel()
        self.signal += signal
        self.noise += error.square().sum().item()
        self.dot += (x * value).sum().item()
        self.power += value.square().sum().item()
        self.error += error.sum().item()
        self.magnitude += x.abs().sum().item()
        self.zeroed += int(((x != 0) & (value == 0)).sum())
        self.nonfinite += int((~torch.isfinite(value)).sum())
        finite = x if math.isfinite(signal) else x[torch.isfinite(x)]
        if finite.numel() > 0:
            low, high = finite.aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

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
