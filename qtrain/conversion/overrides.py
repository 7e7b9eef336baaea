"""The recipe of each layer: the base, the norm asked for, and the overrides by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .. import checks, recipes
from ..names import hits, some
from ..norms import deviations
from ..norms.deviations import Deviation
from ..norms.recipe import NormRecipe
from ..recipe import Recipe

Override = Recipe | int | str | None


def base_recipe(
    recipe: Recipe | str, bits: int | None, norm: str | Deviation | NormRecipe | None
) -> Recipe:
    if not isinstance(recipe, Recipe | str):
        checks.refuse("recipe", recipe, f"a Recipe or one of {', '.join(recipes.names())}")
    base = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if bits is not None:
        base = base.at(bits)
    return _with_norm(base, norm)


def _with_norm(recipe: Recipe, norm: str | Deviation | NormRecipe | None) -> Recipe:
    if norm is None:
        return recipe
    if isinstance(norm, str):
        norm = deviations.get(checks.choice("norm", norm, deviations.names()))
    if isinstance(norm, Deviation):
        # the recipe's outputs are rounded after every converted layer, norms included
        own = recipe.norm or NormRecipe(activation=recipe.activation)
        norm = replace(own, deviation=norm)
    if not isinstance(norm, NormRecipe):
        names = ", ".join(deviations.names())
        checks.refuse("norm", norm, f"one of {names}, a Deviation, a NormRecipe or None")
    return replace(recipe, norm=norm)


class Chooser:
    """The recipe of each layer by name, and the account of which overrides were used."""

    def __init__(
        self,
        base: Recipe,
        norm: str | Deviation | NormRecipe | None,
        overrides: Mapping[str, Override] | None,
    ) -> None:
        if overrides is None:
            overrides = {}
        if not isinstance(overrides, Mapping):
            need = "a mapping from module-name patterns to None, an int (bits) or a Recipe"
            checks.refuse("overrides", overrides, need)
        self.base = base
        self.rules: dict[str, Recipe | None] = {}
        for pattern, value in overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"overrides: pattern {checks.shown(pattern)} is not a string")
            try:
                if isinstance(value, str):
                    value = recipes.get(value)
                elif isinstance(value, int) and not isinstance(value, bool):
                    value = _with_norm(base.at(value), norm)
            except ValueError as error:
                raise ValueError(f"overrides[{pattern!r}]: {error}") from error
            if value is None or isinstance(value, Recipe):
                self.rules[pattern] = value
            else:
                need = "None (leave), an int (bits), a Recipe or the name of one"
                checks.refuse(f"overrides[{pattern!r}]", value, need)
        #: which layers each override decided, and which it matched at all
        self.decided: dict[str, list[str]] = {pattern: [] for pattern in self.rules}
        self.matched: set[str] = set()
        self.names: list[str] = []

    def __call__(self, name: str) -> Recipe | None:
        self.names.append(name)
        found = hits(name, self.rules)
        self.matched.update(found)
        if not found:
            return self.base
        self.decided[found[0]].append(name)
        return self.rules[found[0]]

    def check_all_used(self) -> None:
        """ValueError for an override that matches nothing that an earlier one leaves."""
        unused = [pattern for pattern in self.rules if pattern not in self.matched]
        if unused:
            known = some([name for name in self.names if name], 12)
            raise ValueError(
                f"overrides: {unused} match no layer; layers are {known}; patterns are names with "
                f"*, ? and [...], as file names"
            )
        idle = [pattern for pattern in self.rules if not self.decided[pattern]]
        if idle:
            raise ValueError(
                f"overrides: {idle} decide nothing: the first match wins, and earlier patterns "
                f"match every layer that they do; put the narrower patterns first"
            )

    def check_all_honoured(self, left: Mapping[str, str]) -> None:
        """ValueError for an override that asks for a recipe where every layer it decides is left
        (left: layer name -> why)."""
        for pattern, value in self.rules.items():
            names = self.decided[pattern]
            if value is not None and names and all(name in left for name in names):
                shown = "; ".join(f"{name}: {left[name]}" for name in names[:3])
                raise ValueError(f"overrides[{pattern!r}] cannot be honoured: {shown}")
