"""Checks of tensors, and of what goes with them: as in `checks`, an error says what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .checks import refuse, shown

#: the dtypes that are quantized
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shape(field: str, got: Any, *, unknown: bool = False) -> tuple[Any, ...]:
    """A shape as a tuple; None among its sizes where those may be `unknown`; else TypeError or
    ValueError."""
    need = "a tuple of sizes, integers of at least 0" + (" or None" if unknown else "")
    if not isinstance(got, tuple | list | range):
        refuse(field, got, need)
    if torch._C._get_tracing_state() is not None or any(
        isinstance(size, torch.SymInt) for size in got
    ):
        return tuple(got)  # sizes of a tensor that is traced: tensors, or symbols
    for size in got:
        if (size is None and unknown) or (isinstance(size, int) and not isinstance(size, bool)):
            continue
        refuse(field, got, need)
    if any(size is not None and not 0 <= size < 2**63 for size in got):
        refuse(field, got, need, error=ValueError)
    return tuple(got)


def tensor(field: str, got: object, need: str = "a tensor") -> Tensor:
    """`got` where it is a dense tensor; else TypeError."""
    dense = isinstance(got, Tensor) and (
        torch.compiler.is_compiling() or (got.layout is torch.strided and not got.is_nested)
    )
    if not isinstance(got, Tensor) or not dense:
        kind = f"{shown(got)} ({got.layout})" if isinstance(got, Tensor) else shown(got)
        raise TypeError(f"{field}: got {kind}, need {need}")
    return got


def real(got: Any, field: str = "x") -> Tensor:
    """`got` where it is a dense tensor of float16, bfloat16, float32 or float64; else TypeError."""
    if not isinstance(got, Tensor):
        refuse(field, got, "a tensor")
    # the layout is not asked for in a compiled backward pass, which takes dense tensors alone
    dense = torch.compiler.is_compiling() or got.layout is torch.strided
    if got.dtype not in REAL or not dense:
        kind = got.dtype if dense else got.layout
        raise TypeError(
            f"{field}: cannot quantize a tensor of {kind}; need float16, bfloat16, float32 or "
            f"float64, dense"
        )
    return got


def wide(got: Any, field: str = "x") -> Tensor:
    """`got` where it is a tensor of float32 or float64; else TypeError."""
    x = tensor(field, got, "a dense tensor of float32 or float64")
    if x.dtype not in (torch.float32, torch.float64):
        refuse(field, got, "a dense tensor of float32 or float64")
    return x


def key(got: Any) -> Tensor:
    """`got` where it is a noise key, a 0-d int64 tensor; else TypeError."""
    if not isinstance(got, Tensor) or got.dtype is not torch.int64 or got.dim():
        refuse("key", got, "a 0-d int64 tensor: root_key(seed, ...) makes one")
    return got


def state(got: Any, names: Iterable[str], x: Tensor | None = None) -> dict[str, Tensor]:
    """`got` where it is a dict with tensors of these names, where x is; else TypeError or
    ValueError."""
    need = "what the quantizer's init_state(shape), or init_parameters(shape), returns"
    if not isinstance(got, dict):
        raise TypeError(f"state: got {shown(got)}, need {need}, a dict of tensors by name")
    for name, value in got.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"state: got {shown(name)}: {shown(value)}, need {need}")
    for name in names:
        if name not in got:
            raise ValueError(f"state: got {shown(list(got))}, need {need}, with {', '.join(names)}")
        if x is not None and got[name].device != x.device:
            raise ValueError(
                f"state: {name} is on {got[name].device}, and x on {x.device}; move one of them"
            )
    return got


def whole(field: str, got: object) -> Tensor:
    """`got` where it is a dense tensor of integers; else TypeError."""
    x = tensor(field, got, "a tensor of integers")
    if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
        refuse(field, got, "a tensor of integers")
    return x


def factor(got: Any, shape: torch.Size) -> None:
    """TypeError or ValueError unless `got` is an fp32 tensor that broadcasts to `shape`."""
    if not isinstance(got, Tensor) or got.dtype is not torch.float32:
        refuse("factor", got, "a tensor of float32")
    if not got.dim():
        return
    tail = shape[len(shape) - got.dim() :]
    if got.dim() > len(shape) or any(
        size not in (1, whole) for size, whole in zip(got.shape, tail, strict=True)
    ):
        raise ValueError(f"factor: got {shown(got)}, which does not broadcast to {tuple(shape)}")


def random(field: str, got: Any, x: Tensor) -> None:
    """TypeError or ValueError unless `got` are 32 random bits for each element of x."""
    if not isinstance(got, Tensor) or got.dtype is not torch.int32:
        refuse(field, got, "an int32 tensor, of random_bits(key, shape)")
    if got.shape != x.shape or got.device != x.device:
        raise ValueError(
            f"{field}: got {shown(got)} on {got.device}, need x's, {tuple(x.shape)} on {x.device}"
        )
