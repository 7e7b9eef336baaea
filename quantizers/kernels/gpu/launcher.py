"""Launches of Triton kernels, without what Triton finds out at each of them anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..serving import imported
from .device import INTERPRETED

_stream = None if INTERPRETED else getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Launch:
    """A kernel and all of its arguments that stay: `launch(grid, *tensors)`.

    The kernel takes the tensors first, then `numbers`, then the constants that it is compiled for.
    What Triton compiles depends, beside these, on the tensors' dtypes and on whether they lie at
    multiples of 16 bytes: each combination is compiled, or read from Triton's cache, once.
    """

    def __init__(
        self, module: str, name: str, numbers: tuple[Any, ...] = (), **constants: Any
    ) -> None:
        self.kernel = getattr(imported(module), name)
        self.numbers, self.constants = numbers, constants
        names = getattr(self.kernel, "arg_names", [])
        self.rest = (*numbers, *(constants[name] for name in names if name in constants))
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, grid: tuple[int, int, int], *tensors: Tensor) -> None:
        """tensors: on the device of the first, which is the current one."""
        if _stream is None:
            self.kernel[grid](*tensors, *self.numbers, **self.constants)
            return
        index, words = tensors[0].get_device(), [tensor.data_ptr() for tensor in tensors]
        key = (index, *[tensor.dtype for tensor in tensors], *[not word & 15 for word in words])
        kernel = self.compiled.get(key)
        if kernel is None:
            self.compiled[key] = self.kernel[grid](*tensors, *self.numbers, **self.constants)
            return
        kernel[grid](*words, *self.rest, stream=_stream(index))
