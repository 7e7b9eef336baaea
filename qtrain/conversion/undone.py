"""A model as it was before what failed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Where anything is raised within it, Ctrl-C too, the model's modules have their classes,
    attributes, children and hooks again, and its parameters what they say of gradients.  What
    tensors hold is not looked at."""
    kept = [(module, type(module), _attributes(module)) for module in model.modules()]
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, attributes in kept:
            module.__class__ = cls
            vars(module).clear()
            for name, (value, held) in attributes.items():
                vars(module)[name] = value
                if held is not None:  # the same object again: handles of hooks know it
                    value.clear()
                    value.update(held)
        for parameter, asks in asked:
            parameter.requires_grad_(asks)
        raise


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each with a copy of what it holds, where it is a table of torch's."""
    tables = dict, OrderedDict, set
    return {k: (v, v.copy() if type(v) in tables else None) for k, v in vars(module).items()}
