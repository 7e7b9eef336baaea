"""The words of a recipe's file: names of what there is, and calls that make more, blocks(32)."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import quantizers
from quantizers import (
    Granularity,
    accumulators,
    blocks,
    formats,
    groups,
    per_axis,
    per_channel,
)
from quantizers import rounding as roundings
from quantizers.accumulators import Aligned, Exact
from quantizers.checks import suggestion

from .norms import deviations
from .recipe import Hadamard, center, hadamard

#: where our own kinds of recipes and their parts are defined
_ROOMS = (
    "quantizers", "qtrain.recipe", "qtrain.norms.recipe",
    "qtrain.norms.arithmetic", "qtrain.norms.deviations", "qtrain.norms.largest",
    "qtrain.weights.updates.update", "qtrain.weights.updates.expansion",
)  # fmt: skip
#: functions of ours that make parts of recipes, beside the kinds themselves
_FUNCTIONS = (
    blocks, groups, per_axis, per_channel, hadamard, center,
    quantizers.stochastic, quantizers.chunked_minmax,
    quantizers.percentile, quantizers.rms, quantizers.ema, quantizers.history,
    accumulators.exact, accumulators.sequential, accumulators.aligned, accumulators.integer,
    deviations.l2, deviations.l1, deviations.linf, deviations.topk, deviations.range_,
)  # fmt: skip
_CONSTANTS = {"null": None, "true": True, "false": False}


@cache
def kinds() -> dict[str, type]:
    """Our kinds, by name."""
    rooms = [m for n, m in [*sys.modules.items()] if n.startswith(_ROOMS) and ".kernels" not in n]
    return {
        kind.__name__.lstrip("_"): kind
        for room in rooms
        for kind in vars(room).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == room.__name__
    }


@cache
def names() -> dict[str, Any]:
    """What has a name, by it."""
    ours = {n: v for n, v in vars(quantizers).items() if type(v) in kinds().values()}
    norms = {name: deviations.get(name) for name in deviations.names()}
    found = {"OFF": quantizers.OFF, "per_channel": per_channel()}
    return {**found, **formats.NAMED, **ours, **roundings.NAMED, **norms}


@cache
def _makers() -> dict[str, Callable[..., Any]]:
    functions = {f.__name__.rstrip("_"): f for f in _FUNCTIONS}
    return {**functions, "unit": accumulators.get, **kinds()}


def named(name: str, where: str) -> Any:
    """What has this name; ValueError, with the nearest that there is, where nothing has."""
    if name in names():
        return names()[name]
    if (widths := formats.by_widths(name)) is not None:
        return widths
    if name in _makers():
        raise ValueError(f"{where}: got {name!r}, which is called: {_usage(name)}")
    near = suggestion(name, [*names(), *_makers()])
    raise ValueError(f"{where}: got {name!r}, which is no name that quantizers has{near}")


def call(text: str, where: str) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """What a call such as blocks(32) calls, and with what: plain data, words and inner calls as
    texts.  Nothing is run.  ValueError for any other text."""
    need = "need a name with its arguments, such as blocks(32) or hadamard(32, step)"
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("it is no call")
        name = node.func.id
        arguments = [_datum(each) for each in node.args]
        options = {str(each.arg): _datum(each.value) for each in node.keywords if each.arg}
        if len(options) < len(node.keywords):
            raise ValueError("** is no argument")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: got {text[:80]!r}, {need} ({error})") from error
    if name not in _makers():
        if name in names():
            raise ValueError(f"{where}: got {text!r}, but {name} takes no arguments: write {name}")
        near = suggestion(name, _makers())
        raise ValueError(
            f"{where}: got {text!r}{near or '.'} In front of the parenthesis may be one of "
            f"{', '.join(_makers())}"
        )
    try:
        return _makers()[name], inspect.signature(_makers()[name]).bind(*arguments, **options)
    except TypeError as error:
        raise ValueError(f"{where}: got {text!r}, need {_usage(name)} ({error})") from error


def _usage(name: str) -> str:
    found = inspect.signature(_makers()[name])
    plain = [each.replace(annotation=each.empty) for each in found.parameters.values()]
    return name + str(found.replace(parameters=plain, return_annotation=found.empty))


def _datum(node: ast.expr) -> Any:
    """An argument as plain data; names and calls as texts."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=name):
            return _CONSTANTS.get(name, name)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_datum(each) for each in parts]
        case ast.Call():
            return ast.unparse(node)
    raise ValueError(f"{ast.unparse(node)} is no number, name or call")


def spelled(value: object) -> str | None:
    """The call that may make an object, for the kinds that are better read so; else None."""
    if isinstance(value, Hadamard) and not isinstance(value.signs, tuple):
        return f"hadamard({value.size}, {value.signs or 'null'})"
    if isinstance(value, Exact):
        return "exact()"
    if isinstance(value, Aligned) and tuple(value.name.split()) in accumulators.names():
        return f"unit({', '.join(value.name.split())}, promote={value.promote or 'null'})"
    if isinstance(value, Granularity) and value.sizes:
        sizes = dict(value.sizes)
        if value.of == "flat":
            return f"groups({sizes.get(-1)})"
        if value.of == "tensor":
            return f"per_axis({', '.join(map(str, sizes))})"
        across = f", {sizes[-2]}" if -2 in sizes else ""
        return f"blocks({sizes.get(-1) or 'null'}{across})"
    return None
