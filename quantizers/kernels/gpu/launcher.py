"""Launches of Triton kernels, without what Triton finds out at each of them anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..serving import imported
from .device import INTERPRETED

_stream = None if INTERPRETED else getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Launch:
    """A kernel and all of its arguments that stay: `launch(grid, *varying)`.

    The kernel takes the varying ones first, then `numbers`, then the constants that it is compiled
    for.  What Triton compiles depends, beside these, on the tensors' dtypes, on whether they lie at
    multiples of 16 bytes, and on whether integers fit into 32 bits: each combination is compiled,
    or read from Triton's cache, once.
    """

    def __init__(
        self, module: str, name: str, numbers: tuple[Any, ...] = (), **constants: Any
    ) -> None:
        self.kernel = getattr(imported(module), name)
        self.numbers, self.constants = numbers, constants
        names = getattr(self.kernel, "arg_names", [])
        self.rest = (*numbers, *(constants[name] for name in names if name in constants))
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, grid: tuple[int, int, int], first: Tensor, *others: Tensor | int) -> None:
        """first, others: what varies; all on the device of the first, which is the current one."""
        if _stream is None:
            self.kernel[grid](first, *others, *self.numbers, **self.constants)
            return
        index = first.get_device()
        key: list[Any] = [index]
        words = []
        for word in (first, *others):
            if isinstance(word, int):
                key.append(-(2**31) <= word < 2**31)
            else:
                dtype = word.dtype
                word = word.data_ptr()
                key += (dtype, not word & 15)
            words.append(word)
        kernel = self.compiled.get(tuple(key))
        if kernel is None:
            made = self.kernel[grid](first, *others, *self.numbers, **self.constants)
            self.compiled[tuple(key)] = made
            return
        kernel[grid](*words, *self.rest, stream=_stream(index))
