"""Recipes as YAML files: each of their fields that is not the default, under its own name."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import quantizers
from quantizers import Quantizer, QuantizerLike, formats, per_channel, stochastic
from quantizers.checks import suggestion

from . import checks, recipes
from .files.plain_yaml import dumped, parsed
from .files.whole import read_bytes, write_atomically
from .norms import deviations
from .recipe import Hadamard, Recipe

T = TypeVar("T")

#: where our own kinds of recipes and their parts are defined
_ROOMS = (
    "quantizers", "qtrain.recipe", "qtrain.norms.recipe",
    "qtrain.norms.arithmetic", "qtrain.norms.deviations", "qtrain.norms.largest",
)  # fmt: skip
#: what a mapping is, where a field may be of several kinds
_USUAL: dict[type, type] = {QuantizerLike: Quantizer, Hadamard: Hadamard}


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> Path:
    """Write a recipe to a .yaml or .yml file, atomically; returns the path.

    A field that has its default is left out.  `load_recipe` gives an equal recipe.  ValueError for
    another ending, and, naming the place, for an object of a class that is not ours, such as a
    quantizer of your own: a file holds no code.
    """
    checks.instance("recipe", recipe, Recipe, "a Recipe; recipes.get(name) makes one")
    path = _path("save_recipe", path)
    text = dumped(_plain(recipe, ""))
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file that `save_recipe` wrote, or somebody by hand.

    Nothing in a file is run.  A named recipe comes back as itself; others have no other widths
    (`Recipe.at`).  ValueError, naming the place, for an unknown field, with the nearest that there
    is, for a value that a field does not take, and for text that is no such YAML.
    """
    path = _path("load_recipe", path)
    if not path.is_file():
        raise ValueError(f"load_recipe: {path} is no file")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = _made(parsed(read_bytes(path).decode("utf-8-sig")), Recipe, "")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    named = recipes.get(found.name) if found.name in recipes.names() else None
    if named is not None and named == found:
        return named
    for warning in said:  # a recipe of the user's own
        warnings.warn(warning.message, stacklevel=2)
    return found


def _path(field: str, got: object) -> Path:
    path = checks.path(field, got)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{field}: got {str(path)!r}, need a path that ends in .yaml or .yml")
    return path


@cache
def _kinds() -> dict[str, type]:
    """Our kinds, by name."""
    rooms = [m for n, m in [*sys.modules.items()] if n.startswith(_ROOMS) and ".kernels" not in n]
    return {
        kind.__name__.lstrip("_"): kind
        for room in rooms
        for kind in vars(room).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == room.__name__
    }


@cache
def _names() -> dict[str, Any]:
    """What has a name, by it."""
    ours = {n: v for n, v in vars(quantizers).items() if type(v) in _kinds().values()}
    drawn = {str(rounding): rounding for rounding in map(stochastic, range(1, 24))}
    norms = {name: deviations.get(name) for name in deviations.names()}
    found = {"OFF": quantizers.OFF, "per_channel": per_channel()}
    return {**found, **formats.NAMED, **ours, **drawn, **norms}


def _fields(kind: Any) -> dict[str, Field[Any]]:
    """The fields of a kind that say what its objects are."""
    return {field.name: field for field in fields(kind) if field.init and field.compare}


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plain(value: Any, where: str) -> dict[str, Any]:
    """An object of ours as a mapping of those of its fields that are not the default."""
    kind, found = type(value), {}
    hints = get_type_hints(kind)
    for name, field in _fields(kind).items():
        own = getattr(value, name)
        if not _same(own, _default(field)):
            place = f"{where}.{name}".lstrip(".")
            found[name] = _value(own, _expected(hints[name]), place)
    return found


def _same(a: Any, b: Any) -> bool:
    """Whether two are equal, down to the classes of their parts."""
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(_same(getattr(a, name), getattr(b, name)) for name in _fields(type(a)))
    return bool(a == b)


def _value(value: Any, expected: Any, where: str) -> Any:
    """A field's value as plain data; `expected`: the kind that a mapping is where it names none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_value(each, None, where) for each in value]
    named = [name for name, known in _names().items() if _same(known, value)]
    if named:
        return named[0]
    kind = type(value)
    tag = kind.__name__.lstrip("_")
    if _kinds().get(tag) is not kind:
        raise ValueError(
            f"{where}: {checks.shown(value)} is of a class of its own ({kind.__name__}), and a "
            f"file holds no code; keep the recipe in Python, or use what quantizers has"
        )
    own = _plain(value, where)
    return own if kind is expected else {tag: own}


def _made(tree: Mapping[str, Any], kind: type[T], where: str) -> T:
    """The object of which this is `_plain`."""
    hints, known, given = get_type_hints(kind), _fields(kind), {}
    for name, value in tree.items():
        place = f"{where}.{name}".lstrip(".")
        checks.choice(f"{where or kind.__name__}: field", name, known)
        given[name] = _parsed(value, hints[name], place)
    missing = [n for n, f in known.items() if n not in given and _default(f) is MISSING]
    if missing:
        raise ValueError(f"{where or kind.__name__}: {', '.join(missing)} is missing")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _parsed(value: Any, hint: Any, where: str) -> Any:
    """A field's value of plain data."""
    if isinstance(value, list):
        part = get_args(hint)[0] if get_origin(hint) is tuple else Any
        return tuple(_parsed(each, part, where) for each in value)
    expected = _expected(hint)
    if isinstance(value, str) and expected is not None:
        if value not in _names():
            near = suggestion(value, _names())
            raise ValueError(f"{where}: got {value!r}, which is no name that quantizers has{near}")
        return _names()[value]
    if not isinstance(value, Mapping):
        return value
    (tag, *others) = value or [""]
    if not others and tag in _kinds() and isinstance(value[tag], Mapping):
        return _made(value[tag], _kinds()[tag], where)
    if expected is None or expected not in _kinds().values():
        raise ValueError(
            f"{where}: got a mapping of {', '.join(value)}, need a name, or one kind and its "
            f"fields, {{FloatFormat: {{exponent: 4, mantissa: 3}}}} in two lines"
        )
    return _made(value, expected, where)


def _expected(hint: Any) -> Any:
    """What a mapping, or a name, of a field of this type is: None where it takes plain data alone;
    a protocol where it is open which kind."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    own = [one for one in options if isinstance(one, type) and one.__module__ != "builtins"]
    if not own:
        return None
    usual = [_USUAL[one] for one in own if one in _USUAL]
    return usual[0] if usual else own[0] if len(own) == 1 else object
