"""What the calls of a model's functions follow, and what was loaded of their layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...recipe import Recipe
from ..overrides import Chooser

#: the child that holds them
CHILD = "functional"


@dataclass
class Following:
    """What every call of a model's functions follows; one for all of its modules.

    choose      the recipe of each layer by its name
    instead     what a call follows that is left or off, where every product is to be seen
    is_open     whether layers may be made whose quantizers learn, as there is no optimizer yet
    converted   layers that were made -> the kind of function: the conversion's own record
    overridden  those with a recipe of their own, and that recipe: likewise
    left        calls that an override leaves -> the kind of function
    are_known   whether a forward has shown which calls there are
    lacking     whether the state that was loaded is of a model that ran, and has no such layer
    """

    choose: Chooser
    seed: int
    converted: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    are_known: bool = False
    instead: Recipe | None = None
    is_open: bool = False
    lacking: bool = False

    def look(self, model: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
        """See what a state_dict has that is about to be loaded into the model."""
        moved = [key for key in state_dict if key.endswith((".noise_count", "_input_steps"))]
        if moved:
            has = any(CHILD in key.split(".") for key in state_dict)
            has = has or any(isinstance(module, Functional) for module in model.modules())
            self.lacking = not has and any(_counts(state_dict[key]) for key in moved)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within it, it is open."""
        before, self.is_open = self.is_open, True
        try:
            yield
        finally:
            self.is_open = before

    def recipe(self, name: str) -> Recipe | None:
        """What a layer of this path follows; None: it is left."""
        own = self.choose.recipe(name)
        left = own is None or own.products_off
        return self.instead if left and self.instead is not None else own

    @property
    def are_followed(self) -> bool:
        """Whether any layer's calls may follow a recipe that is not off."""
        every = [self.choose.base, *self.choose.rules.values(), self.instead]
        return any(own is not None and not own.products_off for own in every)

    def may_follow(self, name: str) -> bool:
        """Whether a module's calls, or one of them, follow a recipe that is not off."""
        calls = [own for pattern, own in self.choose.rules.items() if CHILD in pattern]
        return any(own is not None and not own.products_off for own in (self.recipe(name), *calls))


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_meta and bool((value > 0).any())


class Functional(nn.Module):
    """The layers of a module's calls, by the kind of function and a number."""
