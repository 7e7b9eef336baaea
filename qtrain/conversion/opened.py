"""What stayed as it was follows a recipe too: for a copy on which something is measured."""

from __future__ import annotations

from torch import nn

from ..recipe import Recipe
from .functional.attach import attach_
from .functional.following import Following
from .kinds import children, left, quantized_class, targets
from .overrides import Asked, Chooser
from .record import Conversion
from .swap import built, swap_


def see_calls_(model: nn.Module, recipe: Recipe) -> None:
    """Have every call of a model's functions that is left, or off, follow `recipe`, in place."""
    conversion = Conversion.of(model)
    following = None if conversion is None else conversion.functional
    if following is None:
        following = Following(Chooser(Asked.of(recipe, None, None)), 0)
    following.instead = recipe
    attach_(model, following)


def convert_left_(model: nn.Module, recipe: Recipe) -> None:
    """Convert under `recipe`, in place, every layer that could be converted and is not; layers that
    are converted keep what they have."""
    work = [
        (name, module, dict.fromkeys(children(module), recipe))
        for name, module in targets(model)
        if left(module, recipe) is None and not isinstance(module, quantized_class(module))
    ]
    swap_(model, work, built(model, work, 0))
