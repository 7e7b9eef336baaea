"""Given equal inputs, the GPU gives the CPU's bits: plain functions, which pytest calls too."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import quantize
from quantizers import (
    LSQ,
    PACT,
    FloatFormat,
    IntFormat,
    LearnedClip,
    LSQPlus,
    Quantizer,
    Scale,
    absmax,
    bf16,
    blocks,
    ceil,
    e4m3,
    e5m2,
    e8m0,
    ema,
    floor,
    fp16,
    half_away,
    minmax,
    nearest_even,
    per_axis,
    per_tensor,
    root_key,
    stochastic,
    toward_zero,
)

from .clock import Budget


def inputs() -> dict[str, Tensor]:
    """Ordinary, extreme and non-finite tensors, in several layouts."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    infinite, nan = normal(100, 33), normal(100, 33)
    infinite[3, 3], nan[5, 5] = float("inf"), float("nan")
    last = torch.channels_last
    return {
        "4 axes": normal(16, 3, 33, 31),
        "channels last": normal(8, 64, 17, 9).contiguous(memory_format=last),
        "transposed": normal(300, 777).t(),
        "long": normal(1_500_000),
        "subnormal": normal(1000) * 1e-41,
        "huge": (normal(100, 33) * 1e38).clamp(-3.4e38, 3.4e38),
        "bf16": normal(100, 33).bfloat16(),
        "fp16": normal(3, 3, 3, 3).half(),
        "infinity": infinite,
        "NaN": nan,
    }


def quantizers_of(seed: int = 0) -> Iterator[tuple[str, Tensor, Quantizer]]:
    """Inputs and quantizers, in an order of which any part samples evenly."""
    formats = (
        IntFormat(8), IntFormat(8, signed=False, symmetric=False), IntFormat(4, signed=False),
        IntFormat(16, signed=False, symmetric=False), fp16, bf16, e4m3, e5m2, FloatFormat(2, 1),
    )  # fmt: skip
    roundings = nearest_even, half_away, toward_zero, floor, ceil, stochastic()
    rules = absmax, minmax, ema(minmax), None
    cuts = (
        (per_tensor, Scale()), (per_axis(0), Scale()), (blocks(None), Scale()),
        (blocks(32), Scale(e8m0, rule="rceil")), (blocks(16, 4), Scale(e4m3, headroom=17 / 16)),
    )  # fmt: skip
    every = list(itertools.product(inputs().items(), formats, roundings, cuts, rules))
    random.Random(seed).shuffle(every)
    for (name, x), format, rounding, (granularity, scale), rule in every:
        if x.dim() == 1 and granularity == blocks(16, 4):
            continue
        try:
            by = Quantizer(
                format=format, range=rule, granularity=granularity, rounding=rounding, scale=scale
            )
        except ValueError:  # a format without a range, or too wide for one
            continue
        yield f"{name}: {by}", x, by


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """To the bit, but for the bits of a NaN; wherever they lie."""
    if a is None or b is None:
        return a is b
    a, b = a.cpu(), b.cpu()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    nan = a.isnan()
    whole = torch.equal(nan, b.isnan()) and torch.equal(a[~nan], b[~nan])
    return whole and torch.equal(a[~nan].signbit(), b[~nan].signbit())


def check_quantizer(x: Tensor, by: Quantizer, n: int) -> bool:
    """Elements, scale, zero point and the running range."""
    state, key = by.init_state(x.shape), root_key(n)
    there = {name: part.cuda() for name, part in state.items()}
    cpu = by(x, state=state or None, key=key)
    gpu = by(x.cuda(), state=there or None, key=key.cuda())
    pairs = list(zip(cpu[:3], gpu[:3], strict=True))
    pairs += [(part, there[name]) for name, part in state.items()]
    return all(same(*pair) for pair in pairs)


def learned() -> dict[str, Any]:
    """Quantizers that learn their scales, of one step and of a step for each row."""
    rows, unsigned = per_axis(0), IntFormat(3, signed=False)
    return {
        str(by): by
        for by in (
            LSQ(format="int4"), LSQ(format="int4", granularity=rows, start="deviation"),
            LSQ(format=unsigned, scaled_by="sample"), LSQPlus(format="int4", granularity=rows),
            PACT(format=unsigned), LearnedClip(format="int8", granularity=rows),
        )
    }  # fmt: skip


def check_learned(by: Any, x: Tensor, device: str = "cuda") -> bool:
    """Elements, scales and offsets, by what a first tensor sets, and the gradient of x; those of
    the learned tensors are near."""
    grad, found = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype), []
    first = by.init_parameters(x.shape)
    by.fit(x, first)
    for place in ("cpu", device):
        fitted = {name: value.to(place) for name, value in by.init_parameters(x.shape).items()}
        by.fit(x.to(place), fitted)
        state = {name: value.to(place) for name, value in first.items()}
        grad_x, others = by.backward(grad.to(place), x.to(place), state)
        q = by(x.to(place), state=state)
        found.append(((q.elements, q.scale, q.dequantize(), grad_x), (fitted, others)))
    (bits, near), (bits2, near2) = found
    pairs = [(a[name], b[name]) for a, b in zip(near, near2, strict=True) for name in a]
    return all(map(same, bits, bits2)) and all(
        torch.allclose(a, b.cpu(), rtol=1e-5, atol=1e-30, equal_nan=True) for a, b in pairs
    )


def layers() -> dict[str, tuple[Any, tuple[int, ...]]]:
    return {
        "Linear": (lambda: nn.Linear(264, 64), (4, 33, 264)),
        "Conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (4, 6, 17)),
        "Conv2d": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (8, 16, 17, 17)),
        "Conv2d, 3 channels": (lambda: nn.Conv2d(3, 64, 7, 2, 3), (4, 3, 41, 41)),
        "Conv2d, wide": (lambda: nn.Conv2d(64, 128, 3, padding=1), (8, 64, 14, 14)),
        "Conv2d, dilated": (lambda: nn.Conv2d(16, 32, 3, dilation=2), (4, 16, 12, 12)),
        "Conv2d, groups": (lambda: nn.Conv2d(8, 16, 3, groups=4), (4, 8, 9, 9)),
        "Conv2d, depthwise": (lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32), (4, 32, 12, 12)),
        "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (4, 8, 7, 7)),
        "Conv3d": (lambda: nn.Conv3d(3, 6, 3), (2, 3, 6, 6, 6)),
    }


#: recipes with blocks along the sum or accumulators, and those that also rotate operands of
#: grad_weight, by products in fp32 whose last bit may move an element
SUMS = (
    "mxfp8", "mxfp6", "mxint8", "hbfp4", "deepseek-v3", "jetfire", "fp4-all-the-way", "ibm-fp8"
)  # fmt: skip
ROTATED = ("nvfp4", "four-over-six")


def check_layer(name: str, bits: int, channels_last: bool) -> bool:
    """Output and grad_input are the CPU's bits; grad_weight is near."""
    (y, dx, dw), (y2, dx2, dw2) = on_both(name, channels_last, bits=bits)
    near = all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(dw, dw2, strict=True))
    return torch.equal(y, y2) and torch.equal(dx, dx2) and near


def check_sums(name: str, recipe: str, channels_last: bool) -> bool:
    """Output, grad_input and the gradient of the weight are the CPU's bits; a bias' is near, and
    what is made of rotated operands, by its norm."""
    (y, dx, (dw, *more)), (y2, dx2, (dw2, *more2)) = on_both(name, channels_last, recipe=recipe)
    near = all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(more, more2, strict=True))
    same = torch.equal(dw, dw2)
    if recipe in ROTATED:
        same = bool((dw - dw2).norm() <= 0.1 * dw.norm())
    return torch.equal(y, y2) and torch.equal(dx, dx2) and same and near


def on_both(name: str, channels_last: bool, *, device: str = "cuda", **settings: Any) -> list[Any]:
    """Output, grad_input, gradients of the parameters, on the CPU and on the GPU."""
    make, shape = layers()[name]
    torch.manual_seed(0)
    model = quantize(nn.Sequential(make()), **settings)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for place in ("cpu", device):
        own, leaf = copy.deepcopy(model).to(place), x.to(place, copy=True).requires_grad_()
        output = own(leaf)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        output.backward(direction.to(place))
        grads = [p.grad.cpu() for p in own.parameters() if p.grad is not None]
        assert leaf.grad is not None
        found.append((output.detach().cpu(), leaf.grad.cpu(), grads))
    return found


def run(budget: Budget, done: Callable[[object], None]) -> dict[str, Any]:
    """Layers, then as many quantizers as there is time for."""
    wrong, count = [], {"layers": 0, "sums": 0, "quantizers": 0}
    half = budget.left / 2
    for recipe, name, last in itertools.product((*SUMS, *ROTATED), layers(), (False, True)):
        if budget.left < half:
            break
        count["sums"] += 1
        if not check_sums(name, recipe, last):
            wrong.append(f"{name}, {recipe}{', channels last' if last else ''}")
    for name, bits, last in itertools.product(layers(), (8, 4, 16), (False, True)):
        if budget.left < 0:
            break
        count["layers"] += 1
        if not check_layer(name, bits, last):
            wrong.append(f"{name}, {bits} bits{', channels last' if last else ''}")
    for n, (name, x, by) in enumerate(quantizers_of()):
        if budget.left < 0:
            break
        count["quantizers"] += 1
        if not check_quantizer(x, by, n):
            wrong.append(name)
    return {"tried": count, "wrong": wrong}


def text(result: dict[str, Any]) -> str:
    tried = ", ".join(f"{n} {what}" for what, n in result["tried"].items())
    wrong = result["wrong"]
    return f"bits of the CPU: {tried}; {len(wrong)} differ" + "".join(f"\n  {w}" for w in wrong[:9])
