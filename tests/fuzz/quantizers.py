"""Quantizations of every kind, fused and eager, against the slow reference."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quantizers import (
    ClippingScaleWarning,
    FloatFormat,
    Format,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Rounding,
    Scale,
    absmax,
    ceil,
    chunked_minmax,
    ema,
    floor,
    formats,
    half_away,
    kernels,
    minmax,
    nearest_even,
    percentile,
    root_key,
    stochastic,
    toward_zero,
)
from quantizers.ranges.running import Ema
from tests.quantizers import reference

_NAMED = [
    f
    for f in formats.NAMED.values()
    if isinstance(f, IntFormat) or (isinstance(f, FloatFormat) and f.bits <= 8)
]
_SCALES = [formats.e8m0, formats.e4m3, formats.e5m2]
_SPECIAL = [
    0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 2.0**-126, 1e-30, 0.5, 1.0, -1.5, 1e30, -1e35,
    1.7014118e38, 3.4028235e38, -3.4028235e38,
]  # fmt: skip
_DTYPES = [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _float_format(draw: random.Random) -> FloatFormat:
    """Any of up to 10 bits; its bias may put it anywhere within fp32."""
    while True:
        try:
            return FloatFormat(
                draw.randint(1, 6), draw.randint(0, 4),
                bias=draw.choice([None, None, draw.randint(-60, 170)]),
                specials=draw.choice(["ieee", "fn", "finite"]),
                overflow=draw.choice([None, None, "inf", "nan", "saturate"]),
                signed=draw.random() < 0.8, zero=draw.random() < 0.9,
            )  # fmt: skip
        except ValueError:
            continue


def _format(draw: random.Random) -> Format:
    kind = draw.random()
    if kind < 0.35:
        return draw.choice(_NAMED)
    if kind < 0.6:
        return IntFormat(draw.randint(2, 16), draw.random() < 0.6, draw.random() < 0.5)
    return _float_format(draw)


def _granularity(draw: random.Random, shape: list[int]) -> Granularity:
    axes = [axis for axis in range(len(shape)) if draw.random() < 0.4]
    sizes = tuple((axis, draw.choice([1, 1, 2, 3, None])) for axis in axes)
    return Granularity(sizes, draw.choice(["whole", "whole", "each"]))


def _numbers(draw: random.Random, count: int, *, finite: bool) -> list[float]:
    size = draw.choice([1.0, 1.0, 1e-3, 2.0 ** draw.randint(-140, 120)])
    values = [draw.choice([draw.gauss(0, 1), draw.uniform(-9, 9)]) * size for _ in range(count)]
    some = draw.choice([0.0, 0.0, 0.1, 0.5])
    special = _SPECIAL if finite else [*_SPECIAL, math.inf, -math.inf, math.nan]
    return [draw.choice(special) if draw.random() < some else value for value in values]


def _laid_out(draw: random.Random, x: Tensor) -> Tensor:
    """The same tensor in another layout: transposed, strided, channels-last, at an offset."""
    order = list(range(x.dim()))
    draw.shuffle(order)
    back = [order.index(axis) for axis in range(x.dim())]
    x = x.permute(order).contiguous().permute(back) if draw.random() < 0.4 else x
    if x.dim() and draw.random() < 0.3:
        wide = x.new_full([*x.shape[:-1], 2 * x.shape[-1] + 1], math.nan)
        wide[..., 1::2] = x
        x = wide[..., 1::2]
    return x


@dataclass
class _Moving:
    """The range of `ranges.Ema`, one number at a time; called once a block, in order."""

    rule: Any
    momentum: float
    train_on: str
    kept: list[list[float]] = field(default_factory=list)
    steps: int = 0
    place: int = 0
    training: bool = True

    def __call__(self, values: list[float]) -> tuple[float, float]:
        fl32 = reference.fl32
        new = [fl32(end) for end in self.rule(values)]
        if self.training:
            weight = 1.0 if self.steps == 0 else fl32(self.momentum)
            if self.steps == 0:
                self.kept.append([0.0, 0.0])
            old = self.kept[self.place]
            for end in (0, 1):
                half = fl32(old[end] / 2)
                part = fl32(fl32(fl32(new[end] / 2) - half) * weight)
                old[end] = fl32(fl32(part + half) * 2)
        place, self.place = self.place, self.place + 1
        own = self.steps == 0 and not self.training
        if own or (self.training and self.train_on == "batch"):
            return new[0], new[1]
        return self.kept[place][0], self.kept[place][1]

    def end(self) -> None:
        self.steps, self.place = self.steps + self.training, 0


def _rule(draw: random.Random, memory: bool) -> tuple[Any, Any]:
    """A range rule and the reference's."""
    kind = draw.randint(0, 5 if memory else 3)
    if kind >= 4:
        rule, slow = _rule(draw, False)
        momentum = draw.choice([0.1, 0.5, 0.9, 1.0])
        train_on: Any = draw.choice(["running", "batch"])
        return ema(rule, momentum, train_on), _Moving(slow, momentum, train_on)
    if kind == 3:
        fraction = draw.choice([0.6, 0.9, 0.999, 1.0])
        return percentile(fraction), lambda values: reference.percentile(values, fraction)
    if kind == 2:
        chunks = draw.choice([1, 2, 3, 16])
        return chunked_minmax(chunks), lambda values: reference.chunked_minmax(values, chunks)
    return [(absmax, reference.absmax), (minmax, reference.minmax)][kind]


def _rounding(draw: random.Random) -> Rounding:
    modes = [nearest_even, nearest_even, half_away, toward_zero, floor, ceil]
    return draw.choice([*modes, stochastic(draw.randint(1, 23)), stochastic()])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal dtype, shape and bits; one NaN for all."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_floating_point():
        nan = a.isnan() & b.isnan()
        return bool((nan | ((a == b) & (a.signbit() == b.signbit()))).all())
    return torch.equal(a, b)


def _rounded(x: Tensor, q: Quantizer, key: int) -> Tensor:
    """The reference's elements without a range."""
    bits, fmt = q.rounding.random_bits, q.format
    assert isinstance(fmt, FloatFormat)
    found = []
    for index, value in enumerate(x.double().flatten().tolist()):
        drawn = ((reference.random_bits(key, index) >> (32 - bits)) + 0.5) / 2**bits
        found.append(reference.round_float(value, fmt, q.rounding.mode, drawn))
    return torch.tensor(found, dtype=torch.float64).view(x.shape)


def _wrong(got: QTensor, x: Tensor, q: Quantizer, slow: Any, key: int) -> str | None:
    """How a result differs from the reference's, x being what is quantized."""
    if q.range is None:
        expected = _rounded(x, q, key)
        return None if _same(got.elements.double(), expected) else "elements are not x rounded"
    sizes = reference.block_sizes(q.granularity.sizes, q.granularity.rest, x.shape)
    elements, values = reference.quantize(
        x, q.format, slow, sizes, mode=q.rounding.mode, random=q.rounding.random_bits, key=key,
        scale_format=None if q.scale == Scale() else q.scale.format,
        scale_mode=q.scale.rounding.mode,
    )  # fmt: skip
    found = got.dequantize().double()
    # a block with an element that is not finite has no finite value; else NaN is an overflow's
    lost = elements.isnan() & values.isnan()
    if bool((lost & found.isfinite()).any()):
        return "finite values in a block that is not finite"
    if not bool((lost | (got.elements.double() == elements)).all()):
        return "elements differ from the reference's"
    if not bool((lost | values.isnan() | (found == values)).all()):
        return "values differ from the reference's"
    return None


def attack(draw: random.Random) -> str | None:
    """One quantizer on one to three tensors; None, or what was wrong."""
    shape = [draw.choice([0, 1, 2, 3, 4, 5, 7]) for _ in range(draw.randint(0, 4))]
    shape = shape if math.prod(shape) <= 120 else shape[:2]
    fmt, dtype = _format(draw), draw.choice(_DTYPES)
    memory = 0 not in shape and dtype != torch.float64
    rule, slow = _rule(draw, memory)
    grain = _granularity(draw, shape)
    if dtype == torch.float64 and rule not in (absmax, minmax):
        rule, slow = absmax, reference.absmax  # the others read fp64 as fp32
    if isinstance(fmt, FloatFormat) and (fmt.largest > 2.0**48 or draw.random() < 0.15):
        rule, slow, grain = None, None, Granularity()
    scale = Scale()
    if rule is not None and draw.random() < 0.3:
        scale = Scale(draw.choice(_SCALES), rounding=draw.choice([nearest_even, ceil, floor]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingScaleWarning)
        q = Quantizer(
            format=fmt, granularity=grain, range=rule, rounding=_rounding(draw), scale=scale
        )
    moving = isinstance(rule, Ema)
    seed = draw.randrange(2**32)
    key = root_key(seed)
    states = [q.init_state(shape) for _ in range(2)]
    for step in range(draw.randint(1, 3) if moving else 1):
        values = _numbers(draw, math.prod(shape), finite=moving)
        x = _laid_out(draw, torch.tensor(values, dtype=torch.float64).view(shape).to(dtype))
        if moving:
            most = torch.finfo(dtype).max
            x = x.clamp(-most, most)
        training = draw.random() < 0.7
        factor = None
        if shape and dtype != torch.float64 and not moving and draw.random() < 0.25:
            sizes = [size if draw.random() < 0.5 else 1 for size in shape]
            factors = _numbers(draw, math.prod(sizes), finite=True)
            factor = torch.tensor(factors, dtype=torch.float32).view(sizes)
        said = (
            f"{q!r} step {step} training={training} key=root_key({seed}) factor={factor} of {x!r}"
        )
        given: dict[str, Any] = {"key": key, "training": training, "factor": factor}
        got = q(x, state=states[0], **given)
        with kernels.eager():
            eager = q(x, state=states[1], **given)
        if not all(_same(a, b) for a, b in zip(got[:3], eager[:3], strict=True)):
            return f"fused and eager differ: {said}"
        if not all(_same(states[0][name], states[1][name]) for name in states[0]):
            return f"the running ranges of fused and eager differ: {said}"
        if moving:
            slow.training = training
        product = x if factor is None else x.float() * factor
        wrong = _wrong(got, product, q, slow, int(key.item()) % 2**64)
        if wrong is not None:
            return f"{wrong}: {said}"
        if moving:
            slow.end()
            ends = [states[0][name].flatten().tolist() for name in ("low", "high")]
            if slow.steps and list(map(list, zip(*ends, strict=True))) != slow.kept:
                return f"running range {ends}, the reference's {slow.kept}: {said}"
    return None
