"""Operands of the named recipes against rules written out in numpy, with ml_dtypes' formats."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtrain
from qtrain import Recipe, quantize
from qtrain.products.module import products_of
from qtrain.products.probe import Probe
from quantizers import QTensor

Array = np.ndarray[Any, Any]
Slots = dict[tuple[str, str], "Rule | None"]
Place = tuple[int, str, str]  # number of the product, product, operand
LARGEST = np.finfo(np.float32).max


# Formats ------------------------------------------------------------------------------------------


def grid(fmt: str) -> Array:
    """The magnitudes of a format, ascending: their places are their codes."""
    if fmt.startswith("int"):
        return np.arange(2.0 ** (int(fmt[3:]) - 1))
    if fmt == "e3m0":  # no ml_dtypes of it: 0 and 2^(code - 3), as OCP's e2m1 and e3m2 have biases
        return np.array([0, *(2.0 ** (code - 3) for code in range(1, 8))])
    kind = {
        "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2,
        "e3m2": ml_dtypes.float6_e3m2fn, "e2m1": ml_dtypes.float4_e2m1fn,
    }[fmt]  # fmt: skip
    bits = 6 if fmt == "e3m2" else 4 if fmt == "e2m1" else 8
    codes = np.arange(2 ** (bits - 1), dtype=np.uint8).view(kind).astype(np.float64)
    return codes[np.isfinite(codes)]


def around(magnitude: Array, values: Array) -> tuple[Array, Array, Array]:
    """The numbers of a grid below, above and nearest (ties to the even code), clamped to it."""
    clamped = np.minimum(magnitude, values[-1])
    high = np.searchsorted(values, clamped)
    low = np.where(values[high] == clamped, high, high - 1)
    under, over = clamped - values[low], values[high] - clamped
    nearest = np.where((over < under) | ((over == under) & (high % 2 == 0)), high, low)
    return values[low], values[high], values[nearest]


def e4m3(x: Array) -> Array:
    """Nearest, saturated."""
    return np.minimum(x, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


# Rules: what an operand's elements are before they are rounded, and their scales ------------------

Tile = tuple[int, int] | None
Scaled = tuple[Array, Array]  # elements before they are rounded; fp32 scales, outer ones included


@dataclass(frozen=True)
class Rule:
    """of(x, tile) -> Scaled; tile: (rows, columns) of the last two axes; None: all is one block."""

    fmt: str
    tile: Tile
    of: Callable[[Array, Tile], Scaled]
    drawn: bool = False

    @property
    def stochastic(self) -> Rule:
        return replace(self, drawn=True)


def over_blocks(x: Array, tile: Tile, by: Callable[..., Array]) -> Array:
    """A reduction of each block, over its elements."""
    if tile is None:
        return np.broadcast_to(by(x), x.shape)
    found, (rows, columns) = np.empty_like(x), tile
    for top in range(0, x.shape[-2], rows):
        for left in range(0, x.shape[-1], columns):
            at = (..., slice(top, top + rows), slice(left, left + columns))
            found[at] = by(x[at], axis=(-2, -1), keepdims=True)
    return found


def amax(x: Array, tile: Tile) -> Array:
    return over_blocks(np.abs(x), tile, np.max)


def divided(fmt: str, tile: Tile, stored: Any = np.float32) -> Rule:
    """scale = fl(amax / largest), rounded to what it is stored in, elements x / scale."""

    def of(x: Array, tile: Tile) -> Scaled:
        scale = (amax(x, tile).astype(np.float64) / grid(fmt)[-1]).astype(np.float32)
        scale = scale.astype(stored).astype(np.float32)
        return np.where(scale > 0, x / np.where(scale > 0, scale, 1), 0).astype(np.float32), scale

    return Rule(fmt, tile, of)


def by_reciprocal(fmt: str) -> Rule:
    """S = min(fl(largest / amax), M), scale = fl(1 / S), elements fl(x S): TransformerEngine."""

    def of(x: Array, tile: Tile) -> Scaled:
        factor = np.minimum(np.float32(grid(fmt)[-1]) / amax(x, tile), LARGEST).astype(np.float32)
        return x * factor, np.float32(1) / factor

    return Rule(fmt, None, of)


def power(fmt: str, width: int, exponent: Callable[[Array], Array], times: float = 1) -> Rule:
    """scale 2^exponent(amax), at least 2^-127; elements x times / scale, in float64."""

    def of(x: Array, tile: Tile) -> Scaled:
        block = amax(x, tile)
        found = np.clip(exponent(np.where(block > 0, block, 1)), -127, 127)
        scale = np.where(block > 0, np.exp2(found.astype(np.float64)), 0)
        wide = x.astype(np.float64) * times / np.where(scale > 0, scale, 1)
        return wide, scale.astype(np.float32) * np.float32(1 / times)

    return Rule(fmt, (1, width), of)


def floor_log2(x: Array) -> Array:
    return np.frexp(x)[1] - 1


def ceil_log2(x: Array, over: float) -> Array:
    """The smallest k with x <= over 2^k."""
    (m, e), (n, f) = np.frexp(x), np.frexp(over)
    return e - f + (m > n)


one = np.float32


def e2m1_under(x: Array, scale: Array, outer: Array, times: bool) -> Scaled:
    """Elements under e4m3 scales and an outer one: by the reciprocal of both, or by division."""
    both = (scale * outer).astype(one)
    safe = np.where(scale > 0, both, one(1))
    t = x * np.minimum((one(1) / safe).astype(one), LARGEST) if times else x / safe
    return np.where(scale > 0, t, one(0)).astype(one), both


def least(x: Array, tile: Tile, scales: list[Array], outer: Array, times: bool) -> Scaled:
    """Of two e4m3 scales of each block the one that errs less in squares, the first of equals."""
    tries, errors = [], []
    for scale in scales:
        t, both = e2m1_under(x, scale, outer, times)
        near = np.copysign(around(np.abs(t.astype(np.float64)), grid("e2m1"))[2], t)
        value = near * (scale.astype(np.float64) * outer)
        tries.append((t, both))
        errors.append(over_blocks(np.square(value - x), tile, np.sum))
    (a, scale_a), (b, scale_b) = tries
    better = errors[1] < errors[0]
    return np.where(better, b, a), np.where(better, scale_b, scale_a)


def by_division(tile: Tile = (1, 16), most: float = 448, other: float | None = None) -> Rule:
    """outer = fl(amax of all / (6 most)), scale = e4m3(fl(fl(amax / outer) / 6)), or with another
    top the better one."""

    def of(x: Array, tile: Tile) -> Scaled:
        outer = np.maximum(amax(x, None) / one(6 * most), one(2.0**-126))
        share = (amax(x, tile) / outer).astype(one)
        if other is None:
            return e2m1_under(x, e4m3(share / one(6)), outer, times=False)
        scales = [e4m3(share / one(top)) for top in (6, other)]
        return least(x, tile, scales, outer, times=False)

    return Rule("e2m1", tile, of)


def te(tile: Tile = (1, 16), most: float = 448, top: float = 6, other: float | None = None) -> Rule:
    """TransformerEngine's arithmetic: S = fl(top most / amax of all), scale = e4m3(fl(amax fl(S
    fl(1 / top)))); with another factor of that the better one."""

    def of(x: Array, tile: Tile) -> Scaled:
        whole, block = amax(x, None), amax(x, tile)
        s = np.minimum((one(one(top) * one(most)) / whole).astype(one), LARGEST)
        outer = (one(1) / s).astype(one)
        if other is None:
            scale = e4m3((block * (s * (one(1) / one(top))).astype(one)).astype(one))
            return e2m1_under(x, scale, outer, times=True)
        share = ((block / one(top)).astype(one) * s).astype(one)
        scales = [e4m3((share * one(factor)).astype(one)) for factor in (1, other)]
        return least(x, tile, scales, outer, times=True)

    return Rule("e2m1", tile, of)


# Operands of layers -------------------------------------------------------------------------------


class Seen(Probe):
    """Keeps what its product quantized; a list may be shared."""

    def __init__(self, found: list[Any] | None = None, number: int = 0) -> None:
        self.found: list[tuple[Place, Tensor, QTensor]] = [] if found is None else found
        self.number = number

    def operand(
        self, kind: Any, operand: str, x: Tensor, q: QTensor, folded: bool, backward: bool
    ) -> None:
        assert not folded
        self.found.append(((self.number, kind, operand), x.detach().clone(), q))


def numbers(kind: str, *shape: int, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {
        "gaussian": lambda: x,
        "heavy-tailed": lambda: x**3,
        "tiny": lambda: x * 2.0**-135,
        "huge": lambda: x * 2.0**120,
        "bf16": lambda: x.bfloat16().float(),
        "tied": lambda: (2 * x).round() / 2,
        "spread": lambda: x * 2.0 ** torch.arange(-20, 20).repeat(x.shape[-1])[: x.shape[-1]],
    }[kind]()


DATA = ("gaussian", "heavy-tailed", "tiny", "huge", "bf16", "tied", "spread")
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2-D": (lambda: nn.Linear(72, 40), (33, 72)),
    "3-D": (lambda: nn.Linear(72, 40), (3, 11, 72)),
    "convolution": (lambda: nn.Conv2d(20, 18, 3, padding=1), (2, 20, 5, 4)),
    "attention": (lambda: nn.MultiheadAttention(32, 2, batch_first=True), (2, 19, 32)),
}
CASES = [
    *(("2-D", kind) for kind in DATA),
    *(("3-D", kind) for kind in ("gaussian", "spread")),
    *(("convolution", kind) for kind in ("heavy-tailed", "tied")),
    ("attention", "gaussian"),
]


def steps(
    recipe: Recipe, layer: str, kind: str, factors: tuple[float, ...]
) -> list[tuple[Place, Any, QTensor]]:
    """Every operand that a layer quantized, before and after, in a step for each factor of its
    input and of its output's gradient."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    plain, x = make(), numbers(kind, *shape, seed=1)
    with torch.no_grad():
        if layer != "attention":
            plain.weight.copy_(numbers(kind, *plain.weight.shape, seed=2))  # type: ignore
    model, found = quantize(nn.Sequential(plain), recipe=recipe), []
    for number, one in enumerate(products_of(model)):
        one.probe = Seen(found, number)
    for factor in factors:
        z = (x * factor).requires_grad_()
        y = model[0](z, z, z)[0] if layer == "attention" else model(z)
        y.backward(numbers(kind, *y.shape, seed=3) * factor)
    return found


def operands(recipe: Recipe, layer: str, kind: str) -> list[tuple[tuple[str, str], Any, QTensor]]:
    """Those of one step."""
    return [(place[1:], x, q) for place, x, q in steps(recipe, layer, kind, (1,))]


def check(recipe: Recipe, slots: Slots, layer: str, kind: str) -> None:
    """AssertionError where an operand is not what its rule says, or was not quantized at all."""
    found = operands(recipe, layer, kind)
    assert {slot for slot, _, _ in found} == set(slots)
    for slot, x, q in found:
        rule = slots[slot]
        if rule is None:
            assert q.format is None and torch.equal(q.elements, x), slot
        else:
            check_operand(rule, x.numpy(), q, slot)


def check_operand(rule: Rule, x: Array, q: QTensor, slot: object) -> None:
    """Bits of scales and elements; of stochastic ones that they are neighbours, and unbiased."""
    with np.errstate(all="ignore"):
        t, scale = rule.of(x, rule.tile)
    both = q.one_level()
    assert both.scale is not None
    ours = both.spread(both.scale).expand(x.shape).numpy()
    assert np.array_equal(ours, np.broadcast_to(scale, x.shape)), slot
    elements = q.elements.double().numpy()
    low, high, nearest = around(np.abs(t).astype(np.float64), grid(rule.fmt))
    if not rule.drawn:
        assert np.array_equal(elements, np.copysign(nearest, t)), slot
        return
    magnitude = np.abs(elements)
    assert np.array_equal(np.copysign(magnitude, t), elements) or (elements == 0).any()
    assert ((magnitude == low) | (magnitude == high)).all(), slot
    inner = np.minimum(np.abs(t), grid(rule.fmt)[-1])
    variance = ((inner - low) * (high - inner)).sum()
    if variance > 0:
        assert abs((magnitude - inner).sum()) < 6 * np.sqrt(variance), slot
        if variance > 20 * np.square(high - low).max():
            assert (magnitude != nearest).any(), slot


def three(x: Rule | None, w: Rule | None, g: Rule | None, **more: Rule | None) -> Slots:
    """Rules of operands that are quantized: of a backward product's other one, where it is not the
    forward's, `weight` and `input`."""
    slots: Slots = {
        ("forward", "input"): x, ("forward", "weight"): w,
        ("grad_input", "grad_output"): g, ("grad_weight", "grad_output"): g,
    }  # fmt: skip
    if "weight" in more:
        slots["grad_input", "weight"] = more["weight"]
    if "input" in more:
        slots["grad_weight", "input"] = more["input"]
    if "copy" in more:
        slots["grad_weight", "grad_output"] = more["copy"]
    return slots


# Training -----------------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    with np.load(Path(qtrain.data.__file__).parent / "digits.npz") as file:
        order = np.random.default_rng(0).permutation(len(file["labels"]))
        images, labels = file["images"][order] / 16, file["labels"][order]
    return torch.from_numpy(images).float(), torch.from_numpy(labels).long()


@functools.cache
def trained(recipe: str | Recipe) -> float:
    """The loss on 360 digits after 60 steps of a network of two layers on the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = quantize(net, recipe=recipe)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, labels = digits()
    for step in range(60):
        at = torch.arange(128 * step, 128 * (step + 1)) % 1437
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images[1437:]), labels[1437:]).item()
