"""The recipe of each layer: the base, the norm asked for, and the overrides by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from quantizers.checks import suggestion

from .. import checks, recipes
from ..names import hits, some
from ..norms import deviations
from ..norms.deviations import Deviation
from ..norms.recipe import NormRecipe
from ..recipe import Lookup, Recipe
from ..recipe_file import find

Override = Recipe | int | str | None
#: what an override of None makes of a layer that is converted
OFF = recipes.fp32()
#: the part of a recipe that decides, of layers that hold this child, and torch's own
_PARTS = {"state": "norm", "lookup": "lookup"}
_OWN = {"norm": NormRecipe(), "lookup": Lookup()}
Norm = str | Deviation | NormRecipe | None


@dataclass(frozen=True)
class Asked:
    """What the layers of a model are to follow.

    base        the recipe, with its norm
    norm        what was said of norms beside it
    overrides   patterns of layers -> what they follow instead
    given       the recipe as it was given
    """

    base: Recipe
    norm: Norm
    overrides: Mapping[str, Override]
    given: Recipe | str = field(compare=False)

    @staticmethod
    def of(
        recipe: Recipe | str,
        norm: Norm,
        overrides: Mapping[str, Override] | None,
        bits: int | None = None,
    ) -> Asked:
        """TypeError or ValueError for what is no recipe, norm or mapping."""
        if not isinstance(recipe, Recipe | str):
            known = ", ".join(recipes.names())
            checks.refuse("recipe", recipe, f"a Recipe, a .yaml file or one of {known}")
        base = find(recipe) if isinstance(recipe, str) else recipe
        if bits is not None:
            base = base.at(bits)
        given = {} if overrides is None else overrides
        if not isinstance(given, Mapping):
            need = "a mapping from module-name patterns to None, an int (bits) or a Recipe"
            checks.refuse("overrides", given, need)
        return Asked(_with_norm(base, norm), norm, dict(given), recipe)


def _with_norm(recipe: Recipe, norm: Norm) -> Recipe:
    if norm is None:
        return recipe
    if isinstance(norm, str):
        norm = deviations.get(checks.choice("norm", norm, deviations.names()))
    if isinstance(norm, Deviation):
        # the recipe's outputs are rounded after every converted layer, norms included
        if recipe.norm is None and recipe.quantizes_output is not None:
            raise ValueError(
                f"norm: got {norm}, but recipe {recipe.name!r} hands on outputs of a quantizer, "
                f"and a norm's are rounded to a float format: give norm=NormRecipe(deviation=...)"
            )
        own = recipe.norm or NormRecipe(activation=recipe.activation)  # type: ignore[arg-type]
        norm = replace(own, deviation=norm)
    if not isinstance(norm, NormRecipe):
        names = ", ".join(deviations.names())
        checks.refuse("norm", norm, f"one of {names}, a Deviation, a NormRecipe or None")
    return replace(recipe, norm=norm)


class Chooser:
    """The recipe of each layer by name, and the account of which overrides were used."""

    def __init__(self, asked: Asked) -> None:
        base = self.base = asked.base
        self.rules: dict[str, Recipe | None] = {}
        for pattern, value in asked.overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"overrides: pattern {checks.shown(pattern)} is not a string")
            try:
                if isinstance(value, str):
                    value = find(value)
                elif isinstance(value, int) and not isinstance(value, bool):
                    value = _with_norm(base.at(value), asked.norm)
            except ValueError as error:
                raise ValueError(f"overrides[{pattern!r}]: {error}") from error
            if value is None or isinstance(value, Recipe):
                self.rules[pattern] = value
            else:
                need = "None (leave), an int (bits), a Recipe, its name or its file"
                checks.refuse(f"overrides[{pattern!r}]", value, need)
        #: which layers each override decided, and which it matched at all
        self.decided: dict[str, list[str]] = {pattern: [] for pattern in self.rules}
        self.matched: set[str] = set()
        self.names: list[str] = []
        #: norms and lookups that an override leaves what they were, and why
        self._alike: dict[str, str] = {}

    def __call__(self, name: str) -> Recipe | None:
        self.names.append(name)
        found = hits(name, self.rules)
        self.matched.update(found)
        if not found:
            return self.base
        self.decided[found[0]].append(name)
        return self.rules[found[0]]

    def recipe(self, name: str) -> Recipe | None:
        """The same of what is no layer that was there at conversion: none of the account."""
        found = hits(name, self.rules)
        return self.rules[found[0]] if found else self.base

    def of_children(self, name: str, own: Recipe | None, keys: Iterable[str]) -> dict[str, Recipe]:
        """The recipe of each child of a layer that follows `own`: of several products each may have
        another by its own name, full precision where that is None."""
        single = ("product", "lookup", "state")
        found = {key: own if key in single else self(f"{name}.{key}".lstrip(".")) for key in keys}
        return {key: OFF if recipe is None else recipe for key, recipe in found.items()}

    def instead(self, name: str, own: Recipe, of: Mapping[str, Recipe]) -> str | None:
        """What a layer of recipe `own`, with these children, follows instead of the base recipe, in
        words, if it does."""
        part = next((_PARTS[key] for key in of if key in _PARTS), None)
        if part is None:
            return str(own) if own != self.base else None
        given, base = (getattr(recipe, part) or _OWN[part] for recipe in (own, self.base))
        if given != base:
            return str(given)
        self._alike[name] = f"it is a {part}, which the recipe's {part}= decides, not its bits"
        return None

    def overridden(self, name: str, own: Recipe, of: Mapping[str, Recipe]) -> dict[str, str]:
        """The layer, and those of its products that do not follow it -> what they follow instead of
        the base recipe, or of the layer's, in words."""
        instead = self.instead(name, own, of)
        found = {} if instead is None else {name or "(model)": instead}
        others = {key: recipe for key, recipe in of.items() if recipe != own}
        return found | {f"{name}.{key}".lstrip("."): f"{r}" for key, r in others.items()}

    def check_all_used(self, later: str = "") -> None:
        """ValueError for an override that matches nothing that an earlier one leaves; later: part
        of the names that there are not yet."""
        unused = [
            pattern
            for pattern in self.rules
            if pattern not in self.matched and not (later and later in f".{pattern}.")
        ]
        if unused:
            known = some([name for name in self.names if name], 12)
            raise ValueError(
                f"overrides: {unused} match no layer; layers are {known}; patterns are names with "
                f"*, ? and [...], as file names{suggestion(unused[0], self.names)}"
            )
        idle = [p for p in self.rules if p in self.matched and not self.decided[p]]
        if idle:
            raise ValueError(
                f"overrides: {idle} decide nothing: the first match wins, and earlier patterns "
                f"match every layer that they do; put the narrower patterns first"
            )

    def check_all_honoured(self, left: Mapping[str, str]) -> None:
        """ValueError for an override that asks for a recipe where every layer it decides is left
        (left: layer name -> why), or a norm or lookup that it changes nothing of."""
        left = {**left, **self._alike}
        for pattern, value in self.rules.items():
            names = self.decided[pattern]
            if value is not None and names and all(name in left for name in names):
                shown = "; ".join(f"{name}: {left[name]}" for name in names[:3])
                raise ValueError(f"overrides[{pattern!r}] cannot be honoured: {shown}")


def check_attention(model: nn.Module, chosen: Mapping[str, Recipe | None]) -> None:
    """ValueError where an attention layer is left, but not the projection it reads directly."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and chosen.get(name, 0) is None:
            projection = f"{name}.out_proj".lstrip(".")
            if chosen.get(projection) is not None:
                raise ValueError(
                    f"overrides: {projection!r} cannot be quantized while {name or '(model)'!r}, "
                    f"which reads its weight directly, is left; leave both or neither"
                )
