"""Scales in two levels, chosen among candidates, times constants: what `Scale` says beyond one
quotient a granule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices.numbers import constant, divided
from ..elements import as_real, elements_of
from ..formats import Format, fp32
from ..granularity import Granularity, compact_shape, expand
from ..noise import fold
from ..ranges.rules import absmax
from ..rounding import Rounding, nearest_even
from ..settings import Settings
from .errors import error_of, folded
from .rules import MOST, bound_of, in_format, level, reciprocal
from .scale import Scale


class Step(NamedTuple):
    """What elements are made by; all fp32, of the scale's shape, or broadcastable to it.

    scale, outer   a QTensor's
    by             what x, times the prescale, is divided by; multiplied with, if `reciprocal`
    """

    scale: Tensor
    outer: Tensor | None
    by: Tensor

    @property
    def whole(self) -> Tensor:
        """What elements are multiplied by: fp64."""
        whole = self.scale.double()
        return whole if self.outer is None else whole * self.outer.double()


class _Outer(NamedTuple):
    """An outer scale, and the number it was made the reciprocal of (or is the reciprocal of)."""

    scale: Tensor
    factor: Tensor


def step_of(
    x: Tensor, low: Tensor, high: Tensor, by: Settings, block: tuple[int, ...], key: Tensor | None
) -> Step:
    """The step of each block of x by a Scale that is not `simple`: see Scale.

    low, high: the blocks' ranges, fp32; key: for a stochastic rounding of scales.
    """
    scale, bound = by.scale, bound_of(low, high, by.format)
    tops = scale.tops(by.format)
    if scale.correction is not None:  # only what is corrected is rounded as it says
        scale = replace(scale, rounding=nearest_even)
    outer = None
    if scale.over is not None:
        outer = _outer(bound, x.shape, block, max(tops) / scale.headroom, scale, key)
    steps = [_step(bound, top, by.format, scale, outer, key) for top in tops]
    best = steps[0]
    if len(steps) > 1:
        real = as_real(x).double()
        least = _error(real, x, best, by, block)
        for other in steps[1:]:
            error = _error(real, x, other, by, block)
            better = error < least  # not of a NaN: the first stays
            pairs = zip((best.scale, best.by), (other.scale, other.by), strict=True)
            chosen = [torch.where(better, new, old) for old, new in pairs]
            best, least = Step(chosen[0], best.outer, chosen[1]), torch.where(better, error, least)
    return best if scale.correction is None else _corrected(x, best, by, block, key)


def elements_by(
    x: Tensor,
    step: Step,
    by: Settings,
    block: tuple[int, ...],
    rounding: Rounding,
    key: Tensor | None = None,
) -> Tensor:
    """Elements of the quantizer's format: round(x * prescale / step), or times it, and clamped.

    -> the format's integer dtype, or for a FloatFormat fp32 (fp64 for fp64 x), x's shape.
    """
    scale = by.scale
    if scale.prescale != 1:
        y = as_real(x) * constant(scale.prescale, as_real(x))
        most = torch.finfo(y.dtype).max  # what passes that is no infinity
        finite = scale.prescale < 1 or torch.isfinite(x)
        x = y if finite is True else torch.where(finite, y.clamp(-most, most), y)
    return elements_of(x, step.by, None, block, by.format, rounding, key, scale.reciprocal)


def _step(
    bound: Tensor,
    top: float,
    format: Format,
    scale: Scale,
    outer: _Outer | None,
    key: Tensor | None,
) -> Step:
    """That makes the bounds the element `top`."""
    reach = top / scale.headroom
    made: Tensor | None = None
    if outer is None:
        if scale.reciprocal and scale.format in (fp32,):
            factor = reciprocal(bound, reach)
            known = torch.isfinite(bound) & (bound != 0)  # the rest is its own scale
            step = found = torch.where(known, reciprocal(factor), bound)
            made = torch.where(bound == 0, 0.0, factor)
        else:
            step = found = level(bound, bound, top, format, scale, key)
    else:
        if scale.reciprocal:
            found = in_format(_by_factor(bound, top, outer, scale), bound, scale, key)
        else:
            local = bound / outer.scale
            found = level(local, bound, top, format, scale, key)
        step = found * outer.scale
    if scale.reciprocal and made is None:
        made = torch.where(step == 0, 0.0, reciprocal(step))
    prescaled = None if outer is None else outer.scale
    if scale.prescale != 1:
        whole = bound.new_ones([1] * bound.dim()) if outer is None else outer.scale
        prescaled = divided(whole, scale.prescale)
    return Step(found, prescaled, step if made is None else made)


def _by_factor(bound: Tensor, top: float, outer: _Outer, scale: Scale) -> Tensor:
    """The quotient of an inner scale in the order of TransformerEngine's kernels, at most fp32's
    largest number."""
    if scale.candidates:
        most = max(scale.candidates)
        found = divided(bound, most / scale.headroom) * outer.factor
        if top != most:
            found = found * constant(most / top, found)
    else:
        found = bound * (outer.factor * reciprocal(constant(top / scale.headroom, bound)))
    return found.where(torch.isinf(bound), found.clamp(max=MOST))


def _outer(
    bound: Tensor,
    shape: torch.Size,
    block: tuple[int, ...],
    reach: float,
    scale: Scale,
    key: Tensor | None,
) -> _Outer:
    """The scale of the scales that make bounds the element `reach`, broadcastable to the bounds."""
    over = scale.over
    assert over is not None
    ratio = _nested(shape, block, over.granularity, "over")
    finite = torch.where(torch.isfinite(bound), bound, 0.0)
    _, whole = absmax(finite, ratio)
    top = reach * over.tops(scale.format)[0]
    if scale.reciprocal and over.format in (fp32,):
        factor = torch.where(whole == 0, 1.0, reciprocal(whole, top / over.headroom))
        made = reciprocal(factor)
    else:
        inner = None if key is None else fold(key, 1)
        made = level(whole, whole, top, scale.format, over, inner)
        made = made.clamp(min=over.format.smallest_normal)
        made = torch.where(whole == 0, 1.0, made)
        factor = reciprocal(made)
    spread = [expand(part, bound.shape, ratio) for part in (made, factor)]
    return _Outer(*spread)


def outer_shape(shape: Sequence[int], block: Sequence[int], scale: Scale) -> list[int]:
    """The shape of a QTensor's `outer`; [0] where there is none."""
    if scale.over is None:
        return [1] * len(shape) if scale.outer else [0]
    compact = compact_shape(shape, block)
    ratio = _nested(shape, block, scale.over.granularity, "over")
    return [1 if b >= count else count for count, b in zip(compact, ratio, strict=True)]


def _nested(
    shape: Sequence[int], block: Sequence[int], granularity: Granularity, field: str
) -> list[int]:
    """The blocks of another granularity, a field of Scale, in blocks of the quantizer's."""
    found, outer = [], granularity.block_shape(shape)
    for axis, (size, b, whole) in enumerate(zip(shape, block, outer, strict=True)):
        if whole < size and whole % b:
            raise ValueError(
                f"scale.{field}: {granularity} cuts axis {axis} of a tensor of shape "
                f"{tuple(shape)} into {whole}, which is no multiple of the {b} that share an inner "
                f"scale; give a granularity of whole blocks, or per_tensor"
            )
        found.append(max(-(-whole // b), 1))
    return found


def _corrected(
    x: Tensor, step: Step, by: Settings, block: tuple[int, ...], key: Tensor | None
) -> Step:
    """Its scales times sum y^2 / sum(y e) of each granule of `Scale.correction`, and rounded."""
    scale, finite = by.scale, torch.isfinite(step.scale)
    assert scale.correction is not None
    ratio = _nested(x.shape, block, scale.correction, "correction")
    whole = torch.where(finite & (step.scale != 0), step.whole, float("inf"))
    y = as_real(x).double() / expand(whole, x.shape, block)
    elements = elements_by(x, step, by, block, nearest_even).double()
    sums = (folded(y * other, block, torch.add) for other in (y, elements))
    own, dot = (folded(torch.where(finite, one, 0.0), ratio, torch.add) for one in sums)
    factor = expand(torch.where(dot > 0, own / dot, 1.0), step.scale.shape, ratio)
    found = (step.scale.double() * factor).float()
    return step._replace(scale=in_format(found, step.scale, scale, key))


def _error(real: Tensor, x: Tensor, step: Step, by: Settings, block: tuple[int, ...]) -> Tensor:
    """How far the values are from x, of each block: fp64, the scale's shape.

    real: x in fp64.
    """
    elements = elements_by(x, step, by, block, nearest_even).double()
    return error_of(elements * expand(step.whole, x.shape, block), real, block, by.scale.by)
