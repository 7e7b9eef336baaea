"""Checks of arguments: an error names the argument, what was given, and what is allowed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: the dtypes that are quantized
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shown(value: object) -> str:
    """A value in a line, whatever it is: Python refuses to print very long integers, and prints
    very long tensors."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # whatever the repr of a class of the user's own raises
        text = f"a {type(value).__name__}"
    line = text.partition("\n")[0]
    return text if line == text and len(text) <= 200 else f"{line[:200]}..."


def refuse(field: str, got: object, need: str, hint: str = "") -> NoReturn:
    """TypeError for a value of the wrong kind."""
    if not hint and inspect.isfunction(got):
        hint = f"{got.__name__} is a function: call it, {got.__name__}(...)"
    raise TypeError(f"{field}: got {shown(got)}, need {need}{f'; {hint}' if hint else ''}")


def instance(field: str, got: object, kind: type[T], need: str) -> T:
    """`got` where it is of `kind`; else TypeError."""
    if not isinstance(got, kind):
        refuse(field, got, need)
    return got


def suggestion(got: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """ "; did you mean ...?" for a string that is near to one of the names, else nothing."""
    near = difflib.get_close_matches(got if isinstance(got, str) else "", names, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def choice(field: str, got: object, allowed: Iterable[str]) -> str:
    """`got` where it is one of `allowed`; else ValueError with the nearest suggestion."""
    names = list(allowed)
    if isinstance(got, str) and got in names:
        return got
    hint = suggestion(got, names, 0.4)
    raise ValueError(f"{field}: got {shown(got)}, need one of {', '.join(names)}{hint}")


def integer(
    field: str, got: object, *, low: int | None = None, high: int | None = None, hint: str = ""
) -> int:
    """`got` where it is an int (no bool) in [low, high]; else TypeError or ValueError."""
    need = "an integer"
    if low is not None:
        need += f" of at least {low}" if high is None else f" from {low} to {high}"
    tail = f"; {hint}" if hint else ""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"{field}: got {shown(got)}, need {need}{tail}")
    if (low is not None and got < low) or (high is not None and got > high):
        raise ValueError(f"{field}: got {shown(got)}, need {need}{tail}")
    return got


#: The largest number that training in fp32 can take.
LARGEST = torch.finfo(torch.float32).max


def number(
    field: str,
    got: object,
    *,
    low: float,
    high: float = LARGEST,
    positive: bool = False,
    hint: str = "",
) -> float:
    """`got` where it is a number in [low, high) (and > 0 if `positive`); else an error."""
    need = "a finite number above 0" if positive else f"a finite number of at least {low:g}"
    need += f" and below {high:.3g}"
    tail = f"; {hint}" if hint else ""
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise TypeError(f"{field}: got {shown(got)}, need {need}{tail}")
    if not low <= got < high or (positive and got <= 0):  # so is a NaN; an int may be huge
        raise ValueError(f"{field}: got {shown(got)}, need {need}{tail}")
    return float(got)


def share(field: str, got: object, *, above: float) -> float:
    """`got` where it is a number in (above, 1]; else TypeError or ValueError."""
    need = f"a number in ({above:g}, 1]"
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise TypeError(f"{field}: got {shown(got)}, need {need}")
    if not above < got <= 1:
        raise ValueError(f"{field}: got {shown(got)}, need {need}")
    return got


def boolean(field: str, got: object) -> bool:
    """`got` where it is a bool; else TypeError."""
    if not isinstance(got, bool):
        raise TypeError(f"{field}: got {shown(got)}, need True or False")
    return got


def text(field: str, got: object) -> str:
    """`got` where it is a string; else TypeError."""
    return instance(field, got, str, "a string")


def function(field: str, got: T, need: str, *args: object, **kwargs: object) -> T:
    """`got` where it is an object that can be called with such arguments, not a class whose
    instances could be; else TypeError.  `need` says what it is, in words."""
    if not callable(got) or isinstance(got, type):
        hint = f"{got.__name__} is a class: give an object" if isinstance(got, type) else ""
        refuse(field, got, need, hint)
    try:
        # a module is called through a door that takes anything
        own = getattr(got, "forward", got) if hasattr(got, "named_parameters") else got
        signature = inspect.signature(own)
    except (TypeError, ValueError):  # some functions written in C have none
        return got
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{field}: got {shown(got)}, need {need}; called so: {error}") from error
    return got


def mapping(field: str, got: T, need: str) -> T:
    """`got` where it is a mapping whose keys are strings; else TypeError."""
    if not isinstance(got, Mapping):
        raise TypeError(f"{field}: got {shown(got)}, need {need}")
    odd = [key for key in got if not isinstance(key, str)]
    if odd:
        raise TypeError(f"{field}: got the key {shown(odd[0])}, need {need}")
    return got


def shape(field: str, got: Any, *, unknown: bool = False) -> tuple[Any, ...]:
    """A shape as a tuple; None among its sizes where those may be `unknown`; else TypeError or
    ValueError."""
    need = "a tuple of sizes, integers of at least 0" + (" or None" if unknown else "")
    if not isinstance(got, tuple | list | range):
        raise TypeError(f"{field}: got {shown(got)}, need {need}")
    if torch._C._get_tracing_state() is not None or any(
        isinstance(size, torch.SymInt) for size in got
    ):
        return tuple(got)  # sizes of a tensor that is traced: tensors, or symbols
    for size in got:
        if (size is None and unknown) or (isinstance(size, int) and not isinstance(size, bool)):
            continue
        raise TypeError(f"{field}: got {shown(got)}, need {need}")
    if any(size is not None and not 0 <= size < 2**63 for size in got):
        raise ValueError(f"{field}: got {shown(got)}, need {need}")
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
        raise TypeError(f"{field}: got {shown(got)}, need a tensor")
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
        raise TypeError(
            f"key: got {shown(got)}, need a 0-d int64 tensor: root_key(seed, ...) makes one"
        )
    return got


def state(got: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """`got` where it is a dict with tensors of these names; else TypeError or ValueError."""
    need = "what quantizer.init_state(shape) returns"
    if not isinstance(got, dict):
        raise TypeError(f"state: got {shown(got)}, need {need}, a dict of tensors by name")
    for name, value in got.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"state: got {shown(name)}: {shown(value)}, need {need}")
    for name in names:
        if name not in got:
            raise ValueError(f"state: got {shown(list(got))}, need {need}, with {', '.join(names)}")
    return got


def whole(field: str, got: object) -> Tensor:
    """`got` where it is a dense tensor of integers; else TypeError."""
    x = tensor(field, got, "a tensor of integers")
    if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
        raise TypeError(f"{field}: got {shown(got)}, need a tensor of integers")
    return x


def factor(got: Any, shape: torch.Size) -> None:
    """TypeError or ValueError unless `got` is an fp32 tensor that broadcasts to `shape`."""
    if not isinstance(got, Tensor) or got.dtype is not torch.float32:
        raise TypeError(f"factor: got {shown(got)}, need a tensor of float32")
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
        raise TypeError(
            f"{field}: got {shown(got)}, need an int32 tensor, of random_bits(key, shape)"
        )
    if got.shape != x.shape or got.device != x.device:
        raise ValueError(
            f"{field}: got {shown(got)} on {got.device}, need x's, {tuple(x.shape)} on {x.device}"
        )
