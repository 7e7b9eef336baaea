"""A grad_weight on 16-bit tensor cores as one operation of torch, also in compiled graphs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers.devices.by_device import register
from quantizers.kernels.gpu.device import multiprocessors, there

from .plan import Planned, Tensors, planned

#: steps that a part of the sum has at least
_STEPS = 16


def _result(g: Tensor, x: Tensor, groups: int, kernel: list[int], last: bool) -> Tensor:
    axis, parts = (1, groups) if kernel else (-1, 1)
    groups, produced, channels = (
        groups or g.shape[0],
        g.shape[axis] // parts,
        x.shape[axis] // parts,
    )
    order = [produced, *kernel, channels] if last else [produced, channels, *kernel]
    steps = [math.prod(order[n:]) for n in range(len(order) + 1)]  # of a group, ..., 1
    if last:
        steps.insert(2, steps.pop())
    return torch.empty_strided(
        (groups, produced, channels, *kernel), steps, dtype=torch.float32, device=g.device
    )


def _laid(x: Tensor, axis: int, half: torch.dtype, even: bool) -> Tensor:
    """x, or a copy that has its axis of channels innermost, and when `even` its rows evenly apart;
    of floating-point numbers in the 16-bit dtype."""
    if not even and (x.stride(axis) == 1 or x.shape[axis] == 1):
        return x
    whole = x.movedim(axis, -1)
    dtype = half if x.is_floating_point() else x.dtype
    return torch.empty(whole.shape, dtype=dtype, device=x.device).copy_(whole).movedim(-1, axis)


def gradient(
    g: Tensor,
    x: Tensor,
    groups: int,
    kernel: list[int],
    last: bool,
    window: list[int],
    half: torch.dtype,
    g_zero: Tensor | None,
    x_zero: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """fp32 (G, O, C, *kernel), c innermost in memory where `last`: see triton_gradient.gradient.

    g, x     numbers that `half` holds once the zero points are taken off: (N, G * O, H, W) and
             (N, G * C, H, W); without a kernel matrices (*N, rows, O) and (*N, rows, C), N at most
             one axis, over which the sum runs too, but where `groups` is 0: it is G then
    kernel   none or two axes;  window: stride, padding, dilation of each
    g_zero, x_zero, scale   of one number
    """
    y = _result(g, x, groups, kernel, last)
    if g.numel() == 0 or y.numel() == 0:
        return y.zero_()
    axis = 1 if kernel else -1
    with there(x):
        g, x = _laid(g, axis, half, False), _laid(x, axis, half, False)
        processors = multiprocessors(x.device)
        given = g_zero is not None, x_zero is not None

        def found(g: Tensor) -> Planned | None:
            return planned(
                Tensors(
                    (g.shape, g.stride()), (x.shape, x.stride()), y.stride(),
                    (g.itemsize, x.itemsize), groups, (*kernel,), (*window,), processors, _STEPS,
                    half, given, scale is not None,
                )
            )  # fmt: skip

        by = found(g)
        if by is None:
            g = _laid(g, axis, half, True)
            by = found(g)
        assert by is not None
        into, factor = y, y if scale is None else scale
        if by.add is not None:
            into = torch.empty((by.partial,), dtype=torch.float32, device=x.device)
        shifts = y if g_zero is None else g_zero, y if x_zero is None else x_zero
        launch, grid = by.gradient
        launch(grid, g, x, into, *shifts, factor)
        if by.add is not None:
            launch, grid = by.add
            launch(grid, into, y, factor)
    return y


def _shape(
    g: Tensor, x: Tensor, groups: int, kernel: list[int], last: bool, *others: object
) -> Tensor:
    return _result(g, x, groups, kernel, last)


grad_weight_half = register(
    "qtrain::grad_weight_half(Tensor g, Tensor x, int groups, int[] kernel, bool last,"
    " int[] window, ScalarType half, Tensor? g_zero, Tensor? x_zero, Tensor? scale) -> Tensor",
    gradient,
    _shape,
    "CPU",
    "CUDA",
)
