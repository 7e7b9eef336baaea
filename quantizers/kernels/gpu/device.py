"""What every launch of a Triton kernel needs to know."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quantizers.devices import memory

from ..serving import imported

#: Triton's interpreter runs kernels on CPU tensors
INTERPRETED = os.getenv("TRITON_INTERPRET") == "1"
#: modules of kernels
ELEMENTS = "quantizers.kernels.gpu.triton_elements"
RANGE = "quantizers.kernels.gpu.triton_range"
#: as the processor rounds: a product and a sum are never one operation
OPTIONS: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": False}

_HERE = nullcontext()


def serves(x: Tensor, *others: Tensor | None) -> bool:
    """Whether kernels may read x and the others, which lie on its device."""
    index, read = x.get_device(), [x]
    for other in others:
        if other is not None:
            if other.get_device() != index:
                return False
            read.append(other)
    kind = "cpu" if INTERPRETED else "cuda"
    return memory.serves(*read, on=kind) and imported(ELEMENTS) is not None


def there(x: Tensor) -> Any:
    """The device on which kernels are launched."""
    if INTERPRETED or x.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; of the interpreter, few."""
    if INTERPRETED:
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def bound(count: int) -> Any:
    """How often a kernel's loop runs: a constant to the interpreter, which counts to no other."""
    if not INTERPRETED:
        return count
    import triton.language as tl

    return tl.constexpr(count)


def power_of_two(n: int) -> int:
    """The least that is not below n >= 1."""
    return 1 << (n - 1).bit_length()
