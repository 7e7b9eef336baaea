"""Quantizer: what to do to a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from . import checks, kernels, traced
from .formats import FloatFormat, Format, IntFormat, Overflow, fp32
from .granularity import Granularity, compact_shape, expand, per_tensor
from .noise import random_bits
from .numbers import divided
from .qtensor import QTensor as QTensor
from .ranges import AbsMax, Ema, MinMax, RangeRule, State, Stateless, absmax, check_rule
from .rounding import Rounding, nearest_even, round_to_float


class Off:
    """The quantizer that does nothing: the elements are x itself, in its own dtype."""

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        checks.instance("x", x, Tensor, "a tensor")
        return QTensor(x, block=tuple(max(size, 1) for size in x.shape))

    def __repr__(self) -> str:
        return "OFF"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Off)

    def __hash__(self) -> int:
        return hash(Off)


OFF = Off()

#: what a range may scale to: 2^31 products of two such elements add up within fp32
_LARGEST = 2.0**48


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Range, scale, rounding, format: `quantizer(x) -> QTensor`.

    format            IntFormat or FloatFormat of the elements
    granularity       which elements share a scale
    range             a range rule, or None: no scale, the elements are x rounded (a FloatFormat's
                      way, and the only one of those as wide as fp32, bf16 and tf32 among them)
    scale_format      format of the scale: fp32, e8m0 (power of two), e4m3, ...
    scale_rounding    how the scale is rounded to it (ceil: up, floor: down, nearest_even)
    rounding          how elements are rounded
    straight_through  the gradient: "identity" passes everywhere; "inclusive" is zero where x lies
                      outside the representable interval; "strict" also at its ends

    symmetric:  scale = max(|low|, |high|) / format.largest;   elements = clamp(round(x / scale))
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

    format: Format
    granularity: Granularity = per_tensor
    range: RangeRule | None = absmax
    scale_format: FloatFormat = fp32
    scale_rounding: Rounding = nearest_even
    rounding: Rounding = nearest_even
    straight_through: Literal["identity", "inclusive", "strict"] = "identity"
    _spec: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind, need in (
            ("format", IntFormat | FloatFormat, "an IntFormat or a FloatFormat"),
            ("granularity", Granularity, "a Granularity such as per_tensor"),
            ("scale_format", FloatFormat, "a FloatFormat"),
            ("rounding", Rounding, "a Rounding such as nearest_even"),
            ("scale_rounding", Rounding, "a Rounding such as nearest_even"),
        ):
            if not isinstance(getattr(self, name), kind):
                checks.refuse(name, getattr(self, name), need)
        if self.range is None and isinstance(self.format, IntFormat):
            raise ValueError(
                f"range: got None, but {self.format} needs a range rule such as absmax"
            )
        if self.range is not None:
            check_rule("range", self.range)
            if self.format.largest > _LARGEST:
                raise ValueError(
                    f"range: got {self.range!r} for {self.format}, whose largest value of "
                    f"{self.format.largest:.3g} would make the sums of a product overflow fp32; "
                    f"pass range=None (elements are x rounded to {self.format}), or a format that "
                    f"reaches 2^48 at most, by fewer exponent bits or a larger bias"
                )
        if self.range is None and self.granularity != per_tensor:
            raise ValueError(
                "granularity: without a range there are no scales; leave it per_tensor"
            )
        if self.scale_rounding.random_bits:
            raise ValueError("scale_rounding: scales are not rounded stochastically")
        checks.choice(
            "straight_through", self.straight_through, ("identity", "inclusive", "strict")
        )
        batch_range = isinstance(self.range, Ema) and self.range.train_on == "batch"
        if self.straight_through != "identity" and batch_range:
            raise ValueError(
                f"straight_through: {self.straight_through!r} needs one range for training and "
                f"evaluation; give the range train_on='running'"
            )
        object.__setattr__(self, "_spec", traced.spec(self))

    @property
    def by_extremes(self) -> bool:
        """Whether a tensor's scale follows from its smallest and largest elements alone."""
        rule = self.range.rule if isinstance(self.range, Ema) else self.range
        return self.granularity == per_tensor and isinstance(rule, AbsMax | MinMax)

    def init_state(self, shape: Sequence[int | None]) -> State:
        """State for tensors of `shape` (None: a size that changes); {} without memory."""
        checks.shape("shape", shape, unknown=True)
        if self.range is None or not hasattr(self.range, "init_state"):
            return {}
        if isinstance(self.range, Stateless):
            return {}
        block = self.granularity.block_shape(shape)
        return self.range.init_state(compact_shape([s or 1 for s in shape], block))

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
        rounding; factor: fp32, broadcastable to x: what is quantized is their product, rounded to
        fp32.  With memory, `state` is updated in place when `training`.

        Raises TypeError for other dtypes and kinds of argument, ValueError for a missing key or
        state.
        """
        checks.real(x)
        if self.rounding.random_bits and key is None:
            raise ValueError("stochastic rounding needs a key: pass key=root_key(seed, ...)")
        if key is not None:
            checks.key(key)
        if state is not None:
            checks.state(state, self.range.memory if isinstance(self.range, Ema) else ())
        checks.boolean("training", training)
        if factor is not None:
            checks.factor(factor, x.shape)
        return self.of_layer(x, state, key, training, factor)

    def of_layer(
        self,
        x: Tensor,
        state: State | None,
        key: Tensor | None,
        training: bool,
        factor: Tensor | None = None,
    ) -> QTensor:
        """A call whose arguments beside x a layer made itself, at every step: not looked at."""
        whole = self._traced if torch.compiler.is_compiling() else self._fused
        found = whole(x, state, key, training, factor)
        if found is not None:
            return found
        x = checks.real(x).detach()  # no graph grows through elements, scales or the state
        x = x if factor is None else x * factor
        block = self.granularity.block_shape(x.shape)
        scale = zero_point = None
        if self.range is not None:
            scale, zero_point = self._scale(x, block, state, training)
        overflow = self._overflow
        elements = kernels.elements(
            x, scale, zero_point, block, self.format, self.rounding, key, overflow
        )
        if elements is None:
            elements = self._elements(as_real(x), scale, zero_point, block, key, overflow)
        return QTensor(elements, scale, zero_point, self.format, block)

    @property
    def _overflow(self) -> Overflow | None:
        """What `round_to_float` is told."""
        # a range may clip, and a scale rounded down does: that must not make infinities
        if isinstance(self.format, FloatFormat) and self.range is not None:
            return self.format.overflow or "saturate"
        return None

    def _traced(
        self,
        x: Tensor,
        state: State | None,
        key: Tensor | None,
        training: bool,
        factor: Tensor | None,
    ) -> QTensor | None:
        """By one operation of a compiled graph, or None."""
        checks.real(x)
        if x.device.type != "cpu" or self._spec is None:
            return None
        running: list[Tensor] = []
        if state:
            if not isinstance(self.range, Ema):
                return None
            running = [state["low"], state["high"], state["share"], state["steps"]]
        elements, scale, zero_point = torch.ops.quantizers.quantize(
            x.detach(), key, factor, running, training, self._spec
        )
        affine = isinstance(self.format, IntFormat) and not self.format.symmetric
        return QTensor(
            elements,
            None if self.range is None else scale,
            zero_point if affine else None,
            self.format,
            self.granularity.block_shape(x.shape),
        )

    def _fused(
        self,
        x: Tensor,
        state: State | None,
        key: Tensor | None,
        training: bool,
        factor: Tensor | None,
    ) -> QTensor | None:
        """By a single kernel, or None."""
        rule, running = self.range, None
        if isinstance(rule, Ema) and state is not None:
            use = not (training and rule.train_on == "batch")
            running = kernels.Running(
                state["low"], state["high"], state["share"], state["steps"],
                rule.momentum, training, use,
            )  # fmt: skip
            rule = rule.rule
        # `in`: the same object is equal at once
        if type(rule) not in (AbsMax, MinMax) or self.scale_format not in (fp32,):
            return None
        found = kernels.whole(
            x, self.granularity, type(rule) is AbsMax, running, self.format, self.rounding, key,
            self._overflow, factor,
        )  # fmt: skip
        if found is None:
            return None
        elements, scale, zero_point, block = found
        return QTensor(elements, scale, zero_point, self.format, block)

    def _elements(
        self,
        x: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        block: tuple[int, ...],
        key: Tensor | None,
        overflow: Overflow | None,
    ) -> Tensor:
        """What `kernels.elements` computes, by torch's own operations."""
        bits = None if key is None or not self.rounding.random_bits else random_bits(key, x.shape)
        scaled = x
        if scale is not None:
            # x / inf = 0: where the scale is zero, so is every element, without a branch
            divisor = torch.where(scale == 0, float("inf"), scale)
            scaled = x / expand(divisor, x.shape, block)
        if isinstance(self.format, FloatFormat):
            return round_to_float(
                scaled, self.format, self.rounding, bits, overflow=overflow, source=x
            )
        elements = self.rounding(scaled, bits)
        if zero_point is not None:
            elements = elements + expand(zero_point, x.shape, block)
        elements = elements.clamp_(self.format.low, self.format.high)
        # what a NaN is as an integer depends on the processor; the scale tells of it
        return elements.nan_to_num_(0.0).to(self.format.dtype)

    def _scale(
        self, x: Tensor, block: tuple[int, ...], state: State | None, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert self.range is not None
        if x.dtype == torch.float64:  # what is finite there has a finite range in fp32
            most = torch.finfo(torch.float32).max
            x = torch.where(torch.isinf(x), x, x.clamp(-most, most))
        low, high = self.range(x, block, state=state, training=training)
        affine = isinstance(self.format, IntFormat) and not self.format.symmetric
        if affine:
            assert isinstance(self.format, IntFormat)
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
            half = high * 0.5 - low * 0.5  # in halves, whose difference passes no end of fp32
            scale = divided(half, (self.format.high - self.format.low) / 2)
        else:
            if self.format.signed:
                width = torch.maximum(low.abs(), high.abs())
            else:  # low is clipped, but a non-finite one must still be seen
                width = torch.where(torch.isfinite(low), high.clamp(min=0.0), float("nan"))
            scale = divided(width, self.format.largest)
            if self.format.largest < 1:  # what passes fp32 here is no infinity
                beyond = torch.isinf(scale) & torch.isfinite(width)
                scale = torch.where(beyond, torch.finfo(scale.dtype).max, scale)
        if self.scale_format != fp32:
            limit = self.scale_format.overflow or "saturate"
            rounded = round_to_float(scale, self.scale_format, self.scale_rounding, overflow=limit)
            scale = torch.where(scale == 0, scale, rounded)
        if not affine:
            return scale, None
        assert isinstance(self.format, IntFormat)
        divisor = torch.where(scale == 0, float("inf"), scale)
        zero_point = self.format.low - torch.round(low / divisor)
        zero_point = zero_point.clamp(self.format.low, self.format.high)
        return scale, torch.nan_to_num(zero_point).to(torch.int32)

    def backward(self, grad: Tensor, x: Tensor, state: State | None) -> Tensor:
        """The straight-through gradient.  grad, x: the same shape -> grad's dtype."""
        if checks.real(grad, "grad").shape != checks.real(x).shape:
            raise ValueError(f"grad: got {checks.shown(grad)}, need x's shape {tuple(x.shape)}")
        if self.straight_through == "identity":
            return grad
        x = as_real(x)
        if self.range is None:
            low: Tensor | float = -self.format.largest if self.format.signed else 0.0
            high: Tensor | float = self.format.largest
        else:
            block = self.granularity.block_shape(x.shape)
            scale, zero_point = self._scale(x, block, state, training=False)
            lowest = self.format.low if isinstance(self.format, IntFormat) else None
            bottom = lowest if lowest is not None else -self.format.largest * self.format.signed
            shift = 0.0 if zero_point is None else zero_point.to(scale.dtype)
            low = expand((bottom - shift) * scale, x.shape, block)
            high = expand((self.format.largest - shift) * scale, x.shape, block)
        strict = self.straight_through == "strict"
        inside = (x > low) & (x < high) if strict else (x >= low) & (x <= high)
        return grad * inside

    def __str__(self) -> str:
        parts = [str(self.format)]
        if self.range is not None:
            parts.append(str(self.granularity))
        if self.rounding != nearest_even:
            parts.append(str(self.rounding))
        return ", ".join(parts)


def as_real(x: Tensor) -> Tensor:
    """x in the dtype it is quantized from: fp32 for half precision (exact), fp64 stays fp64."""
    return x if x.dtype == torch.float64 else x.float()
