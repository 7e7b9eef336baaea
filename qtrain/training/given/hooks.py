"""The hooks of a run: by references to functions that make them, or as values of Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ... import checks
from ..hook import Hook
from . import reference

_NEED = "a qtrain.Hook, or a function or class that makes one, of no argument or of `config`"


def check(names: Any) -> None:
    """What a configuration may say of its hooks; ValueError or TypeError for anything else."""
    example = 'a tuple such as ("package.module:function",)'
    for name in checks.instance("hooks", names, tuple, example):
        if not reference.is_reference(name):
            hint = "values of Python belong into train(config, hooks=[...])"
            checks.refuse("hooks", name, f"text, {reference.NEED}", hint, error=ValueError)
        reference.check("hooks", name)


def listed(given: Iterable[Any]) -> list[Any]:
    """What `train` was given as hooks; TypeError for what makes none."""
    found = list(checks.iterable("hooks", given, f"a list, each {_NEED}"))
    for value in found:
        if not isinstance(value, Hook) and not callable(value):
            hint = "references belong into TrainConfig(hooks=...)" if type(value) is str else ""
            checks.refuse("hooks", value, _NEED, hint)
    return found


def recorded(names: tuple[str, ...], given: list[Any]) -> tuple[str, ...]:
    """How a configuration that has hooks writes down those that were given beside them; ValueError
    where one that it had been given before is not given again."""
    texts = [reference.text_of(value) for value in given]
    for name in filter(reference.is_given, names):
        if name not in texts:
            raise ValueError(
                f"hooks: the configuration says {name!r}, a value of Python; give it again: "
                f"train(config, hooks=[...])"
            )
    return (*(name for name in names if not reference.is_given(name)), *texts)


def made(config: Any, given: list[Any]) -> list[Hook]:
    """The hooks of a TrainConfig, in whose `hooks` the given ones are written down last."""
    names = config.hooks[: len(config.hooks) - len(given)]
    every = [*(reference.resolved("hooks", name) for name in names), *given]
    found = []
    for name, value in zip(config.hooks, every, strict=True):
        if not isinstance(value, Hook):
            value = reference.called("hooks", name, value, {"config": config})
        if not isinstance(value, Hook):
            checks.refuse(
                "hooks", value, "a qtrain.Hook", f"{name!r} returned it", error=ValueError
            )
        found.append(value)
    return found
