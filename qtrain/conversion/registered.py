"""Layers of a user's own class: what computes the same by torch's functions, in place of a forward
whose products nobody sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

from torch import nn

from .. import checks
from .joined import base_class, before, joined, set_class_

Forward = TypeVar("Forward", bound=Callable[..., Any])
#: whose forwards are theirs to convert
_OURS = ("torch.", "qtrain.")
_FUNCTIONS: dict[type[nn.Module], FunctionType] = {}


def register(cls: type[nn.Module]) -> Callable[[Forward], Forward]:
    """A decorator: the function computes, by torch's functions, what the class's forward does.

        @register(FlashAttention)
        def attend(self, q, k, v): ...

    For a layer whose products happen inside of what nobody sees into: a `torch.autograd.Function`,
    a kernel, a fused operation.  In a model that `quantize` converts from then on, every module of
    the class, and of subclasses that inherit its forward, runs the function instead where it
    follows a recipe, and its calls are layers, `<module>.functional.<kind><number>`.  Its own
    forward runs where an override of its name leaves it, where the recipe is off, under
    functional=False, and where `forward` was replaced on the object.

    That both compute the same is for the caller to say, and to see: the function is returned as it
    was, so `attend(layer, q, k, v)` against `layer(q, k, v)` shows it.  A model that was pickled
    needs the class registered where it is loaded.

    TypeError for what is no class of modules, and a function that cannot be called as the class's
    forward can, or has another default.  ValueError for a class of torch's or qtrain's or with the
    forward of one, and for another function than the one that is registered; one of the same name
    in the same file, as a cell that is run again, takes its place.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        hint = f"give its class, {type(cls).__name__}" if isinstance(cls, nn.Module) else ""
        checks.refuse("register", cls, "a class of torch.nn.Module", hint)
    name, forward = cls.__name__, cls.forward
    if any((getattr(one, "__module__", "") or "").startswith(_OURS) for one in (cls, forward)):
        raise ValueError(
            f"register: {name} is a class of torch's or qtrain's, or has the forward of one, which "
            f"quantize converts, or leaves, by itself; register your class, with its own forward"
        )

    def keep(function: Forward) -> Forward:
        if not isinstance(function, FunctionType):
            need = f"a function of (self, ...) as {name}.forward is"
            checks.refuse(f"register({name})", function, need, "write it with def")
        _check_signature(name, forward, function)
        known = _FUNCTIONS.get(cls)
        if known is not None and _named(known) != _named(function):
            raise ValueError(
                f"register({name}): got {_named(function)}, and {_named(known)} is registered; "
                f"a class has one function"
            )
        _FUNCTIONS[cls] = function
        for made in Registered.__subclasses__():
            made.forward = _function_of(before(made)) or made.forward
        return function

    return keep


def _named(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_signature(name: str, forward: Callable[..., Any], function: FunctionType) -> None:
    """TypeError for a function that cannot be called as a forward can, to the same effect."""
    signature = inspect.signature(forward)
    theirs, own = signature.parameters, inspect.signature(function)
    said = f"register({name}): {_named(function)}{own} cannot be called as "
    said += f"{name}.forward{signature} is"
    for args, kwargs in _calls(list(theirs.values())):
        try:
            bound = own.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{said}: {error}") from error
        for key, value in bound.items():
            if key in theirs and isinstance(value, str) and value != key:
                raise TypeError(f"{said}: it has {key!r} in the place of {value!r}")
    for key, one in own.parameters.items():
        default = theirs[key].default if key in theirs else one.empty
        if one.empty not in (one.default, default) and repr(one.default) != repr(default):
            raise TypeError(f"{said}: the default of {key!r} is another")


def _calls(of: list[inspect.Parameter]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Calls of a method with these parameters, each given its name: all that it takes, by position
    and by name, and the fewest."""
    kind = inspect._ParameterKind
    ordered = [p for p in of if p.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)]
    named = {p.name: p.name for p in of if p.kind is kind.KEYWORD_ONLY}
    free = [p for p in of if p.kind is kind.VAR_POSITIONAL]
    more = {"**": "**"} if any(p.kind is kind.VAR_KEYWORD for p in of) else {}
    yield [p.name for p in (*ordered, *free)], named | more
    first = [p.name for i, p in enumerate(ordered) if not i or p.kind is kind.POSITIONAL_ONLY]
    yield first, {p.name: p.name for p in ordered if p.name not in first} | named
    least = [p.name for p in ordered if p.default is p.empty]
    yield least, {p.name: p.name for p in of if p.name in named and p.default is p.empty}


class Registered(nn.Module):
    """What stands before a class that was registered: its forward is the function."""

    def __init_subclass__(cls) -> None:  # the class's own, behind, is not for a class of ours
        own = before(cls)
        if own is not cls:  # not one that torch makes of it, for a parametrized module
            function = _function_of(own)
            if function is None:
                raise ValueError(
                    f"{own.__name__}: a model was loaded in which a function takes the place of "
                    f"its forward; register one before, qtrain.register({own.__name__})"
                )
            cls.forward = function


def _function_of(cls: type[nn.Module]) -> FunctionType | None:
    """What is registered for a class, or the class whose forward it inherits."""
    for one in cls.__mro__:
        if one in _FUNCTIONS:
            return _FUNCTIONS[one]
        if "forward" in vars(one):
            return None
    return None


def function_of(module: nn.Module) -> FunctionType | None:
    """What is registered for a module, or None; so too where its forward was replaced on it."""
    if "forward" in vars(module):
        return None
    return _function_of(class_of(module))


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before its conversion."""
    return before(base_class(module))


def name_of(module: nn.Module) -> str | None:
    """The function that a module runs in place of its forward, in words; None: its own runs."""
    if not isinstance(module, Registered):
        return None
    own = class_of(module)
    return f"{own.__name__}: computed by the function registered, {_named(type(module).forward)}"


def follow_(module: nn.Module) -> None:
    """Have a module run the function that is registered for it, if one is, in place."""
    own = base_class(module)
    if function_of(module) is not None and not issubclass(own, Registered):
        set_class_(module, joined(own, Registered, own))


def unfollow_(module: nn.Module) -> None:
    """Have it run its own forward."""
    if isinstance(module, Registered):
        set_class_(module, class_of(module))
