"""Which norms of a model follow the norm that was asked for, and what is said of the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..recipe import Recipe
from .norm_kinds import OTHERS, is_norm, is_norm_by_name


def norms_left(
    plan: Iterable[tuple[str, nn.Module, Recipe | None]], left: Mapping[str, str]
) -> dict[str, str]:
    """name -> why, of the norms whose recipe asks for another norm than torch's and that stay.

    plan   every layer that could be converted, and its recipe;  left: of those, why some stay
    """
    found = {}
    for name, module, own in plan:
        shown = name or "(model)"
        norm = is_norm(module) or isinstance(module, OTHERS) or is_norm_by_name(module)
        if norm and shown in left and own is not None and own.norm is not None:
            if not own.norm.is_off:
                found[shown] = left[shown]
    return found


def refuse_uncovered(
    model: nn.Module,
    norm: Any,
    plan: Iterable[tuple[str, nn.Module, Recipe | None]],
    left: Mapping[str, str],
) -> None:
    """ValueError where the norm that was asked for is followed by none, unless each of the model's
    was left on purpose, or is what was asked for."""
    kind = type(model).__name__
    if left:
        raise ValueError(
            f"norm: got {norm!r}, but no norm of {kind} can follow it:{_said(left)}\n"
            f"Leave norm out, or build {kind} with torch.nn's own norms"
        )
    if not any(is_norm(module) for _, module, _ in plan):
        raise ValueError(
            f"norm: got {norm!r}, but {kind} has no norm that could follow it; leave norm out "
            f"(qtrain train: --norm recipe)"
        )


def warn_of_norms(
    model: nn.Module, converted: int, left: Mapping[str, str], stacklevel: int
) -> None:
    """Say which norms stay although another was asked for.  converted: how many do not."""
    if left:
        warnings.warn(
            f"norm: {len(left)} of {converted + len(left)} norms of {type(model).__name__} stay in "
            f"full precision:{_said(left)}\n"
            f"To leave them on purpose, name them in overrides: {{name: None}}",
            stacklevel=stacklevel,
        )


def _said(left: Mapping[str, str]) -> str:
    """One line for each reason, with the names."""
    groups: dict[str, list[str]] = {}
    for name, reason in left.items():
        groups.setdefault(reason, []).append(name)
    return "".join(
        f"\n  {len(names)} x {reason} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
        for reason, names in groups.items()
    )
