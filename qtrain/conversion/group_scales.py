"""A weight's scale per group where one per output channel was meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from quantizers import Granularity, Quantizer

from ..recipe import Recipe


def names_groups_alone(recipe: Recipe, shape: Sequence[int | None]) -> bool:
    """Whether a quantizer of the weight cuts the axis of its groups alone, and there is one group.

    shape   of the weight, as (groups, out, in, *kernel)
    """
    return shape[0] == 1 and any(
        isinstance(quantizer := recipe.slots[product, "weight"].quantizer, Quantizer)
        and _cuts_first_alone(quantizer.granularity, len(shape))
        for product in ("forward", "grad_input")
    )


def _cuts_first_alone(granularity: Granularity, dims: int) -> bool:
    cut = {axis % dims for axis, size in granularity.sizes if size is not None}
    return granularity.rest == "whole" and cut == {0}


def warn_of_groups(layers: Sequence[str], stacklevel: int) -> None:
    """Say of which layers that is so."""
    if layers:
        more = ", ..." if len(layers) > 6 else ""
        warnings.warn(
            f"weight: per axis 0 is one scale for each group of a weight, seen as (groups, out, "
            f"in, *kernel), and {', '.join(layers[:6])}{more} have one group: one scale for all. "
            f"quantizers.per_channel() is a scale for each output channel, per_tensor says one",
            stacklevel=stacklevel,
        )
