"""Named training runs: a quantization recipe together with a model, data and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .. import checks, recipes
from ..recipe import Recipe
from ..recipe_file import is_file, is_text, lasting
from ..schedule import Schedule
from .config import TrainConfig

TRAINING_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "int8-resnet18": {
        "recipe": "int8",
        "norm": "range",
        "activation": "fp16",
        "model": "resnet18",
        "data": "digits",
        "epochs": 3,
        "lr": 0.01,  # at 0.02 running statistics lag behind the weights in the first epochs
    },
}


def names() -> list[str]:
    """What `training_recipe` takes: the named runs, then every quantization recipe."""
    return [*TRAINING_RECIPES, *recipes.names()]


def training_recipe(name: str | Recipe | Schedule, /, **changes: Any) -> TrainConfig:
    """The configuration of a named run with `changes`; a quantization recipe's name,
    or its file, does too, and so does a Recipe or a Schedule.

    Full precision alone (fp32) has no baseline beside it unless one is asked for.
    """
    known = [option.name for option in fields(TrainConfig)]
    for field in changes:
        if field not in known:
            near = checks.suggestion(field, known)
            raise TypeError(
                f"training_recipe: got {field}={checks.shown(changes[field])}, need fields of "
                f"TrainConfig{near}"
            )
    if isinstance(name, Schedule):
        return TrainConfig(**{"recipe": name, **changes})
    if is_file(name) or isinstance(name, Recipe):
        name = lasting(name)
    if not isinstance(name, str) or (name not in names() and not is_text(name)):
        near = recipes.hint(name, names())
        raise ValueError(
            f"recipe: got {checks.shown(name)}, need one of those that `qtrain recipes` lists, or "
            f"a .yaml file{near}"
        )
    base = TRAINING_RECIPES.get(name, {"recipe": name, "baseline": name != "fp32"})
    return TrainConfig(**{**base, **changes})
