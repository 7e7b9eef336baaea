"""References to functions: "package.module:function", "path/to/file.py:function", and back."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ... import checks

#: what stands before the name of a value that Python was given, and no reference leads back to
GIVEN = "given"
#: libraries whose models have names
LIBRARIES = ("timm", "torchvision")
#: how a reference is written
NEED = "package.module:function or path/to/file.py:function"


def is_reference(text: object) -> bool:
    """Whether it is written as one, or as what was given in Python; names of ours have no colon."""
    return isinstance(text, str) and ":" in text


def is_given(text: str) -> bool:
    """Whether it is the record of a value that has to be given again."""
    return text.partition(":")[0] == GIVEN


def check(field: str, text: str, libraries: tuple[str, ...] = ()) -> None:
    """ValueError for what no reference is written as; nothing is imported."""
    first, _, name = text.partition(":")
    where, _, attribute = text.rpartition(":")
    if first in (*libraries, GIVEN):
        fits = bool(name.strip()) and text.isprintable()
    else:
        words = where if where.endswith(".py") else where.replace(".", "_")
        fits = all(part.isidentifier() for part in attribute.split("."))
        fits &= where.isprintable() and (where.endswith(".py") or words.isidentifier())
    if not fits:
        known = "".join(f"{library}:name, " for library in libraries)
        checks.refuse(field, text, f"a name, {known}{NEED}", error=ValueError)


def short(text: str) -> str:
    """What a run's folder calls it: timm.resnet18, or the function's name."""
    if not is_reference(text):
        return text
    first, _, name = text.partition(":")
    name = f"{first}.{name}" if first in LIBRARIES else text.rpartition(":")[2]
    return re.sub(r"[^\w.-]+", ".", name).strip(".") or first


def resolved(field: str, text: str) -> Callable[..., Any]:
    """The function or class; ValueError where there is none."""
    where, _, name = text.rpartition(":")
    module = _of_file(field, text, Path(where)) if where.endswith(".py") else _named(field, text)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [own for own in vars(found) if callable(getattr(found, own))]
            near = checks.suggestion(part, names)
            raise ValueError(f"{field}: got {text!r}, but {where} has no {part!r}{near}")
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"{field}: got {text!r}, which is a {kind}, need a function or a class")
    return found  # type: ignore[no-any-return]


def _named(field: str, text: str) -> ModuleType:
    where = text.rpartition(":")[0]
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # which `python -m` has, and a command has not
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # of an import within the module
        raise ValueError(
            f"{field}: got {text!r}, but there is no module {error.name!r}; install it, put its "
            f"folder on PYTHONPATH, or give the file, path/to/file.py:function"
        ) from error


def _of_file(field: str, text: str, path: Path) -> ModuleType:
    """The module of a file, run once a process, as Python's own are; its folder is on the path, as
    that of a script is."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"{field}: got {text!r}, but there is no file {path}; the path is wrong")
    path = path.resolve()
    for module in (sys.modules.get("__main__"), *list(sys.modules.values())):
        own = getattr(module, "__file__", None)  # a script that is running runs no second time
        if isinstance(own, str) and os.path.isabs(own) and Path(own) == path:
            return module  # type: ignore[return-value]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = path.stem
    usual = importlib.util.find_spec(name) if name.isidentifier() else None  # of a worker, too
    if usual is None or usual.origin != str(path) or name in sys.modules:
        name = f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def text_of(value: object) -> str:
    """The reference of a function or class that can be imported, else given:NAME."""
    name = getattr(value, "__qualname__", None)
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if isinstance(name, str) and module is not None and callable(value):
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is value:
            place = _place(module)
            if place is not None:
                return f"{place}:{name}"
    own = getattr(value, "__name__", None)
    return f"{GIVEN}:{own if isinstance(own, str) else type(value).__name__}"


def _place(module: ModuleType) -> str | None:
    """How a module is found again: by its name, or where that leads elsewhere by its file."""
    name, file = module.__name__, getattr(module, "__file__", None)
    if name != "__main__":
        spec = getattr(module, "__spec__", None)
        usual = spec is None or getattr(spec, "name", name) == name
        if usual and importlib.util.find_spec(name) is not None:
            return name
    if not isinstance(file, str) or not file.endswith(".py") or not os.path.isfile(file):
        return None
    path, here = os.path.realpath(file), os.path.realpath(os.getcwd())
    return os.path.relpath(path, here) if path.startswith(here + os.sep) else path


def code_of(text: str) -> str | None:
    """A digest of the source of the function or class that a reference names; None of one of a
    library's models, of what Python was given, and where nothing is found."""
    if not is_reference(text) or text.partition(":")[0] in (*LIBRARIES, GIVEN):
        return None
    try:
        source = inspect.getsource(resolved("reference", text))
    except (OSError, TypeError, ValueError):
        return None
    return f"{text} {hashlib.sha256(source.encode()).hexdigest()[:8]}"


def called(
    field: str,
    text: str,
    function: Callable[..., Any],
    offered: Mapping[str, Any],
    settable: Sequence[str] = (),
) -> Any:
    """What the function makes of those of `offered` that its signature names, or of all where it
    takes **any and names none; ValueError where it needs more.  settable: what can be set."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not named and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**offered)
    lacking = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)
    ]
    if lacking:
        if set(lacking) <= set(settable):
            raise ValueError(f"{field}: {text!r} needs {', '.join(lacking)}: set it")
        has = ", ".join(f"{name}={value}" for name, value in offered.items()) or "nothing"
        raise ValueError(
            f"{field}: {text!r} needs {', '.join(lacking)}, but is called with those of {has} that "
            f"its signature names; give the others a default, or write a function that does"
        )
    return function(**{name: value for name, value in offered.items() if name in named})


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `called` would hand it `name`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    kinds = [p.kind for p in parameters.values()]
    return name in parameters or kinds == [inspect.Parameter.VAR_KEYWORD]
