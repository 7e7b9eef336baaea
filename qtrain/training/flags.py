"""The fields of TrainConfig as flags of the shell, in groups, and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, get_args, get_origin, get_type_hints

from .. import data, models
from ..norms import deviations
from ..weights.updates.named import NAMED
from .config import ACTIVATIONS, OWN_NORM, SCHEDULES, TrainConfig, default_of
from .loggers.named import LOGGERS

#: the first field of a group -> its title
_GROUPS = {
    "switch": "what is in few bits",
    "model": "model and data",
    "epochs": "training",
    "device": "machine",
    "checkpoint_every": "what is kept, and where",
}
#: fields of which every value that is allowed has a name
_CHOICES = {
    "norm": (*deviations.names(), OWN_NORM),
    "activation": ACTIVATIONS,
    "schedule": SCHEDULES,
    "log": tuple(LOGGERS),
}
#: and of which some have
_NAMES = {"model": models.names(), "data": data.names(), "update": list(NAMED)}
_FIELDS = [option for option in fields(TrainConfig) if option.name != "recipe"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field but the recipe; what is not given keeps the named run's setting."""
    kinds, group = get_type_hints(TrainConfig), parser.add_argument_group()
    for option in _FIELDS:
        if option.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[option.name])
        _add(group, option, kinds[option.name])


def train_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given on the command line, recipe apart."""
    names = [option.name for option in _FIELDS]
    given = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
    return {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}


def _add(group: argparse._ArgumentGroup, option: Field[Any], kind: Any) -> None:
    default, text = default_of(option), option.metadata["help"]
    if option.name in _NAMES:
        text += f"; names: {', '.join(_NAMES[option.name])}"
    if default not in (None, ()):
        text += f" (default {default})"
    part = get_args(kind)[0] if get_args(kind) else kind
    shown = "N" if part is int else "X" if part is float else "NAME"
    shown = "DIR" if option.name.endswith("_dir") else shown
    if option.name in _CHOICES:
        shown = "{" + ",".join(_CHOICES[option.name]) + "}"
    more: dict[str, Any] = {"type": _reader(kind), "metavar": shown}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    elif get_origin(kind) is tuple:
        more |= {"type": _reader(part), "nargs": "+"}
    # SUPPRESS: a flag that is not given leaves the named run's own setting
    name = option.name.replace("_", "-")
    group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **more)


def _reader(kind: Any) -> Callable[[str], object]:
    """Reads a number where the field takes one; other text is left for TrainConfig to refuse."""
    accepted = get_args(kind) or (kind,)

    def read(text: str) -> object:
        for number in (int, float):
            if int in accepted or float in accepted:
                try:
                    return number(text)
                except ValueError:
                    continue
        return text

    return read
