"""Overrides that name calls of functions: those that no call can match, and that none does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from quantizers.checks import suggestion

from ...layer_state import LayerState
from ...layers.attention import QScaledDotProductAttention
from ...names import hits, some
from ..overrides import Chooser
from .attach import may_call
from .following import CHILD, Following
from .functions import LAYERS
from .naming import kind_of

_DIGITS = re.compile(r"\d*$")
_WILD = re.compile(r"[*?[]")


def check_names(model: nn.Module, choose: Chooser) -> None:
    """ValueError for an override that names calls where the model can have none: of a module that
    calls no function, or of a kind that no call has."""
    owners = _owners(model)
    for pattern in _named(choose):
        owner, layer = _split(pattern)
        if not any(fnmatchcase(name, owner) for name in owners):
            known = [f"{name}.{CHILD}.{layer}".strip(".") for name in owners]
            said = f"its modules that may call functions are {some([n for n in owners if n], 12)}"
        elif not _is_name(layer):
            known = [f"{owner}.{CHILD}.{kind}{_digits(layer)}".lstrip(".") for kind in LAYERS]
            said = f"calls are {CHILD}.<kind><number>, of the kinds {', '.join(LAYERS)}"
        else:
            continue
        near = suggestion(pattern, known)
        raise ValueError(f"overrides: {[pattern]} match no call; {said}{near}")


def unmatched(model: nn.Module, following: Following, choose: Chooser) -> str:
    """The overrides that match none of the calls that there were, in words, with these calls; "":
    there is none such.  Of modules that were left, no calls are known."""
    if not following.are_followed:
        return ""
    calls = _calls(following)
    names = [f"{call}.{part}".rstrip(".") for call, parts in calls.items() for part in ("", *parts)]
    left = [name for name in _owners(model) if not following.may_follow(name)]
    lost = [
        pattern
        for pattern in _named(choose)
        if not any(hits(name, [pattern]) for name in names)
        and not any(fnmatchcase(name, _split(pattern)[0]) for name in left)
    ]
    if not lost:
        return ""
    each = dict.fromkeys(_known(_split(pattern)[0], calls) for pattern in lost)
    near = suggestion(lost[0], names)
    return f"overrides: {lost} match no call; {'; '.join(each)}{near}"


def _named(choose: Chooser) -> list[str]:
    """The patterns that name calls, but those of a module that is called as what holds these."""
    return [p for p in choose.rules if CHILD in p.split(".") and p not in choose.matched]


def _owners(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if may_call(module) and not isinstance(module, LayerState) and CHILD not in name.split(".")
    ]


def _split(path: str) -> tuple[str, str]:
    """The module of a call, and the call's own name; "" where that is left out."""
    owner, _, rest = f".{path}.".rpartition(f".{CHILD}.")
    return owner[1:], rest.partition(".")[0]


def _is_name(layer: str) -> bool:
    """Whether a layer of a call may be called so, or as this pattern."""
    fixed, *wild = _WILD.split(layer)
    if wild or not layer:
        begun = [fixed.removeprefix(kind) for kind in LAYERS if fixed.startswith(kind)]
        cut = any(kind.startswith(fixed) for kind in LAYERS)
        return cut or any(not rest or rest[0] in "_0123456789" for rest in begun)
    return kind_of(layer) in LAYERS


def _digits(layer: str) -> str:
    found = _DIGITS.search(layer)
    return (found and found[0]) or "0"


def _calls(following: Following) -> dict[str, list[str]]:
    """The calls that there were -> the parts that have names of their own."""
    kinds = following.left | {n: k for n, k in following.converted.items() if _split(n)[1]}
    own = QScaledDotProductAttention
    parts = {kind: list(own.products(own())) if cls is own else [] for kind, cls in LAYERS.items()}
    return {name: parts[kind] for name, kind in sorted(kinds.items()) if kind in parts}


def _known(owner: str, calls: Mapping[str, Iterable[str]]) -> str:
    """The calls of the modules of a pattern, in words."""
    found = {call: parts for call, parts in calls.items() if fnmatchcase(_split(call)[0], owner)}
    said = [
        call.removeprefix(f"{owner}.")
        + (f" ({', '.join(f'.{part}' for part in parts)})" if parts else "")
        for call, parts in found.items()
    ]
    where = repr(owner) if owner else "the model itself"
    return f"calls of {where} are {some(said, 12)}" if said else f"{where} has called no function"
