"""The kernel of a convolution's grad_weight with a floating-point operand, beside cuDNN's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .clock import Budget, captured, each, milliseconds


def _last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _cudnn(g: Tensor, x: Tensor, w: Tensor, stride: int, pad: int) -> Tensor:
    window = [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1
    found: Tensor = torch.ops.aten.convolution_backward(
        g, x, w.to(x.dtype), None, *window, [False, True, False]
    )[1]
    return found


def timed(shape: tuple[int, ...], rounds: int, device: str = "cuda") -> dict[str, Any]:
    """A gradient on bf16's grid, kept as fp32, by 8-bit codes and by such numbers; cuDNN's of the
    same numbers in fp32 and in bf16.

    shape: N, C, H, K, R, stride.  error: the largest, of a sum, as a share of its terms' magnitude.
    """
    n, c, h, k, r, stride = shape
    pad = r // 2
    size = (h + 2 * pad - r) // stride + 1
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randint(-127, 128, (n, c, h, h), generator=draw, device=device)
    g = torch.randn((n, k, size, size), generator=draw, device=device).bfloat16()
    w = torch.empty((k, c, r, r), device=device).contiguous(memory_format=torch.channels_last)
    zero = torch.tensor(128, device=device, dtype=torch.int32)
    unsigned, signed = _last(x + 128, torch.uint8), _last(x, torch.int8)
    floats = [_last(t, torch.float32) for t in (g, x)]
    halves = [_last(t, torch.bfloat16) for t in (g, x)]
    wide = [_last(t, torch.float64) for t in (g, x)]
    by = 1, [r, r], True, [stride, stride, pad, pad, 1, 1], torch.bfloat16, None

    def own(x: Tensor, zero: Tensor | None = None) -> Tensor:
        found: Tensor = torch.ops.qtrain.grad_weight_half(floats[0], x, *by, zero, None)
        return found[0]

    runs = {
        "uint8 affine": partial(own, unsigned, zero),
        "int8": partial(own, signed),
        "bf16": partial(own, floats[1]),
        "cuDNN TF32": partial(_cudnn, *floats, w, stride, pad),
        "cuDNN bf16": partial(_cudnn, *halves, w, stride, pad),
    }
    exact = _cudnn(*wide, w, stride, pad)
    reach = _cudnn(wide[0].abs(), wide[1].abs(), w, stride, pad).clamp(min=1e-30)
    errors = [
        ((run().double() - exact).abs() / reach).max().item() for run in list(runs.values())[:3]
    ]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    times = milliseconds({name: captured(run) for name, run in runs.items()}, rounds, 3.0)
    torch.backends.cudnn.allow_tf32 = before
    return {"shape": [*shape], "error": max(errors), "ms": times}


def run(budget: Budget, rounds: int, shapes: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
    return each(shapes, timed, budget, rounds)
