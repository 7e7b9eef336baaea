"""The least time a step could take on this machine: its products' multiply-accumulates over the
machine's measured rates, plus the bytes they must move over its measured bandwidth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from step import Step
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import ScaledDotProductAttention


@dataclass(frozen=True)
class Product:
    """A layer's product: multiply-accumulates of its forward and elements of its three tensors."""

    macs: int
    input: int
    weight: int
    output: int
    wants_grad_input: bool


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Multiply-accumulates and bytes a second, the best over a few shapes."""

    fp32: float
    int8: float
    bandwidth: float
    by_shape: dict[str, float]


def products(step: Step) -> list[Product]:
    """The products of one forward of a full-precision model, attention's two included."""
    found: list[Product] = []

    def layer(module: nn.Module, args: Any, output: Any) -> None:
        x = args[0]
        weight: Any = module.weight
        found.append(
            Product(
                output.numel() * weight[0].numel(), x.numel(), weight.numel(), output.numel(),
                x.requires_grad,
            )
        )  # fmt: skip

    def attention(module: nn.Module, args: Any, output: Any) -> None:
        query, key, value = args[:3]
        scores = query.shape[:-1].numel() * key.shape[-2]
        sizes = query.numel(), key.numel(), value.numel(), output.numel()
        found.append(Product(scores * query.shape[-1], sizes[0], sizes[1], scores, True))
        found.append(Product(scores * value.shape[-1], scores, sizes[2], sizes[3], True))

    handles = []
    for module in step.plain.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            handles.append(module.register_forward_hook(layer))
        elif isinstance(module, ScaledDotProductAttention):
            handles.append(module.register_forward_hook(attention))
    try:
        step.forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def floor_seconds(found: list[Product], rates: Rates) -> dict[str, float]:
    """Of a step in fp32, and in int8 with grad_weight in fp32 units (recipe int8).

    Bytes: every product reads its operands and writes its result once.  fp32: 4 bytes an element
    each.  int8: an operand is read twice in fp32 (range, codes) and written as codes (1 byte; the
    gradient's second copy 2 bytes), products read those and write fp32.
    """
    forward = sum(p.macs for p in found)
    grad_input = sum(p.macs for p in found if p.wants_grad_input)
    plain = quantized = 0
    for p in found:
        x, w, y, inner = p.input, p.weight, p.output, p.wants_grad_input
        plain += 4 * (x + w + y) * (3 if inner else 2)
        quantized += (8 + 1) * (x + w) + (x + w + 4 * y)  # forward
        quantized += ((8 + 1) * y + (y + w + 4 * x)) if inner else 0  # grad_input
        quantized += (4 + 2) * y + (2 * y + x + 4 * w)  # grad_weight
    macs = 2 * forward + grad_input
    return {
        "fp32": macs / rates.fp32 + plain / rates.bandwidth,
        "int8": (forward + grad_input) / rates.int8
        + forward / rates.fp32
        + quantized / rates.bandwidth,
    }


def measure_rates(device: torch.device, *, quick: bool) -> Rates:
    """The machine's rates with the current number of threads."""
    budget = 0.02 if quick else 1.0
    by_shape: dict[str, float] = {}

    def measured(name: str, macs: float, run: Callable[[], Any]) -> float:
        by_shape[name] = macs / _best(run, budget, device)
        return by_shape[name]

    fp32, int8 = [0.0], [0.0]
    for m, k, n in [(64, 64, 64)] if quick else [(2048, 512, 2048), (1024, 1024, 1024)]:
        shape = f"{m}x{k}x{n}"
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        fp32.append(measured(f"mm fp32 {shape}", m * k * n, lambda a=a, b=b: a @ b))  # type: ignore[misc]
        codes = (torch.ones_like(a, dtype=torch.int8), torch.ones_like(b, dtype=torch.int8))
        int8.append(measured(f"_int_mm {shape}", m * k * n, lambda c=codes: torch._int_mm(*c)))  # type: ignore[misc]
    for n, c, s in [(2, 8, 8)] if quick else [(64, 64, 32), (64, 256, 8), (64, 512, 4)]:
        x, w = torch.randn(n, c, s, s, device=device), torch.randn(c, c, 3, 3, device=device)
        x = x.to(memory_format=torch.channels_last)
        macs, shape = 9 * n * c * c * s * s, f"{n}x{c}x{s}x{s}, 3x3"
        run = lambda x=x, w=w: F.conv2d(x, w, padding=1)  # noqa: E731
        fp32.append(measured(f"conv fp32 {shape}", macs, run))
        convolution = _int8_convolution(x, w)
        if convolution is not None:
            int8.append(measured(f"conv int8 {shape}", macs, convolution))
    source = torch.ones(2**20 if quick else 2**26, device=device)  # 256 MB
    target = torch.empty_like(source)
    moved = 2 * 4 * source.numel()
    bandwidth = measured("copy", moved, lambda: target.copy_(source))
    return Rates(fp32=max(fp32), int8=max(int8), bandwidth=bandwidth, by_shape=by_shape)


def _int8_convolution(x: Tensor, w: Tensor) -> Callable[[], Tensor] | None:
    """torch's int8 convolution (oneDNN, uint8 x int8 -> fp32) of x's shape; None: not built in."""
    prepack = getattr(torch.ops.onednn, "qconv_prepack", None)
    run = getattr(torch.ops.onednn, "qconv2d_pointwise", None)
    if x.device.type != "cpu" or prepack is None or run is None:
        return None
    one, zero = torch.ones(w.shape[0]), torch.zeros(w.shape[0], dtype=torch.int32)
    where = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups
    packed = prepack(w.to(torch.int8), one, 1.0, 128, *where, list(x.shape))
    codes = x.to(torch.uint8)
    return lambda: run(
        codes, 1.0, 128, packed, one, zero, None, *where, 1.0, 0, torch.float32, "none", [], ""
    )


def _best(run: Callable[[], Any], budget: float, device: torch.device) -> float:
    """Seconds of the fastest of the calls that fit into `budget` seconds."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    best, end = math.inf, time.perf_counter() + budget
    while time.perf_counter() < end:
        best = min(best, once())
    return best
