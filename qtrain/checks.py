"""Checks of user input: every error says the field, what was given, what is allowed, what next.

The kinds that number formats and quantizers have too are in `quantizers.checks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantizers.checks import LARGEST as LARGEST
from quantizers.checks import boolean as boolean
from quantizers.checks import choice as choice
from quantizers.checks import function as function
from quantizers.checks import instance as instance
from quantizers.checks import integer as integer
from quantizers.checks import mapping as mapping
from quantizers.checks import number as number
from quantizers.checks import refuse as refuse
from quantizers.checks import shown as shown
from quantizers.checks import suggestion as suggestion
from quantizers.checks import text as text
from quantizers.protocol import learns


def module(got: object, field: str = "model") -> None:
    """TypeError unless `got` is a torch module; a string, with how a name becomes a network."""
    hint = ""
    if isinstance(got, type):
        hint = "this is a class: give an object of it"
    if isinstance(got, str):
        hint = f"qtrain.models.get({shown(got)}, ...) makes one by its name"
    if not isinstance(got, nn.Module):
        refuse(field, got, "a torch.nn.Module", hint)


def optimizer(got: object) -> None:
    """TypeError unless `got` is a torch optimizer."""
    if not isinstance(got, Optimizer):
        raise TypeError(f"optimizer: got {type(got).__name__}, need a torch.optim.Optimizer")


def path(field: str, got: object) -> Path:
    """`got` as a path; TypeError for what is none, ValueError for an empty one."""
    if not isinstance(got, str | os.PathLike):
        refuse(field, got, "a path, a string or a pathlib.Path")
    if isinstance(got, str) and not got:
        raise ValueError(f"{field}: got '', need a path")
    return Path(got)


def iterable(field: str, got: Any, need: str) -> Iterator[Any]:
    """An iterator over `got`; TypeError for what is none, for a tensor, a string and a mapping,
    whose parts would be samples, letters and names."""
    if isinstance(got, str | bytes | Mapping | Tensor) or not hasattr(got, "__iter__"):
        refuse(field, got, need)
    if isinstance(got, type):
        refuse(field, got, need, "this is a class: give an object of it")
    return iter(got)


def quantizer(field: str, got: object) -> None:
    """TypeError unless `got` can be called as a quantizer is."""
    need = "a quantizer (or OFF), called as quantizer(x, state=..., key=..., training=...)"
    function(field, got, need, None, state=None, key=None, training=True)
    if isinstance(got, nn.Module) and any(True for _ in got.parameters()):
        raise TypeError(
            f"{field}: got a {type(got).__name__}, whose parameters nobody would train: a recipe "
            f"is of many layers; return plain tensors from a method init_parameters(shape), which "
            f"every layer owns as Parameters of its own and passes in `state`"
        )


def without_parameters(field: str, got: object) -> None:
    """ValueError for a quantizer that learns."""
    if learns(got):
        raise ValueError(
            f"{field}: got {shown(got)}, which learns, and parameters belong to the operands of "
            f"products, forward.input, forward.weight and grad_output; take one without"
        )


def no_quantized_layer(owner: str) -> NoReturn:
    """ValueError: what looks at rounding was given a model that rounds nothing."""
    raise ValueError(
        f"{owner}: the model has no quantized layer, nothing of it is rounded; quantize(model) "
        f"first by a recipe other than fp32, in the shell give the checkpoint of such a run, as of "
        f"qtrain train int8"
    )


def batch(field: str, got: object) -> None:
    """TypeError for what no model is called with: None, and numbers and strings by themselves."""
    if got is None or isinstance(got, bool | int | float | complex | str | bytes | type):
        refuse(
            field,
            got,
            "what the model is called with: a tensor, a tuple (by position) or a mapping (by name)",
        )


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


def patterns(field: str, got: Iterable[str]) -> list[str]:
    """The patterns as a list; TypeError for a bare string, whose letters they would be."""
    need = "a list of module-name patterns"
    found = list(iterable(field, got, need))
    if not all(isinstance(one, str) for one in found):
        refuse(field, got, need)
    return found
