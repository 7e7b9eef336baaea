"""The data of a run: by a name of ours, by a reference, or what Python was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ... import checks, data
from ...data.drawing import drawing_from
from ...data.given import data_set, is_data
from . import reference

Data = Callable[..., Any] | Any
#: fields of a configuration that say where data lies, or what of it is wanted
_SETTINGS = ("data_dir", "image_size", "context", "cache_dir")
_NEED = (
    "a qtrain DataSet, a pair (train, test) of torch Datasets or DataLoaders, or a function that "
    "makes one"
)


def check(name: str) -> None:
    """What a configuration may say of its data; ValueError for anything else."""
    if reference.is_reference(name):
        reference.check("data", name)
    elif not isinstance(name, str) or name not in data.names():
        near = checks.suggestion(name, data.names(), 0.4)
        known = ", ".join(data.names())
        own = "package.module:function or file.py:function"
        checks.refuse("data", name, f"one of {known}, {own}{near}", error=ValueError)


def recorded(value: object) -> str:
    """How a configuration writes down data that was given; TypeError for what is none."""
    if not is_data(value) and not callable(value):
        hint = "names and references belong into TrainConfig(data=...)"
        checks.refuse("data", value, _NEED, hint if isinstance(value, str) else "")
    if isinstance(value, tuple | list) and value:
        value = getattr(value[0], "dataset", value[0])
    if isinstance(value, data.DataSet):
        return f"{reference.GIVEN}:{value.name}"
    return reference.text_of(value)


def load(config: Any, value: Data | None) -> data.DataSet:
    """The data set of a TrainConfig; DataError where it is missing or damaged."""
    name, settings = config.data, {what: getattr(config, what) for what in _SETTINGS}
    for what in ("data_dir", "cache_dir"):  # ~: no shell turns that of --data-dir=~/x into home
        if settings[what] is not None:
            settings[what] = os.path.expanduser(settings[what])
    if value is None and not reference.is_reference(name):
        return data.load(name, workers=config.workers, **settings)
    if value is None and reference.is_given(name):
        raise ValueError(
            f"data: the configuration says {name!r}, a value of Python; give it again: "
            f"train(config, data=...); to qtrain inspect and the like, --data file.py:function"
        )
    found = value if is_data(value) else None
    function = None if is_data(value) else value or reference.resolved("data", name)
    given = {what: own for what, own in settings.items() if own is not None}
    for what, own in given.items():
        if function is None or not reference.takes(function, what):
            raise ValueError(
                f"{what}: got {own!r}, but data {name!r} takes none; leave it out, or let the "
                f"function that makes the data have a parameter {what}"
            )
    if function is not None:
        with drawing_from(config.seed):
            found = reference.called("data", name, function, given, _SETTINGS)
    size, workers = config.batch_size, config.workers
    return data_set(reference.short(name), found, batch_size=size, workers=workers)
