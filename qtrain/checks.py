"""Checks of user input: every error says the field, what was given, what is allowed, what next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def choice(field: str, got: object, allowed: Iterable[str]) -> str:
    """`got` where it is one of `allowed`; else ValueError with the nearest suggestion."""
    names = list(allowed)
    if isinstance(got, str) and got in names:
        return got
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{field}: got {got!r}, need one of {', '.join(names)}{hint}")


def integer(field: str, got: object, *, low: int, high: int | None = None, hint: str = "") -> int:
    """`got` where it is an int (no bool) in [low, high]; else TypeError or ValueError."""
    need = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    tail = f"; {hint}" if hint else ""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"{field}: got {got!r}, need {need}{tail}")
    if got < low or (high is not None and got > high):
        raise ValueError(f"{field}: got {_shown(got)}, need {need}{tail}")
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
        raise TypeError(f"{field}: got {got!r}, need {need}{tail}")
    if not low <= got < high or (positive and got <= 0):  # so is a NaN; an int may be huge
        raise ValueError(f"{field}: got {_shown(got)}, need {need}{tail}")
    return float(got)


def boolean(field: str, got: object) -> bool:
    """`got` where it is a bool; else TypeError."""
    if not isinstance(got, bool):
        raise TypeError(f"{field}: got {got!r}, need True or False")
    return got


def _shown(got: int | float) -> str:
    if isinstance(got, int) and got.bit_length() > 100:  # Python refuses to print very long ones
        return f"an integer of {got.bit_length()} bits"
    return repr(got)


def module(got: object) -> None:
    """TypeError unless `got` is a torch module."""
    if not isinstance(got, nn.Module):
        raise TypeError(f"model: got {type(got).__name__}, need a torch.nn.Module")


def tokens(got: object) -> None:
    """TypeError unless `got` is a tensor of int32 or int64, ValueError unless it is (N, T)."""
    kind = got.dtype if isinstance(got, Tensor) else type(got).__name__
    if kind not in (torch.int32, torch.int64):
        raise TypeError(f"tokens: got {kind}, need int64, the numbers of characters")
    assert isinstance(got, Tensor)
    if got.dim() != 2:
        raise ValueError(
            f"tokens: got {tuple(got.shape)}, need (N, T), N windows of T characters; "
            "tokens[None] makes a batch of one"
        )


def seed(got: object) -> None:
    """TypeError unless `got` is an int (no bool)."""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"seed: got {got!r}, need an integer")
