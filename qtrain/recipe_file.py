"""Recipes as YAML files: each of their fields that is not the default, under its own name."""

from __future__ import annotations

import os
import types
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from quantizers import Quantizer, QuantizerLike
from quantizers.accumulators import Accumulator

from . import checks, recipes
from .files.plain_yaml import parsed
from .files.whole import text_in, write_atomically
from .files.yaml_writer import dumped
from .recipe import Hadamard, Recipe
from .recipe_words import call, kinds, named, names, spelled

T = TypeVar("T")

#: what a mapping is, where a field may be of several kinds
_USUAL: dict[type, type] = {QuantizerLike: Quantizer, Hadamard: Hadamard}


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> Path:
    """Write a recipe to a .yaml or .yml file, atomically; returns the path.

    A field that has its default is left out.  `load_recipe` gives an equal recipe.  ValueError for
    another ending, and, naming the place, for an object of a class that is not ours, such as a
    quantizer of your own: a file holds no code.
    """
    checks.instance("recipe", recipe, Recipe, "a Recipe; recipes.get(name) makes one")
    return written(recipe, "save_recipe", path)


def written(made: object, field: str, path: object) -> Path:
    """Write what `text_of` gives; field: by which errors name the path."""
    found = _path(field, path)
    text = text_of(made)
    write_atomically(found, lambda file: file.write(text.encode()))
    return found


def text_of(made: object) -> str:
    """What `save_recipe` writes, of any kind of ours that holds plain data and parts of recipes."""
    return dumped(_plain(made, ""))


def made_of(text: str, kind: type[T]) -> T:
    """The object of which this is `text_of`."""
    return _made(parsed(text), kind, "")


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file that `save_recipe` wrote, or somebody by hand.

    Nothing in a file is run.  A named recipe comes back as itself; others have no other widths
    (`Recipe.at`).  ValueError, naming the place, for an unknown field, with the nearest that there
    is, for a value that a field does not take, and for text that is no such YAML.
    """
    with text_in(_path("load_recipe", path), "recipe") as text:
        return _of_text(text)


def _of_text(text: str) -> Recipe:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = made_of(text, Recipe)
    if found.name in recipes.names() and (known := recipes.get(found.name)) == found:
        return known
    for warning in said:  # a recipe of the user's own
        warnings.warn(warning.message, stacklevel=3)
    return found


def find(name: str, bits: int | None = None) -> Recipe:
    """The recipe of a name, of a file, by its path, or of such a file's text; at `bits` bits where
    it takes them.  ValueError for anything else, with the nearest name."""
    if not is_file(name) and not is_text(name):
        return recipes.get(name, bits)
    found = _of_text(name) if is_text(name) else load_recipe(name)
    return found if bits is None else found.at(bits)


def accumulator_of(text: str) -> Accumulator:
    """The accumulator of such words as sequential(fp16, chunk=64), as a recipe's file and `str`
    have them; ValueError for others."""
    name, bracket, _ = checks.text("accumulator", text).partition("(")
    if bracket and name not in kinds():
        checks.choice("accumulator", name, ("exact", "sequential", "aligned", "integer", "unit"))
    found = _called(text, "accumulator") if bracket else None
    if not isinstance(found, Accumulator):
        need = "sequential(fp16), integer(16, overflow=saturate) or another of accumulators'"
        checks.refuse("accumulator", text, need, error=ValueError)
    return found


def is_file(name: object) -> bool:
    """Whether what is given for a recipe's name is the path of a file."""
    return isinstance(name, str) and name.endswith((".yaml", ".yml")) and not is_text(name)


def is_text(name: object) -> bool:
    """Whether it is the text of a file."""
    return isinstance(name, str) and "\n" in name


def lasting(given: str | Recipe) -> str:
    """A recipe, or what a path leads to, as its name where it has one, else its file's text; any
    other name as it is.  ValueError for a recipe that has no text."""
    if not isinstance(given, Recipe) and not is_file(given):
        return given
    found = given if isinstance(given, Recipe) else load_recipe(given)
    if found.name in recipes.names() and recipes.get(found.name) == found:
        return found.name
    text = text_of(found)
    if not _same(_of_text(text), found):
        raise ValueError(f"recipe {found.name!r} is not what its text gives; keep it in Python")
    return text


def _path(field: str, got: object) -> Path:
    path = checks.path(field, got)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{field}: got {str(path)!r}, need a path that ends in .yaml or .yml")
    return path


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
    if isinstance(value, Mapping):
        return {name: _value(own, expected, f"{where}.{name}") for name, own in value.items()}
    named = [name for name, known in names().items() if _same(known, value)]
    if named:
        return named[0]
    made = spelled(value)
    if made is not None and _same(_called(made, where), value):
        return made
    kind = type(value)
    tag = kind.__name__.lstrip("_")
    if kinds().get(tag) is not kind:
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
    if isinstance(value, Mapping) and get_origin(hint) is Mapping:
        part = get_args(hint)[1]
        return {name: _parsed(own, part, f"{where}.{name}") for name, own in value.items()}
    expected = _expected(hint)
    if isinstance(value, str) and expected is not None:
        return _called(value, where) if "(" in value else named(value, where)
    if not isinstance(value, Mapping):
        return value
    (tag, *others) = value or [""]
    if not others and tag in kinds() and isinstance(value[tag], Mapping):
        return _made(value[tag], kinds()[tag], where)
    if expected is None or expected not in kinds().values():
        raise ValueError(
            f"{where}: got a mapping of {', '.join(value)}, need a name, or one kind and its "
            f"fields, {{FloatFormat: {{exponent: 4, mantissa: 3}}}}"
        )
    return _made(value, expected, where)


def _called(text: str, where: str) -> Any:
    """What a call such as blocks(32) makes."""
    maker, given = call(text, where)
    hints = get_type_hints(maker)
    for name, value in given.arguments.items():
        given.arguments[name] = _parsed(value, hints[name], f"{where}: {text}: {name}")
    try:
        return maker(*given.args, **given.kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {text}: {error}") from error


def _expected(hint: Any) -> Any:
    """What a mapping, or a name, of a field of this type is: None where it takes plain data alone;
    a protocol where it is open which kind."""
    if get_origin(hint) is Mapping:
        return _expected(get_args(hint)[1])
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    own = [one for one in options if isinstance(one, type) and one.__module__ != "builtins"]
    if not own:
        return None
    usual = [_USUAL[one] for one in own if one in _USUAL]
    return usual[0] if usual else own[0] if len(own) == 1 else object
