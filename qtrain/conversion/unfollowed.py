"""What was asked for and is not followed: a norm, by norms that stay; a weight's scale for each
channel, where one for each group was named; and sums that cannot hold their products."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from quantizers import Quantizer, QuantizerLike

from ..layer_state import LayerState
from ..names import some
from ..products.watched import Watched
from ..recipe import Recipe
from .kinds import is_norm
from .record import by_reason


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
    return "".join(f"\n  {line}" for line in by_reason(left, 6))


def warn_of_sums(recipes: Iterable[Recipe], stacklevel: int) -> None:
    """Say which products can leave the range of their accumulator by themselves."""
    said = dict.fromkeys(
        f"{recipe.name}: {product}: {text}"
        for recipe in recipes
        for product, text in recipe.sums_overflow.items()
    )
    if said:
        warnings.warn(
            "accumulator:" + "".join(f"\n  {line}" for line in said) + "\nTake one of more "
            "exponent bits (an integer of more bits); qtrain.required_bits finds the narrowest",
            stacklevel=stacklevel,
        )


def names_groups_alone(states: Iterable[LayerState]) -> bool:
    """Whether a quantizer of a layer's weights, each as (groups, out, in, *kernel), cuts the axis
    of the groups alone, and there is one group.  states: those that the layer holds."""

    def cuts_first_alone(quantizer: QuantizerLike, dims: int) -> bool:
        if not isinstance(quantizer, Quantizer):
            return False
        granularity = quantizer.granularity
        cut = {axis % dims for axis, size in granularity.sizes if size is not None}
        return granularity.rest == "whole" and cut == {0}

    return any(
        cuts_first_alone(quantizer, len(state.shapes[1]))
        for state in states
        if isinstance(state, Watched) and state.shapes[1][0] == 1
        for quantizer in state.weight_quantizers
    )


def warn_of_groups(layers: Sequence[str], stacklevel: int) -> None:
    """Say of which layers that is so."""
    if layers:
        warnings.warn(
            f"weight: per axis 0 is one scale for each group of a weight, seen as (groups, out, "
            f"in, *kernel), and {some(layers, 6)} have one group: one scale for all. "
            f"quantizers.per_channel() is a scale for each output channel, per_tensor says one",
            stacklevel=stacklevel,
        )
