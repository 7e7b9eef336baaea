"""Which norms of a model follow the norm that was asked for, and what is said of the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from .norms import OTHERS, is_norm
from .recipe import Recipe


def norms_left(
    model: nn.Module,
    plan: Iterable[tuple[str, nn.Module, Recipe | None]],
    left: Mapping[str, str],
    base: Recipe,
    spared: Iterable[str],
) -> dict[str, str]:
    """name -> why, of the norms whose recipe asks for another norm than torch's and that stay.

    plan     every layer that could be converted, and its recipe;  left: of those, why some stay
    spared   names of modules that an override leaves
    """
    found = {}
    known = set()
    for name, module, own in plan:
        known.add(name)
        shown = name or "(model)"
        if _asks(own) and shown in left and (is_norm(module) or isinstance(module, OTHERS)):
            found[shown] = left[shown]
    if _asks(base):
        for name, kind in _unknown(model):
            if name not in known and name not in spared:
                found[name] = f"{kind}: no norm of torch, so it is not converted"
    return found


def _asks(recipe: Recipe | None) -> bool:
    return recipe is not None and recipe.norm is not None and not recipe.norm.is_off


def _unknown(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(name, class) of modules that are norms by the name of their class, with parameters or
    buffers of their own, and of no class that qtrain knows."""
    inside: set[int] = set()  # weight norms are no norms of activations
    for module in model.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            inside.update(id(child) for child in module.modules())
    for name, module in model.named_modules():
        kind = type(module).__name__
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if "norm" in kind.lower() and own and name and id(module) not in inside:
            yield name, kind


def said(left: Mapping[str, str]) -> str:
    """One line for each reason, with the names."""
    groups: dict[str, list[str]] = {}
    for name, reason in left.items():
        groups.setdefault(reason, []).append(name)
    return "".join(
        f"\n  {len(names)} x {reason} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
        for reason, names in groups.items()
    )


def check_coverage(
    model: nn.Module, norm: object, converted: int, left: Mapping[str, str], stacklevel: int
) -> None:
    """ValueError where a norm was asked for (not None) and none of the model's follows it; a
    warning where it is the recipe that asks, or where some do not.

    converted   how many norms follow their recipe's;  left: those that do not, and why
    """
    if not left:
        return
    kind = type(model).__name__
    if norm is not None and not converted:
        raise ValueError(
            f"norm: got {norm!r}, but no norm of {kind} can follow it:{said(left)}\n"
            f"Leave norm out, or build {kind} with torch.nn's own norms"
        )
    warnings.warn(
        f"norm: {len(left)} of {converted + len(left)} norms of {kind} stay in full precision:"
        f"{said(left)}\nTo leave them on purpose, name them in overrides: {{name: None}}",
        stacklevel=stacklevel,
    )
