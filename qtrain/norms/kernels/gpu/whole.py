"""A norm forward and backward in few launches: statistics, what follows of each channel, output.

For the deviations that one pass finds (two for magnitudes about the mean); `None` for the others,
and for batches that lie on several ranks: they take `normalize` itself, with the Triton passes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import bound, power_of_two, serves

from ...estimate import Deviation, Measure
from ...normalize import Form, Normalized
from ...passes import Affine, Extra, Slope
from .channels import TritonChannels, channels
from .launch import CHANNELS, FINISH, Parts, launched, parts, tiles, whole
from .samples import about, moments

#: so many elements of a channel have their gradient added while all are written
_FEW = 2
#: so many parts of all chunks of a channel are looked at at once
_SLOTS = 4096


class _Known(NamedTuple):
    """What the launches of a norm share: its passes, its form, its affine parameters."""

    by: TritonChannels
    form: Form
    measure: Measure
    weight: Tensor | None
    bias: Tensor | None


def _stable(deviation: Deviation) -> str:
    """STABLE of the kernels: see triton_tiles.stabilized."""
    return {"l2": "root", "none": "one"}.get(deviation.name, "")


def _known(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, grad: Tensor | None = None
) -> _Known | None:
    count = x.numel() // max(x.shape[1], 1)
    measure = form.deviation.measured(count) if count > 1 and form.ranks is None else None
    by = None if measure is None else channels(x, form.activation, form.relu, grad)
    if measure is None or by is None or not serves(x, weight, bias):
        return None
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    return _Known(by, form, measure, weight, bias)


def _per_channel(by: TritonChannels) -> tuple[Tensor, ...]:
    size, device = by.layout.channels, by.x.device
    return tuple(torch.empty(size, dtype=torch.float32, device=device) for _ in range(4))


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
) -> Normalized | None:
    """See normalize.normalize."""
    known = _known(x, weight, bias, form)
    if known is None:
        return None
    by, kind = known.by, known.measure.kind
    mean, sigma, scale, shift = _per_channel(by)
    where = slope = None
    of = by.tiles
    cut = whole(of)
    if kind == "extremes":
        longer, size = known.measure.longer, known.measure.size
        of = tiles(by.layout, size + (longer > 0))
        cut = parts(of, 0, size, longer, known.measure.chunks)
        if power_of_two(cut.chunks) * power_of_two(cut.parts) > _SLOTS:
            return None
        where = torch.empty(
            (by.layout.channels, 2 * cut.chunks), dtype=torch.int64, device=x.device
        )
        slope = torch.empty_like(where, dtype=torch.float32)
    elif form.deferred:
        where = torch.empty((by.layout.channels, 2), dtype=torch.int64, device=x.device)
    extremes = where is not None
    found = moments(x, of, cut, squares=kind == "squares", extremes=extremes)
    made = mean, sigma, scale, shift
    # of a deferred one: see normalize.normalize
    output = torch.empty((), dtype=form.dtype, device=x.device) if form.deferred else None
    if kind == "magnitudes":
        _finish(known, "mean", cut, found, made, where, slope, output)
        magnitudes, *_ = about(x, of, mean, kind)
        found = found[0], magnitudes, *found[2:]
    _finish(known, kind, cut, found, made, where, slope, output)
    if output is None:
        by_channel = Affine(mean, scale, shift, form.activation, form.relu)
        output = by.affine(by_channel, form.dtype)
    return Normalized(
        output.expand(x.shape) if form.deferred else output, mean, sigma, where, slope
    )


def _finish(
    known: _Known,
    kind: str,
    cut: Parts,
    found: tuple[Tensor, ...],
    made: tuple[Tensor, ...],
    where: Tensor | None,
    slope: Tensor | None,
    nothing: Tensor | None,
) -> None:
    """triton_finish.statistics of what `moments` or `about` found, into `made`, and a NaN."""
    by, measure = known.by, known.measure
    mean = made[0]
    programs, shape = cut.added(by.layout.channels, chunked=True)
    planes, _, width, count = by.layout
    launched(
        FINISH, "statistics", by.x, programs, by.x, *found, *made,
        mean if where is None else where,
        mean if slope is None else slope,
        mean if nothing is None else nothing,
        mean if known.weight is None else known.weight,
        mean if known.bias is None else known.bias,
        count, width if planes else 1, cut.parts, cut.longer,
        cut.chunks - cut.longer, by.tiles.elements, measure.factor, measure.longer_factor,
        known.form.eps, KIND=kind, STABLE=_stable(known.form.deviation),
        ENDS=where is not None, NOTHING=nothing is not None, CENTERED=known.form.centered,
        WEIGHT=known.weight is not None, BIAS=known.bias is not None, **shape,
    )  # fmt: skip


def affine(
    mean: Tensor, sigma: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
) -> Affine | None:
    """See operations.affine."""
    if sigma.dtype is not torch.float32 or not serves(sigma, mean, weight, bias):
        return None
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    scale, shift = torch.empty((2, *sigma.shape), dtype=torch.float32, device=sigma.device)
    columns = min(power_of_two(sigma.numel()), 128)
    launched(
        CHANNELS, "affine", sigma, -(-sigma.numel() // columns), sigma,
        sigma if weight is None else weight,
        sigma if bias is None else bias,
        scale, shift, sigma.numel(), form.eps, STABLE=_stable(form.deviation),
        WEIGHT=weight is not None, BIAS=bias is not None, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return Affine(mean, scale, shift, form.activation, form.relu)


def _slope(form: Form, measure: Measure, count: int) -> tuple[Extra, str, float]:
    """What is summed besides, and SLOPE and its constant of triton_finish.gradient."""
    if form.carry == "l2":
        return "squares", "l2", 0.0
    if form.carry == "detached" or measure.kind == "ones":
        return None, "", 0.0
    if measure.kind == "squares":
        return None, "centered", measure.factor * measure.factor
    if measure.kind == "magnitudes":
        return "signs", "sign", measure.factor / count
    return None, "values", 0.0


def gradients(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, made: Normalized, form: Form
) -> tuple[Tensor, Tensor, Tensor] | None:
    """See normalize.gradients."""
    grad, mean, sigma, where, slope = made
    known = _known(x, weight, bias, form, grad)
    if known is None:
        return None
    by, measure = known.by, known.measure
    of = affine(mean, sigma, weight, bias, form)
    if of is None:
        return None
    extra, kind, constant = _slope(form, measure, by.tiles.elements)
    grad = by.aligned(grad)
    sums, cut = by.partial_sums(grad, of, extra)
    grad_weight, grad_bias, offset, factor = _per_channel(by)
    value = torch.empty_like(slope) if kind == "values" and slope is not None else None
    programs, shape = cut.added(by.layout.channels)
    launched(
        FINISH, "gradient", x, programs, sums[0], sums[1], sums[-1], sigma, of.scale,
        offset if slope is None else slope.contiguous(),
        grad_weight, grad_bias, offset, factor, offset if value is None else value,
        by.layout.channels, cut.parts, by.tiles.elements,
        bound(0 if value is None else value.shape[1]),
        constant, form.eps, SLOPE=kind, STABLE=_stable(form.deviation), CENTERED=form.centered,
        **shape,
    )  # fmt: skip
    along = None
    if kind in ("l2", "centered", "sign"):
        along = Slope(factor, "sign" if kind == "sign" else "centered")
    if value is None or where is None:
        grad_input = by.grad_input(grad, of, offset, along, x.dtype)
    elif where.shape[1] <= _FEW:
        grad_input = by.grad_at(grad, of, offset, along, where.contiguous(), value, x.dtype)
    else:
        grad_input = by.grad_input(grad, of, offset, along, torch.float32)
        grad_input = by.add_at(grad_input, where, value).to(x.dtype)
    return grad_input, grad_weight, grad_bias
