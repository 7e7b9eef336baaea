"""Quantizer: what to do to a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from . import checks, tensor_checks
from .formats import Format
from .granularity import Granularity, expand
from .noise import needed
from .qtensor import QTensor
from .ranges.rules import RangeRule, State
from .ranges.running import Remembering
from .rounding import Rounding, nearest_even
from .scales.scale import Scale
from .scales.spellings import accepting_scale_format
from .settings import Settings
from .steps import as_real, measured, quantize


@accepting_scale_format
@dataclass(frozen=True, kw_only=True)
class Quantizer(Settings):
    """Range, scale, rounding, format: `quantizer(x) -> QTensor`.

    format            IntFormat, FloatFormat or TableFormat of the elements, or its name: "int4",
                      "e4m3", "nf4", ...
    granularity       which elements share a scale
    range             a range rule, or None: no scale, the elements are x rounded (a FloatFormat's
                      way, and the only one of those as wide as fp32, bf16 and tf32 among them)
    scale             how the range becomes a scale: Scale(e8m0, rule="rceil"), ...
    rounding          how elements are rounded, or its name: "stochastic", "stochastic(8)", ...
    straight_through  the gradient: "identity" passes everywhere; "inclusive" is zero where x lies
                      outside the representable interval; "strict" also at its ends

    symmetric:  scale = max(|low|, |high|) / format.largest;   elements = clamp(round(x / scale));
                other rules, constants and levels: see Scale
    affine:     low, high widened to include 0;  scale = (high - low) / (format.high - format.low);
                zero_point = format.low - round(low / scale), clamped to the format;
                elements = clamp(round(x / scale) + zero_point);  0 is exact

    A FloatFormat whose overflow is stated follows it instead of the clamp, and so does one without
    a range; a scale format too, which saturates else.  All by division, in fp32 (fp64 elements for
    fp64 x); high - low as the double of high / 2 - low / 2, which fits.  A zero range gives scale 0
    and elements that stand for 0; a non-finite element makes its granule's scale non-finite, and
    no other does.

    A range fills a format: one whose elements' products, or 2^31 of these added up, pass the
    largest fp32 number (largest > 2^48) is refused with a range, by ValueError.
    """

    if TYPE_CHECKING:  # the fields, of which some take a name

        def __init__(
            self,
            *,
            format: Format | str,
            granularity: Granularity = ...,
            range: RangeRule | None = ...,
            scale: Scale = ...,
            rounding: Rounding | str = ...,
            straight_through: Literal["identity", "inclusive", "strict"] = ...,
        ) -> None: ...

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
        factor: Tensor | None = None,
    ) -> QTensor:
        """x: fp16, bf16, fp32 or fp64, any shape and layout; key: 0-d int64, for a stochastic
        rounding: root_key(seed, step), another at each call (a layer has its own); factor: fp32,
        broadcastable to x: what is quantized is their product, rounded to fp32.  With
        memory, `state` is updated in place when `training`.

        Raises TypeError for other dtypes and kinds of argument, ValueError for a missing key or
        state.
        """
        tensor_checks.real(x)
        if self._noisy:
            needed(key, "stochastic rounding")
        if key is not None:
            tensor_checks.key(key)
        if state is not None:
            rule = self.range
            tensor_checks.state(state, rule.memory if isinstance(rule, Remembering) else (), x)
        checks.boolean("training", training)
        if factor is not None:
            tensor_checks.factor(factor, x.shape)
        return quantize(x, self, state, key, training, factor)

    def backward(self, grad: Tensor, x: Tensor, state: State | None) -> Tensor:
        """The straight-through gradient.  grad, x: the same shape -> grad's dtype."""
        if tensor_checks.real(grad, "grad").shape != tensor_checks.real(x).shape:
            raise ValueError(f"grad: got {checks.shown(grad)}, need x's shape {tuple(x.shape)}")
        if self.straight_through == "identity":
            return grad
        if self.granularity.of == "flat" and x.dim() != 1:
            return self.backward(grad.reshape(-1), x.reshape(-1), state).view(grad.shape)
        x = as_real(x)
        if self.range is None:
            low: Tensor | float = self.format.low
            high: Tensor | float = self.format.high
        else:
            block = self.granularity.block_shape(x.shape)
            scale, zero_point, outer = measured(x, self, block, state, training=False)
            scale = scale if outer is None else scale * outer
            shift = 0.0 if zero_point is None else zero_point.to(scale.dtype)
            low = expand((self.format.low - shift) * scale, x.shape, block)
            high = expand((self.format.high - shift) * scale, x.shape, block)
        strict = self.straight_through == "strict"
        inside = (x > low) & (x < high) if strict else (x >= low) & (x <= high)
        return grad * inside

    def __str__(self) -> str:
        parts = [str(self.format)]
        if self.range is not None:
            parts.append(str(self.granularity))
        if not self._plain:
            parts.append(f"scale {self.scale}")
        if self.rounding != nearest_even:
            parts.append(str(self.rounding))
        return ", ".join(parts)
