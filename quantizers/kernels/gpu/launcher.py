"""Launches of Triton kernels, without what Triton finds out at each of them anew."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..serving import imported
from .device import INTERPRETED, there

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
            _alike(tensors)
            self.kernel[grid](*tensors, *self.numbers, **self.constants)
            return
        places = [tensor.get_device() for tensor in tensors]
        words = [tensor.data_ptr() for tensor in tensors]
        key = (*places, *[tensor.dtype for tensor in tensors], *[not word & 15 for word in words])
        kernel = self.compiled.get(key)
        if kernel is None:
            _alike(tensors)
            self.compiled[key] = self.kernel[grid](*tensors, *self.numbers, **self.constants)
            return
        kernel[grid](*words, *self.rest, stream=_stream(places[0]))


def _alike(tensors: tuple[Tensor, ...]) -> None:
    """RuntimeError where they lie on several devices: a kernel would read the memory of another."""
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {' and '.join(devices)}"
        )


@lru_cache(maxsize=8192)
def _kept(
    module: str, name: str, numbers: tuple[Any, ...], constants: tuple[tuple[str, Any], ...]
) -> Launch:
    return Launch(module, name, numbers, **dict(constants))


def launched(
    module: str, name: str, grid: tuple[int, int, int], *words: Any, **constants: Any
) -> None:
    """A kernel on the device of the first word: tensors, then numbers, then constants."""
    tensors = [word for word in words if isinstance(word, Tensor)]
    launch = _kept(module, name, words[len(tensors) :], tuple(constants.items()))
    with there(tensors[0]):
        launch(grid, *tensors)
