"""Schedule: which recipe is in force at each step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import checks
from .recipe import Recipe
from .recipe_file import find

#: of a run, at the most
_STEPS = 10**15
_NEED = 'a mapping from when to a recipe, {0.0: "int8", 0.9: "bf16"}'


@dataclass(frozen=True)
class Schedule:
    """Which recipe is in force at each step of a run: `Schedule({0.0: "int8", 0.9: "bf16"})`.

    recipes   when a recipe begins -> the recipe, its name or its file.  When: a fraction of the
              run, floats from 0.0 and below 1, or a step, integers from 0; the first begins at 0

    A function of the step alone, so there is no state to save.  `quantize(model, recipe=schedule)`
    converts for all its recipes and begins with the first; before each step,

        set_recipe(model, schedule.at(step, total))

    does nothing but at the step where the recipe changes.  A fraction f begins at the first step
    with step / total >= f.

    TypeError or ValueError for anything else.
    """

    recipes: Mapping[float, Recipe | str]

    def __post_init__(self) -> None:
        given = self.recipes
        if not isinstance(given, Mapping) or not given:
            checks.refuse("recipes", given, _NEED)
        found: dict[float, Recipe] = {}
        for when, recipe in given.items():
            if isinstance(when, bool) or not isinstance(when, int | float):
                checks.refuse("recipes: when", when, "a fraction of the run or a step")
            high = _STEPS if isinstance(when, int) else 1
            if not 0 <= when < high:
                need = "a step from 0 on" if isinstance(when, int) else "a fraction from 0, below 1"
                checks.refuse("recipes: when", when, need, error=ValueError)
            if isinstance(recipe, str):
                try:
                    recipe = find(recipe)
                except ValueError as error:
                    raise ValueError(f"recipes[{when}]: {error}") from error
            checks.instance(f"recipes[{when}]", recipe, Recipe, "a Recipe or the name of one")
            found[when] = recipe
        kinds = {type(when) for when in found if when}
        if len(kinds) > 1:
            raise ValueError(
                f"recipes: got {', '.join(map(str, found))}, need fractions of the run or steps, "
                f"not both"
            )
        if 0 not in found:
            raise ValueError(f"recipes: the first begins at {min(found)}; say which does at 0")
        object.__setattr__(self, "recipes", dict(sorted(found.items())))

    @property
    def by_fraction(self) -> bool:
        """Whether recipes begin at fractions of the run, and not at steps."""
        return any(isinstance(when, float) and when for when in self.recipes)

    def items(self) -> list[tuple[float, Recipe]]:
        """When each recipe begins, in order, and the recipe."""
        return list(self.recipes.items())  # type: ignore[arg-type]

    @property
    def first(self) -> Recipe:
        """The recipe that a run begins with."""
        return self.items()[0][1]

    @property
    def last(self) -> Recipe:
        """The recipe that a run ends with."""
        return self.items()[-1][1]

    def at(self, step: int, total: int | None = None) -> Recipe:
        """The recipe in force at a step, from 0, of `total`: needed where recipes begin at
        fractions.  ValueError for a step that is not of the run."""
        checks.integer("step", step, low=0)
        if total is None and self.by_fraction:
            raise ValueError(
                f"total: got None, but {self} is by fractions of the run: give its steps in all"
            )
        if total is not None:
            checks.integer("total", total, low=1, high=_STEPS)
            checks.integer("step", step, low=0, high=total - 1, hint=f"total is {total}")
        # the quotient rounds as the fraction did: 7 / 100 is 0.07
        now = step / total if self.by_fraction and total is not None else step
        return [recipe for when, recipe in self.items() if when <= now][-1]

    def begins(self, total: int) -> dict[int, Recipe]:
        """The step, of `total`, at which each recipe begins.  ValueError where one never would."""
        found: dict[int, Recipe] = {}
        for when, recipe in self.items():
            step = int(when)
            if self.by_fraction:
                near = max(int(when * total) - 1, 0)  # of a product that may round up
                step = next(s for s in range(near, total + 1) if s / total >= when)
            if step in found or step >= total:
                raise ValueError(
                    f"recipes: in a run of {total} steps none is under "
                    f"{recipe.name if step >= total else found[step].name} ({self}); make the run "
                    f"longer, or leave that recipe out"
                )
            found[step] = recipe
        return found

    def __str__(self) -> str:
        later = [f"{recipe.name} from {when:g}" for when, recipe in self.items()[1:]]
        unit = " of the run" if self.by_fraction else ""
        return ", ".join([self.first.name, *later]) + unit


def beginnings(texts: Iterable[str]) -> list[tuple[float, str]]:
    """When recipes begin, and their names, in texts such as "0.9:bf16" or "500:bf16".

    ValueError for others, and where two begin at once, or one at 0.
    """
    found = [_beginning(text) for text in texts]
    times = [0, *(when for when, _ in found)]
    if len(set(times)) < len(times):
        raise ValueError(f"switch: got {', '.join(texts)}, need a time of its own, not 0, for each")
    return found


def _beginning(text: str) -> tuple[float, str]:
    when, _, name = checks.text("switch", text).partition(":")
    for number in (int, float) if name.strip(" ") else ():
        try:
            return number(when), name.strip(" ")
        except ValueError:
            continue
    need = "when and the name of a recipe, 0.9:bf16 (a fraction of the run) or 500:bf16 (a step)"
    checks.refuse("switch", text, need, error=ValueError)
