"""What `Calls` asks of `Sites`, and has said, while the compiler traces."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .sites import NUMBERED
from .tracing import run_by_tracing


@run_by_tracing
def traced_takes(number: int, call: str, flows: bool, unknown: bool) -> bool:
    """`Sites.takes` of the sites of this number."""
    return NUMBERED[number].takes(call, flows, unknown)


@run_by_tracing
def traced_layer(number: int, layer: str, kind: str, sizes: tuple[int, ...]) -> int:
    """`Sites.layer`, into the box of the sites of this number."""
    sites = NUMBERED[number]
    owner = sites._owner()
    assert owner is not None
    setattr(sites.box, layer, sites.layer(owner, layer, kind, sizes))
    return 0


def traced_slice(number: int, x: Tensor) -> str:
    """`Sites.slice` of the sites of this number."""
    from torch._dynamo.comptime import comptime

    comptime(_look)
    found: str = _seen(number)
    return found


def _look(context: Any) -> None:
    """Keep what `Stacks.slice` says of the tensor without values that the compiler has in x's
    place."""
    sites = NUMBERED[context.get_local("number").as_python_constant()]
    x, owner = context.get_local("x").as_fake(), sites._owner()
    base = x._base
    assert owner is not None

    def same(parameter: Tensor, base: Any) -> bool:
        return base.fake_mode.fake_tensor_converter._get_memo(parameter) is base

    sites.seen = sites.stacks.slice(owner, x, base, same)


@run_by_tracing
def _seen(number: int) -> str:
    return NUMBERED[number].seen


@run_by_tracing
def has_stacks(number: int) -> bool:
    """Whether the module of these sites has a parameter that may stack weights."""
    owner = NUMBERED[number]._owner()
    return owner is not None and any(p.dim() > 2 for p in owner.parameters())
