"""What a conversion did to a model, kept on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..names import lineage, some
from ..recipe import Recipe
from .functional.following import Following
from .functional.unmatched import unmatched
from .overrides import Asked, Chooser

_ATTRIBUTE = "_qtrain_conversion"


@dataclass
class Conversion:
    """Which layers were converted and which were left, and why; kept on the converted model.

    asked        the recipe in force, and the norm and the overrides beside it
    schedule     of recipes, in words; "": there is none
    on_purpose   those left by an override
    overridden   converted layers with a recipe of their own, and that recipe
    norms_left   norms that stay although their recipe asks for another, and why
    functional   what calls of functions follow; None: they are left
    """

    asked: Asked
    copied: bool
    schedule: str = ""
    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    on_purpose: set[str] = field(default_factory=set)
    overridden: dict[str, str] = field(default_factory=dict)
    norms_left: dict[str, str] = field(default_factory=dict)
    functional: Following | None = None

    @property
    def recipe(self) -> str:
        """The recipe in force, in words."""
        base = self.asked.base
        return f"{base}" if base.norm is None else f"{base}; norm {base.norm}"

    @property
    def left_out(self) -> dict[str, str]:
        """Recipes in force that leave something out of what they are named after -> what."""
        return {r.name: r.lacks for r in self.in_force if r.lacks}

    @property
    def in_force(self) -> list[Recipe]:
        """The recipe, and those of overrides."""
        every = [self.asked.base, *Chooser(self.asked).rules.values()]
        return [recipe for recipe in every if recipe is not None]

    def attach(self, model: nn.Module) -> None:
        setattr(model, _ATTRIBUTE, self)

    @classmethod
    def of(cls, model: nn.Module) -> Conversion | None:
        """The one that was attached to the model, or None."""
        found: Conversion | None = getattr(model, _ATTRIBUTE, None)
        return found

    def unmatched(self, model: nn.Module) -> str:
        """`unmatched`, once a forward has shown which calls the model has."""
        if self.functional is None:
            return ""
        self.functional.are_known = True
        return unmatched(model, self.functional, self.functional.choose)

    @staticmethod
    def within(model: nn.Module, call: str) -> str:
        """The calls, in words, for the parts of a model that was not converted which were; "": none
        was.  call: as "summary({}, ...)"."""
        paths = [name.split(".") for name, part in model.named_modules() if Conversion.of(part)]
        each = ["".join(f"[{k}]" if k.isdigit() else f".{k}" for k in path) for path in paths]
        calls = [call.format(f"model{path}") for path in each]
        return f"; a part of it was: {some(calls, 3)}" if calls else ""

    def is_intended(self, name: str) -> bool:
        """Whether a module, or one it is part of, was left by an override."""
        return any(part in self.on_purpose for part in lineage(name))


def grouped(said: Mapping[str, str]) -> dict[str, list[str]]:
    """What is said -> the layers of which it is, in their order."""
    groups: dict[str, list[str]] = {}
    for name, text in said.items():
        groups.setdefault(text, []).append(name)
    return groups


def by_reason(left: Mapping[str, str], most: int) -> Iterator[str]:
    """One line for each reason why layers are left, with so many of their names."""
    for reason, names in grouped(left).items():
        yield f"{len(names)} x {reason} ({some(names, most)})"
