"""The names of calls' layers: of the kind of function, and a number; or, where a weight is one of
those that a parameter stacks, as an expert's, of the parameter and the index in it.

    linear0   conv_transpose12
    linear_gate_up_proj_3   linear_gate_up_proj_3_again1   (that expert's second in a forward)
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Callable
from operator import is_
from typing import Any

from torch import Tensor, nn

from .following import CHILD

_NUMBERED = re.compile(r"([a-z_]*[a-z])\d+")
_SLICED = re.compile(r"(conv_transpose|[a-z]+)_(.+)_(\d+)(_again\d+)?")


def kind_of(name: str) -> str:
    """The word that a layer's name begins with; "" of a name that is no layer's."""
    found = _NUMBERED.fullmatch(name) or _SLICED.fullmatch(name)
    return "" if found is None else found[1]


def of_slice(path: str) -> bool:
    """Whether a product is of a layer that has the name of a parameter and an index in it."""
    *_, holder, name = ["", *path.split(".")]
    return holder == CHILD and bool(_SLICED.fullmatch(name))


def counted(counts: dict[str, int], of: str) -> str:
    """The next of these: what it is, and a number."""
    found = counts.get(of, 0)
    counts[of] = found + 1
    return f"{of}{found}"


def repeated(counts: dict[str, int], of: str) -> str:
    """The next of these: what it is, and from the second on which it is."""
    found = counts.get(of, 0)
    counts[of] = found + 1
    return f"{of}_again{found}" if found else of


class Stacks:
    """The parameters of a module that may stack weights: those of three axes or more."""

    def __init__(self) -> None:
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def slice(
        self, owner: nn.Module, x: Tensor, base: Any, same: Callable[[Any, Any], bool] = is_
    ) -> str:
        """ "gate_up_proj_3" of a view, in any order of axes, of its parameter at one index along
        axis 0; "" of anything else, and where two parameters would be called so.

        base   x._base;  same: whether a parameter of the module is a base
        """
        if base is None or base.dim() < 3 or x.dim() != base.dim() - 1 or not base.numel():
            return ""
        axes = sorted(zip(x.shape, x.stride(), strict=True))
        if axes != sorted(zip(base.shape[1:], base.stride()[1:], strict=True)):
            return ""
        index, rest = divmod(x.storage_offset() - base.storage_offset(), base.stride(0))
        label = "" if rest or not 0 <= index < len(base) else self._label(owner, base, same)
        return label and f"{label}_{index}"

    def _label(self, owner: nn.Module, base: Any, same: Callable[[Any, Any], bool]) -> str:
        held = self._labels.get(id(base))
        if held is not None and held[0]() is base:
            return held[1]
        labels = self._unique(owner)
        self._labels = {id(p): (weakref.ref(p), label) for label, p in labels.items()}
        return next((label for label, p in labels.items() if same(p, base)), "")

    @staticmethod
    def _unique(owner: nn.Module) -> dict[str, Tensor]:
        """These parameters, by their names with _ for each dot; but those with one name."""
        found = [(k.replace(".", "_"), p) for k, p in owner.named_parameters() if p.dim() > 2]
        count = Counter(label for label, _ in found)
        return {label: p for label, p in found if count[label] == 1}

    def siblings(self, owner: nn.Module, name: str) -> list[str]:
        """The names of the layers of every slice of the parameter that a layer's name has."""
        found = _SLICED.fullmatch(name)
        if found is None:
            return [name]
        kind, label, _, again = found.groups()
        stack = self._unique(owner).get(label, ())
        return [f"{kind}_{label}_{i}{again or ''}" for i in range(len(stack))] or [name]
