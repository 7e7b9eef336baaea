"""The kernels by themselves: a quantizer's bandwidth, convolutions and norms beside cuDNN's, sums
in blocks and by accumulators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from quantizers import IntFormat, Quantizer, minmax, root_key, stochastic

from . import accumulators, blocks, gradients, norms
from .clock import Budget, captured, milliseconds

#: N, C, H, K, R, stride
SHAPES = (
    (128, 64, 32, 64, 3, 1),
    (128, 256, 8, 256, 3, 1),
    (128, 512, 4, 512, 3, 1),
    (64, 64, 56, 256, 1, 1),
    (64, 256, 14, 256, 3, 1),
    (64, 1024, 14, 256, 1, 1),
    (64, 512, 7, 512, 3, 1),
    (64, 256, 56, 512, 1, 2),
)


def _quantizers(rounds: int) -> dict[str, Any]:
    x = torch.randn(64 * 2**20, device="cuda")
    y, key = torch.empty_like(x), root_key(1).cuda()
    eight = IntFormat(8)
    affine = IntFormat(8, signed=False, symmetric=False)
    subjects = {
        "copy": partial(y.copy_, x),
        "nearest": partial(Quantizer(format=eight), x),
        "stochastic": partial(Quantizer(format=eight, rounding=stochastic()), x, key=key),
        "affine": partial(Quantizer(format=affine, range=minmax), x),
    }
    subjects = {name: captured(run) for name, run in subjects.items()}
    times = milliseconds(subjects, rounds, 20.0)
    copy = times["copy"].median / 8
    # two reads and one byte written
    return {
        name: {"ms": ms, "of_copy": 1.0 if name == "copy" else 9 * copy / ms.median}
        for name, ms in times.items()
    }


def convolved(
    shape: tuple[int, ...], device: str
) -> tuple[dict[str, Callable[[], Tensor]], Tensor, Tensor]:
    """Convolutions of one shape in several units, the int8 one's sums and the exact ones."""
    n, c, h, k, r, stride = shape
    convolve_int8, pad = torch.ops.qtrain.convolve_int8, r // 2
    size = (h + 2 * pad - r) // stride + 1
    draw, last = torch.Generator(device).manual_seed(0), torch.channels_last
    x, w = (
        torch.randint(-127, 128, each, generator=draw, device=device, dtype=torch.int8)
        .contiguous(memory_format=last)
        for each in ((n, c, h, h), (k, c, r, r))
    )  # fmt: skip
    scales = [torch.rand(k, device=device)]
    zero = torch.tensor(3, device=device, dtype=torch.int32)
    codes = (x.int() + 128).to(torch.uint8).contiguous(memory_format=last)
    floats, halves = [t.float() for t in (x, w)], [t.bfloat16() for t in (x, w)]
    window = [size, size], "channels_last", [stride, stride], [pad, pad], [1, 1], False
    operands, shifted = (x[:, None], w[None], *window), (codes[:, None], w[None], *window)
    subjects = {
        "int8": partial(convolve_int8, *operands, None, scales, None),
        "uint8 affine": partial(convolve_int8, *shifted, zero, scales, None),
        "TF32": partial(F.conv2d, *floats, None, stride, pad),
        "bf16": partial(F.conv2d, *halves, None, stride, pad),
    }
    sums: Tensor = convolve_int8(*operands, None, [], None)[:, 0]
    return subjects, sums, F.conv2d(x.double(), w.double(), None, stride, pad)


def _convolutions(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    for shape in SHAPES:
        if budget.left < 0:
            break
        subjects, sums, exact = convolved(shape, "cuda")
        right = torch.equal(sums.double(), exact)
        runs = {name: captured(run) for name, run in subjects.items()}
        found.append({"shape": [*shape], "exact": right, "ms": milliseconds(runs, rounds, 3.0)})
    torch.backends.cudnn.allow_tf32 = before
    return found


def run(budget: Budget, done: Callable[[object], None], *, rounds: int = 7) -> dict[str, Any]:
    return {
        "quantizers": _quantizers(rounds),
        "convolutions": _convolutions(budget, rounds),
        "gradients": gradients.run(budget, rounds, ((128, 3, 32, 64, 3, 1), *SHAPES)),
        "norms": norms.run(budget, rounds),
        "blocks": blocks.run(budget, rounds),
        "accumulators": accumulators.run(budget, rounds),
    }


def text(result: dict[str, Any]) -> str:
    lines = [
        [name, f"{row['ms'][1]:.3f}", f"{row['of_copy']:.2f}"]
        for name, row in result["quantizers"].items()
    ]
    first = tabulate(lines, ["64 M fp32 values", "ms", "of a copy's bandwidth"])
    lines = [
        [",".join(map(str, row["shape"])), "yes" if row["exact"] else "NO",
         *(f"{ms[1]:.3f}" for ms in row["ms"].values())]
        for row in result["convolutions"]
    ]  # fmt: skip
    names = list(result["convolutions"][0]["ms"]) if lines else []
    second = tabulate(lines, ["N,C,H,K,R,stride", "exact", *(f"{name} ms" for name in names)])
    others = [_beside(result[part], name) for part, name in _BESIDE.items()]
    return "\n\n".join([first, second, *others])


_BESIDE = {
    "gradients": "grad_weight of", "norms": "norm of N,C,H",
    "blocks": "blocks, tokens, out, in", "accumulators": "accumulators, tokens, out, in",
}  # fmt: skip


def _beside(rows: list[dict[str, Any]], what: str) -> str:
    """Errors and times, a row for each shape."""
    lines = [
        [",".join(map(str, row["shape"])), f"{row['error']:.1e}",
         *(f"{ms[1]:.3f}" for ms in row["ms"].values())]
        for row in rows
    ]  # fmt: skip
    names = list(rows[0]["ms"]) if lines else []
    return tabulate(lines, [what, "error", *(f"{name} ms" for name in names)])
