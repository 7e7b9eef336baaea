"""Results that other people's code gave on small tensors: recorded/README.md says whose and how."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

FOLDER = Path(__file__).parent / "recorded"

SOURCES = tuple(sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "inputs"))


@dataclass(frozen=True, eq=False)
class Recorded:
    """One call of somebody's function and what it gave.

    source     the file of recorded/ that holds it
    made_by    name, version and license of what gave it, and the version of torch
    function   its full name
    data       name of the input (see README.md), or None where it has an `x` of its own
    shape      x is the input's first elements in C order, in this shape
    settings   what the function was asked for
    keys       name of a result -> its array in the file
    """

    source: str
    made_by: dict[str, str]
    function: str
    data: str | None
    shape: tuple[int, ...] | None
    settings: dict[str, Any]
    keys: dict[str, str]

    @property
    def x(self) -> Tensor:
        """The input, fp32."""
        if "x" in self.keys:
            return self["x"]
        if self.data is None:
            raise KeyError(f"{self}: has no tensor as its input")
        whole = given(self.data)
        return whole if self.shape is None else _reshaped(whole, self.shape)

    def __getitem__(self, name: str) -> Tensor:
        """A result: "scale" (one value a block, those of a tile once), "elements" (unscaled),
        "values" (elements * scale), and what else the source gives.  fp32, or an integer dtype."""
        return _tensor(_arrays(self.source)[self.keys[name]])

    @property
    def operand(self) -> Tensor:
        """What was cut into blocks: x, or the transposed and rotated x where one was recorded."""
        return self["rotated"] if "rotated" in self.keys else self.x

    def spread(self, name: str = "scale") -> Tensor:
        """A result of one value a block, over the operand's elements: settings["block"] (rows,
        columns; None: one in all), or settings["group"] elements in C order."""
        if "group" in self.settings:
            return self[name].repeat_interleave(self.settings["group"]).view_as(self.operand)
        return self._over_blocks(self[name])

    def largest(self) -> Tensor:
        """The largest magnitude of each element's block, over the operand's elements."""
        tile = [min(pair) for pair in zip(self._block, self.operand.shape, strict=True)]
        return self._over_blocks(max_pool2d(self.operand.abs()[None], tile, ceil_mode=True))

    @property
    def _block(self) -> tuple[int, int]:
        height, width = self.settings["block"] or self.operand.shape
        return height, width

    def _over_blocks(self, compact: Tensor) -> Tensor:
        (rows, columns), (height, width) = self._block, self.operand.shape
        compact = compact.reshape(math.ceil(height / rows), math.ceil(width / columns))
        tall = compact.repeat_interleave(rows, 0)[:height]
        return tall.repeat_interleave(columns, 1)[:, :width]

    def __str__(self) -> str:
        settings = "-".join(str(value) for value in self.settings.values())
        return f"{self.source}-{self.function.rpartition('.')[2]}-{settings}-{self.data}"


def given(name: str) -> Tensor:
    """An input of README.md's table: 32 x 128, fp32."""
    return _tensor(_arrays("inputs")[name])


def recorded(
    source: str, function: str = "", data: tuple[str, ...] = (), **settings: Any
) -> list[Recorded]:
    """The cases of a source whose function's name contains `function`, whose input is one of `data`
    (all: ()), and whose settings include these.  LookupError where there is none."""
    found = [
        case
        for case in _cases(source)
        if function in case.function
        and (not data or case.data in data)
        and all(case.settings.get(name, _MISSING) == value for name, value in settings.items())
    ]
    if not found:
        raise LookupError(f"{source}: nothing recorded of {function or 'any'}, {data}, {settings}")
    return found


_MISSING = object()


@functools.lru_cache(None)
def _arrays(source: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FOLDER / f"{source}.npz") as file:
        return {name: file[name] for name in file.files}


@functools.lru_cache(None)
def _cases(source: str) -> tuple[Recorded, ...]:
    book = json.loads(_arrays(source)["cases"].tobytes())
    return tuple(
        Recorded(
            source,
            book["made_by"][case["made_by"]],
            case["function"],
            case["data"],
            tuple(case["shape"]) if "shape" in case else None,
            case["settings"],
            case["results"],
        )
        for case in book["cases"]
    )


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A copy; fp16 holds fp32 numbers that fit, uint16 noise."""
    if array.dtype == np.uint16:
        array = array.astype(np.int32)
    tensor = torch.from_numpy(array.copy())
    return tensor.float() if tensor.is_floating_point() else tensor


def _reshaped(whole: Tensor, shape: tuple[int, ...]) -> Tensor:
    return whole.flatten()[: math.prod(shape)].reshape(shape)
