"""Quantizer: what to do to a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from . import checks, kernels, tensor_checks, traced
from .formats import FloatFormat, Format, IntFormat, fp32
from .granularity import Granularity, compact_shape, expand, per_tensor
from .qtensor import QTensor
from .ranges import AbsMax, MinMax, RangeRule, State, absmax, check_rule
from .rounding import Rounding, nearest_even
from .running_range import Ema
from .steps import as_real, elements_of, range_of, scale_of

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
        tensor_checks.shape("shape", shape, unknown=True)
        make = getattr(self.range, "init_state", None)
        if make is None:
            return {}
        try:
            block = self.granularity.block_shape(shape)
        except ValueError:  # blocks whose number changes from batch to batch
            if make((1,) * len(shape)):
                raise
            return {}
        state: State = make(compact_shape([s or 1 for s in shape], block))
        return state

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
        tensor_checks.real(x)
        if self.rounding.random_bits and key is None:
            raise ValueError("stochastic rounding needs a key: pass key=root_key(seed, ...)")
        if key is not None:
            tensor_checks.key(key)
        if state is not None:
            tensor_checks.state(state, self.range.memory if isinstance(self.range, Ema) else ())
        checks.boolean("training", training)
        if factor is not None:
            tensor_checks.factor(factor, x.shape)
        return self.of_layer(x, state, key, training, factor)

    def of_layer(
        self,
        x: Tensor,
        state: State | None,
        key: Tensor | None,
        training: bool,
        factor: Tensor | None = None,
    ) -> QTensor:
        """A call whose arguments beside x a layer made itself, at every step: not looked at.

        By the first that serves: one operation of the graph that is being compiled, or one kernel;
        the three steps.
        """
        if torch.compiler.is_compiling():
            found = traced.quantized(
                x, self._spec, self.format, self.granularity, self.range, state, key, training,
                factor,
            )  # fmt: skip
            if found is not None:
                return found
        elif self.range is not None and self.scale_format in (fp32,):
            made = kernels.whole(
                x, self.granularity, self.range, self.format, self.rounding, state, key, training,
                factor,
            )  # fmt: skip
            if made is not None:
                return QTensor(made.elements, made.scale, made.zero_point, self.format, made.block)
        x = tensor_checks.real(x).detach()  # no graph grows through elements, scales or the state
        x = x if factor is None else x * factor
        scale = zero_point = None
        if self.range is None and x.numel():  # one block
            block = tuple(x.shape)
        else:
            block = self.granularity.block_shape(x.shape)
        if self.range is not None:
            scale, zero_point = self.scale_of(x, block, state, training)
        elements = elements_of(x, scale, zero_point, block, self.format, self.rounding, key)
        return QTensor(elements, scale, zero_point, self.format, block)

    def scale_of(
        self, x: Tensor, block: Sequence[int], state: State | None, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of each block of x, from its range, which moves on when `training`.

        Only for a quantizer with a range; without one there is no scale.
        """
        assert self.range is not None
        low, high = range_of(x, self.range, block, state, training)
        return scale_of(low, high, self.format, self.scale_format, self.scale_rounding)

    def backward(self, grad: Tensor, x: Tensor, state: State | None) -> Tensor:
        """The straight-through gradient.  grad, x: the same shape -> grad's dtype."""
        if tensor_checks.real(grad, "grad").shape != tensor_checks.real(x).shape:
            raise ValueError(f"grad: got {checks.shown(grad)}, need x's shape {tuple(x.shape)}")
        if self.straight_through == "identity":
            return grad
        x = as_real(x)
        if self.range is None:
            low: Tensor | float = -self.format.largest if self.format.signed else 0.0
            high: Tensor | float = self.format.largest
        else:
            block = self.granularity.block_shape(x.shape)
            scale, zero_point = self.scale_of(x, block, state, training=False)
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
