"""Values of every kind, and kinds of argument: which of those values each must refuse."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import quantizers as q
from qtrain import Recipe, recipes

#: description -> a function that makes the value anew
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "'x'": lambda: "x",
    "''": lambda: "",
    "'unsigned'": lambda: "unsigned",
    "'int8'": lambda: "int8",
    "b'x'": lambda: b"x",
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1": lambda: 1,
    "3": lambda: 3,
    "10**30": lambda: 10**30,
    "-(2**63)": lambda: -(2**63),
    "10**5000": lambda: 10**5000,
    "0.0": lambda: 0.0,
    "1.0": lambda: 1.0,
    "0.7": lambda: 0.7,
    "-2.5": lambda: -2.5,
    "1e300": lambda: 1e300,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1j": lambda: 1j,
    "np.int64(3)": lambda: np.int64(3),
    "np.float32(0.5)": lambda: np.float32(0.5),
    "np.bool_(True)": lambda: np.bool_(True),
    "np.ones(2)": lambda: np.ones(2),
    "torch.tensor(3)": lambda: torch.tensor(3),
    "torch.tensor(0.5)": lambda: torch.tensor(0.5),
    "torch.tensor(True)": lambda: torch.tensor(True),
    "torch.ones(4, 3)": lambda: torch.ones(4, 3),
    "torch.ones(4, 3).half()": lambda: torch.ones(4, 3).half(),
    "torch.ones(4, 3).long()": lambda: torch.ones(4, 3).long(),
    "torch.ones(4, 3).to(complex64)": lambda: torch.ones(4, 3).to(torch.complex64),
    "torch.ones(4, 3, device='meta')": lambda: torch.ones(4, 3, device="meta"),
    "torch.ones(4, 3).to_sparse()": lambda: torch.ones(4, 3).to_sparse(),
    "torch.empty(0)": lambda: torch.empty(0),
    "torch.full((4,), nan)": lambda: torch.full((4,), math.nan),
    "torch.full((4,), 99)": lambda: torch.full((4,), 99),
    "()": lambda: (),
    "[]": lambda: [],
    "{}": lambda: {},
    "[None]": lambda: [None],
    "['x']": lambda: ["x"],
    "[1, 2]": lambda: [1, 2],
    "(1.5, 'x')": lambda: (1.5, "x"),
    "[[['x']]]": lambda: [[["x"]]],
    "{'x': 1}": lambda: {"x": 1},
    "{1: 'x'}": lambda: {1: "x"},
    "{'0': 'x'}": lambda: {"0": "x"},
    "{'0': 1.5}": lambda: {"0": 1.5},
    "{'*': []}": lambda: {"*": []},
    "{'low': torch.zeros(3)}": lambda: {"low": torch.zeros(3)},
    "{'x': torch.zeros(3)}": lambda: {"x": torch.zeros(3)},
    "set()": lambda: set(),
    "range(3)": lambda: range(3),
    "iter([])": lambda: iter([]),
    "object()": lambda: object(),
    "...": lambda: ...,
    "int": lambda: int,
    "float": lambda: float,
    "nn.Linear": lambda: nn.Linear,
    "q.Quantizer": lambda: q.Quantizer,
    "torch.int8": lambda: torch.int8,
    "lambda: None": lambda: lambda: None,
    "lambda *a, **k: None": lambda: lambda *a, **k: None,
    "lambda *a, **k: 'x'": lambda: lambda *a, **k: "x",
    "abs": lambda: abs,
    "nn.Linear(3, 2)": lambda: nn.Linear(3, 2),
    "nn.Identity()": lambda: nn.Identity(),
    "q.int8": lambda: q.int8,
    "q.fp16": lambda: q.fp16,
    "q.per_tensor": lambda: q.per_tensor,
    "q.absmax": lambda: q.absmax,
    "q.ema()": lambda: q.ema(),
    "q.stochastic()": lambda: q.stochastic(),
    "q.OFF": lambda: q.OFF,
    "Quantizer(int8)": lambda: q.Quantizer(format=q.int8),
    "recipes.int8()": lambda: recipes.int8(),
    "Path('.')": lambda: Path("."),
}


class Kind(NamedTuple):
    """What an argument may be.

    refuses   whether a call must raise with this value, all else being right
    harmless  False for values that would take too long or too much memory
    """

    refuses: Callable[[Any], bool]
    harmless: Callable[[Any], bool] = lambda value: True


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def integer(low: float = -math.inf, high: float = math.inf, *, none: bool = False) -> Kind:
    """An int within bounds; numpy's are not decided here, and neither is a 0-d tensor of one."""

    def refuses(value: Any) -> bool:
        if value is None:
            return not none
        if _is_bool(value) or not isinstance(value, int | np.integer):
            return True
        return not low <= value <= high

    return Kind(refuses)


def number(
    low: float = -math.inf, high: float = math.inf, *, none: bool = False, above: bool = False
) -> Kind:
    """A finite number within bounds."""

    def refuses(value: Any) -> bool:
        if value is None:
            return not none
        if _is_bool(value) or not isinstance(value, int | float | np.number):
            return True
        if isinstance(value, complex) or value != value or value in (math.inf, -math.inf):
            return True
        return not low <= value <= high or (above and value == low)

    return Kind(refuses)


def of(*kinds: Any, none: bool = False, also: Callable[[Any], bool] | None = None) -> Kind:
    """An instance of these classes, for which `also` holds."""

    def refuses(value: Any) -> bool:
        if value is None:
            return not none
        if isinstance(value, bool) and bool not in kinds:
            return True
        return not isinstance(value, kinds) or (also is not None and not also(value))

    return Kind(refuses)


def one_of(*names: str, none: bool = False) -> Kind:
    return of(str, none=none, also=lambda value: value in names)


ANYTHING = Kind(lambda value: False)
BOOL = of(bool)
STR = of(str)
CALLABLE = Kind(lambda value: not callable(value))
TENSOR = of(Tensor)
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REAL = of(Tensor, also=lambda x: x.dtype in _REAL)
INTEGERS = of(Tensor, also=lambda x: x.dtype == torch.int64)
KEY = of(Tensor, none=True, also=lambda x: x.dtype == torch.int64 and x.dim() == 0)
MODULE = of(nn.Module)
SHAPE = of(tuple, list, range, torch.Size, also=lambda s: all(type(n) is int and n >= 0 for n in s))
FORMAT = of(q.IntFormat, q.FloatFormat, q.TableFormat)
FLOAT = of(q.FloatFormat)
ACTIVATION = Kind(
    lambda v: (
        not (v is None or isinstance(v, q.FloatFormat)) and (not callable(v) or isinstance(v, type))
    )
)
QUANTIZER = Kind(lambda v: not callable(v) or isinstance(v, type))
RULE = Kind(lambda v: v is not None and (not callable(v) or isinstance(v, type)))
PATTERNS = Kind(
    lambda v: (
        isinstance(v, str | bytes)
        or (isinstance(v, tuple | list | set) and not all(isinstance(p, str) for p in v))
        or not hasattr(v, "__iter__")
    )
)
PATH = Kind(lambda v: not isinstance(v, str | Path))
NORM = one_of("l2", "l1", "linf", "topk", "range", "none", none=True)
RECIPE = Kind(lambda v: not isinstance(v, Recipe | str) or (isinstance(v, str) and v != "int8"))


def mapping(value: Callable[[Any], bool], *, none: bool = False) -> Kind:
    """A mapping from strings to what `value` takes."""
    return of(
        Mapping,
        none=none,
        also=lambda m: all(isinstance(k, str) and value(v) for k, v in m.items()),
    )


def chosen(draw: random.Random) -> tuple[str, Any]:
    """Any value, and how it is written."""
    text = draw.choice(list(VALUES))
    return text, VALUES[text]()
