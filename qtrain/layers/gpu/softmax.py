"""Softmax with its mask, and its gradient, in one pass each: how the kernels are launched."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import OPTIONS, power_of_two
from quantizers.kernels.gpu.device import serves as readable
from quantizers.kernels.gpu.launcher import launched
from quantizers.kernels.serving import SOURCES, imported

KERNELS = "qtrain.layers.gpu.triton_softmax"
#: keys and elements of a program, and rows that int32 numbers, the last program's included
_KEYS, _TILE, _ROWS = 8192, 4096, 2**30


class _Walk(NamedTuple):
    """Rows as three axes, of which kernels are told the inner two, and each tensor's steps."""

    rows: int
    sizes: tuple[int, int]
    steps: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=4096)
def _walk(shape: tuple[int, ...], *strides: tuple[int, ...]) -> _Walk | None:
    """Of (*, keys), and of tensors of that shape by their strides: axes that are evenly apart in
    all of them are one; None where more than three are left."""
    axes: list[tuple[int, ...]] = []
    for size, *steps in zip(shape[:-1], *(own[:-1] for own in strides), strict=True):
        if axes and all(out == step * size for out, step in zip(axes[-1][1:], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, *steps)
        elif size != 1:
            axes.append((size, *steps))
    if len(axes) > 3 or math.prod(shape[:-1]) >= _ROWS:
        return None
    axes = [(1, *[0] * len(strides))] * (3 - len(axes)) + axes
    (_, *sizes), *steps = zip(*axes, strict=True)
    return _Walk(math.prod(shape[:-1]), tuple(sizes), tuple(steps))


def _adjacent(x: Tensor) -> bool:
    return x.shape[-1] == 1 or x.stride(-1) == 1


def _program(walk: _Walk, keys: int, *steps: tuple[int, int, int]) -> tuple[int, dict[str, Any]]:
    """How many, and their constants.  steps: of what is read as many at once as these allow."""
    columns = power_of_two(keys)
    high = min(max(_TILE // columns, 1), power_of_two(walk.rows))
    return -(-walk.rows // high), {
        "ALIGNED": math.gcd(16, keys, *(step for own in steps for step in own)),
        "ROWS": high, "KEYS": columns, "num_warps": min(max(high * columns // 512, 1), 16),
        **OPTIONS,
    }  # fmt: skip


def _operands(
    logits: Tensor, mask: Tensor | None, idle: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """mask and idle in the logits' shape, or the logits in their places; None: in no such one."""
    full, operands = logits.shape, (mask, idle)
    for given in operands:
        if given is not None and not (
            0 < given.dim() <= len(full)
            and all(a in (1, b) for a, b in zip(given.shape[::-1], full[::-1], strict=False))
        ):
            return None
    first, second = (logits if given is None else given.expand(full) for given in operands)
    return first, second


def serves(logits: Tensor, mask: Tensor | None, idle: Tensor | None) -> bool:
    """Whether `softmax` may be called: of fp32, fp16 and bf16, up to 8192 adjacent keys, where
    torch need not see the sum, and a mask that learns nothing."""
    if (
        logits.dtype not in SOURCES
        or (mask is not None and (mask.dtype not in SOURCES or _learns(mask)))
        or not 0 < logits.numel()
        or not 0 < logits.dim()
        or logits.shape[-1] > _KEYS
        or not _adjacent(logits)
        or not readable(logits, mask, idle)
        or imported(KERNELS) is None
    ):
        return False
    operands = _operands(logits, mask, idle)
    if operands is None:
        return False
    return _walk(logits.shape, logits.stride(), *(t.stride() for t in operands)) is not None


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def softmax(logits: Tensor, mask: Tensor | None, idle: Tensor | None) -> Tensor:
    """See softmax.softmax: of what `serves`, in the dtype that torch's operations have."""
    dtype = logits.dtype if mask is None else torch.result_type(logits, mask)
    narrow = mask is not None and dtype == logits.dtype != torch.float32
    if logits.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32
    result = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    operands = _operands(logits, mask, idle)
    assert operands is not None
    walk = _walk(logits.shape, logits.stride(), *(t.stride() for t in operands))
    assert walk is not None
    keys, adjacent = logits.shape[-1], _adjacent(operands[0])
    programs, constants = _program(walk, keys, *walk.steps[: 1 + adjacent])
    x, m, i = walk.steps
    launched(
        KERNELS, "softmax", (programs, 1, 1), logits, *operands, result, walk.rows, keys,
        *walk.sizes, *x, *m, operands[0].stride(-1), *i, MASKED=mask is not None,
        ADJACENT=adjacent, NARROW=narrow, IDLE=idle is not None, **constants,
    )  # fmt: skip
    return result


def gradient(grad: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor | None:
    """See softmax.gradient; None where no kernel serves, or the gradient's own is wanted."""
    keys = weights.shape[-1]
    if (
        _learns(grad, weights)
        or any(kind not in SOURCES for kind in (grad.dtype, weights.dtype, dtype))
        or not weights.numel()
        or keys > _KEYS
        or not _adjacent(weights)
        or not readable(grad, weights)
        or imported(KERNELS) is None
    ):
        return None
    walk = _walk(weights.shape, weights.stride(), grad.stride())
    if walk is None:
        return None
    result = torch.empty(weights.shape, dtype=dtype, device=weights.device)
    adjacent = _adjacent(grad)
    programs, constants = _program(walk, keys, *walk.steps[: 1 + adjacent])
    w, g = walk.steps
    launched(
        KERNELS, "softmax_gradient", (programs, 1, 1), weights, grad, result, walk.rows, keys,
        *walk.sizes, *w, *g, grad.stride(-1), ADJACENT=adjacent, **constants,
    )  # fmt: skip
    return result
