"""What a quantizer is told: which steps it takes from a tensor to elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from . import checks, tensor_checks
from .devices.by_device import spec
from .formats import NATIVE, Format, IntFormat, TableFormat
from .granularity import Granularity, compact_shape, per_tensor
from .names import take_names
from .ranges.rules import AbsMax, MinMax, RangeRule, State, absmax, check_rule
from .ranges.running import Ema, Remembering
from .rounding import Rounding, nearest_even
from .scales.clipping import warn_of_clipping
from .scales.elements import check_elements
from .scales.scale import Scale
from .scales.spellings import with_scale
from .table_rounding import MODES

#: what a range may scale to: 2^31 products of two such elements add up within fp32
_LARGEST = 2.0**48


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of a Quantizer."""

    format: Format
    granularity: Granularity = per_tensor
    range: RangeRule | None = absmax
    scale: Scale = Scale()  # noqa: RUF009
    rounding: Rounding = nearest_even
    straight_through: Literal["identity", "inclusive", "strict"] = "identity"
    _spec: str | None = field(default=None, init=False, repr=False, compare=False)
    #: whether the scale is fp32, of the largest magnitude: what the fused kernels make
    _plain: bool = field(default=True, init=False, repr=False, compare=False)
    #: whether elements or scales are rounded stochastically, by a key
    _noisy: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        take_names(self, format="format", rounding="rounding")
        for name, kind, need in (
            ("format", Format, "an IntFormat, a FloatFormat or a TableFormat"),
            ("granularity", Granularity, "a Granularity such as per_tensor or blocks(16)"),
            ("scale", Scale, "a Scale such as Scale(e8m0)"),
            ("rounding", Rounding, "a Rounding such as nearest_even"),
        ):
            if not isinstance(getattr(self, name), kind):
                checks.refuse(name, getattr(self, name), need)
        if isinstance(self.format, TableFormat) and self.rounding.mode not in MODES:
            raise ValueError(
                f"rounding: got {self.rounding} for {self.format}, whose values have no steps; "
                f"give nearest_even, to the nearest value, or stochastic()"
            )
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
        if isinstance(self.range, Remembering) and self.granularity.of != "tensor":
            raise ValueError(
                f"range: got {self.range!r}, which has a memory, with {self.granularity}, which "
                f"are others in every product or shape; use a range without one, or a granularity "
                f"by axes"
            )
        if self.range is None and self.granularity != per_tensor:
            raise ValueError(
                "granularity: without a range there are no scales; leave it per_tensor"
            )
        checks.choice(
            "straight_through", self.straight_through, ("identity", "inclusive", "strict")
        )
        unsettled = isinstance(self.range, Remembering) and not self.range.settled
        if self.straight_through != "identity" and unsettled:
            raise ValueError(
                f"straight_through: {self.straight_through!r} needs one range for training and "
                f"evaluation, and got {self.range!r}; leave it 'identity', or take an ema with "
                f"train_on='running' and use='current'"
            )
        object.__setattr__(self, "_plain", self.scale == Scale())
        noisy = bool(self.rounding.random_bits or self.scale.random_bits)
        object.__setattr__(self, "_noisy", noisy)
        self._check_scale()
        object.__setattr__(self, "_spec", spec(self))

    def _check_scale(self) -> None:
        scale = self.scale
        if self.range is None:
            if not self._plain:
                raise ValueError(
                    f"scale: got {scale}, but without a range there are no scales; leave it out, "
                    f"or give a range rule such as absmax"
                )
            return
        check_elements(scale, self.format)
        over = per_tensor if scale.over is None else scale.over.granularity
        for name, outer in (("over", over), ("correction", scale.correction or per_tensor)):
            if outer != per_tensor and outer.of != self.granularity.of:
                raise ValueError(
                    f"scale.{name}: got {outer}, but elements share scales in {self.granularity}; "
                    f"give both by axes of the tensor, both of the product, as blocks(128) is, or "
                    f"both flat, as groups(128) is"
                )
        if scale.correction is not None and self.rounding.random_bits:
            raise ValueError(
                f"scale.correction: got {scale.correction}, which corrects elements to nearest, "
                f"with rounding {self.rounding}; leave one of them out"
            )
        if self.straight_through != "identity" and scale.random_bits:
            raise ValueError(
                f"straight_through: {self.straight_through!r} needs the scale again, and a "
                f"stochastic scale rounding draws it anew; leave it 'identity'"
            )
        if not self.affine:
            warn_of_clipping(scale, self.format, self.rounding, stacklevel=5)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "scale" not in state:  # pickled before there was one
            now = with_scale(state)
            noisy = bool(now["rounding"].random_bits)
            state = {**now, "_plain": now["scale"] == Scale(), "_noisy": noisy}
        self.__dict__.update(state)

    @property
    def affine(self) -> bool:
        """Whether elements have a zero point."""
        return isinstance(self.format, IntFormat) and not self.format.symmetric

    @property
    def by_extremes(self) -> bool:
        """Whether a tensor's scale follows from its smallest and largest elements alone, and its
        elements from that."""
        rule = self.range
        if isinstance(rule, Ema) and rule.use == "current":
            rule = rule.rule
        whole = self.granularity == per_tensor and self.scale.simple
        return whole and not self.scale.random_bits and isinstance(rule, AbsMax | MinMax)

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit dtype into which torch converts fp32 as this quantizer rounds, or None."""
        if self.range is not None or self.rounding not in (nearest_even,):
            return None
        return NATIVE.get(self.format)

    def init_state(self, shape: Sequence[int | None]) -> State:
        """State for tensors of `shape` (None: a size that changes); {} without memory."""
        tensor_checks.shape("shape", shape, unknown=True)
        make = getattr(self.range, "init_state", None)
        if make is None:
            return {}
        try:
            if self.granularity.of != "tensor":
                raise ValueError(f"range: {self.range!r} has a memory, and {self.granularity} none")
            block = self.granularity.block_shape(shape)
        except ValueError:  # blocks whose number changes from batch to batch
            if make((1,) * len(shape)):
                raise
            return {}
        state: State = make(compact_shape([s or 1 for s in shape], block))
        return state
