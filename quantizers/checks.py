"""Checks of arguments: an error names the argument, what was given, and what is allowed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


def refuse(
    field: str, got: object, need: str, hint: str = "", error: type[Exception] = TypeError
) -> NoReturn:
    """An error: TypeError for a value of the wrong kind."""
    if not hint and inspect.isfunction(got):
        hint = f"{got.__name__} is a function: call it, {got.__name__}(...)"
    raise error(f"{field}: got {shown(got)}, need {need}{f'; {hint}' if hint else ''}")


def instance(field: str, got: object, kind: type[T], need: str) -> T:
    """`got` where it is of `kind`; else TypeError."""
    if not isinstance(got, kind):
        refuse(field, got, need)
    return got


def suggestion(got: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """ "; did you mean ...?" for a string that is near to one of the names, else nothing."""
    names = list(names)
    word = got if isinstance(got, str) else ""
    same = [name for name in names if name.lower() == word.lower()]
    near = same or difflib.get_close_matches(word, names, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def choice(field: str, got: object, allowed: Iterable[str]) -> str:
    """`got` where it is one of `allowed`; else ValueError that lists them, the nearest first."""
    names = list(allowed)
    if isinstance(got, str) and got in names:
        return got
    hint = suggestion(got, names, 0.4)
    near = difflib.get_close_matches(got, names, 3, 0.6) if isinstance(got, str) else []
    listed = ", ".join(dict.fromkeys([*near, *names]))
    raise ValueError(f"{field}: got {shown(got)}, need one of {listed}{hint}")


def integer(
    field: str, got: object, *, low: int | None = None, high: int | None = None, hint: str = ""
) -> int:
    """`got` where it is an int (no bool) in [low, high]; else TypeError or ValueError."""
    need = "an integer"
    if low is not None:
        need += f" of at least {low}" if high is None else f" from {low} to {high}"
    if isinstance(got, bool) or not isinstance(got, int):
        refuse(field, got, need, hint)
    if (low is not None and got < low) or (high is not None and got > high):
        refuse(field, got, need, hint, ValueError)
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
    if isinstance(got, bool) or not isinstance(got, int | float):
        refuse(field, got, need, hint)
    if not low <= got < high or (positive and got <= 0):  # so is a NaN; an int may be huge
        refuse(field, got, need, hint, ValueError)
    return float(got)


def share(field: str, got: object, *, above: float) -> float:
    """`got` where it is a number in (above, 1]; else TypeError or ValueError."""
    need = f"a number in ({above:g}, 1]"
    if isinstance(got, bool) or not isinstance(got, int | float):
        refuse(field, got, need)
    if not above < got <= 1:
        refuse(field, got, need, error=ValueError)
    return got


def boolean(field: str, got: object) -> bool:
    """`got` where it is a bool; else TypeError."""
    return instance(field, got, bool, "True or False")


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
        refuse(field, got, need)
    odd = [key for key in got if not isinstance(key, str)]
    if odd:
        raise TypeError(f"{field}: got the key {shown(odd[0])}, need {need}")
    return got
