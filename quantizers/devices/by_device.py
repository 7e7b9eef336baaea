"""A function by torch's own operations, and what computes it faster on some devices.

    elements_of = ByDevice(_elements_of, cpu=elements)

A device more is a file of kernels and a word here; `in_graphs` keeps the function whole in what
torch.compile makes for the devices that have a faster form.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_library = cache(lambda namespace: torch.library.Library(namespace, "FRAGMENT"))


class ByDevice(Generic[P, R]):
    """A function of a tensor, on whose device it depends who computes it, and of more.

    default   by torch's own operations, on any device, in any graph
    forms     device type -> the same, faster.  A form returns None where it does not serve: for a
              dtype, a layout, or where torch must see what happens (`memory.serves`)
    graphs    device type -> the same, as one operation of a compiled graph, or None
    declined  where it is set, told of each call, eager, for which a device's form did not serve
    """

    def __init__(
        self,
        default: Callable[Concatenate[Tensor, P], R],
        **forms: Callable[Concatenate[Tensor, P], R | None],
    ) -> None:
        self.default, self.forms = default, forms
        self.graphs: dict[str, Callable[Concatenate[Tensor, P], R | None]] = {}
        self.declined: Callable[Concatenate[Tensor, P], None] | None = None

    def __call__(self, x: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            form = self.graphs.get(x.device.type)
        else:
            form = self.forms.get("cpu" if x.is_cpu else x.device.type)  # a name takes longer
        made = None if form is None else form(x, *args, **kwargs)
        if made is not None:
            return made
        if self.declined is not None and form is not None:
            self.declined(x, *args, **kwargs)
        return self.default(x, *args, **kwargs)

    def computed(self, x: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same where a graph is made too: what an operation of one runs, and is traced by."""
        form = self.forms.get(x.device.type)
        made = None if form is None else form(x, *args, **kwargs)
        return self.default(x, *args, **kwargs) if made is None else made

    def in_graphs(
        self,
        schema: str,
        run: Callable[..., Any],
        shapes: Callable[..., Any] | None = None,
        form: Callable[Concatenate[Tensor, P], R | None] | None = None,
        devices: Iterable[str] | None = None,
    ) -> None:
        """Keeps it whole in compiled graphs: `register` is told the schema, run and shapes.

        run       by `computed`, which asks for no operation of a graph
        shapes    default: run itself
        form      what calls torch's operation, or returns None; default: the operation itself
        devices   default: those of the faster forms
        """
        devices = list(self.forms if devices is None else devices)
        whole = register(schema, run, shapes or run, *[device.upper() for device in devices])
        self.graphs.update(dict.fromkeys(devices, form or whole))


def register(schema: str, run: Callable[..., Any], shapes: Callable[..., Any], *keys: str) -> Any:
    """An operation of torch, `torch.ops.<namespace>.<name>`.

    schema   "qtrain::masked(Tensor grad, Tensor off) -> Tensor"
    run      computes it
    shapes   makes results like run's of tensors without numbers
    keys     torch's dispatch keys: "CPU", "CUDA", or "CompositeExplicitAutograd" for every device
    """
    namespace, _, signature = schema.partition("::")
    library, name = _library(namespace), signature.partition("(")[0]
    library.define(signature)
    for key in keys:
        library.impl(name, run, key)
    torch.library.register_fake(f"{namespace}::{name}", shapes, lib=library)
    return getattr(getattr(torch.ops, namespace), name)


def spec(value: object) -> str | None:
    """A quantizer, or what else an operation of a graph needs, as a string; None where it has no
    pickle."""
    try:
        return base64.b64encode(pickle.dumps(value)).decode()
    except Exception:  # whatever a range rule of the user's own raises
        return None


@lru_cache(maxsize=1024)
def restored(text: str) -> Any:
    """What `spec` was given."""
    return pickle.loads(base64.b64decode(text))


def laid_out_like(result: Tensor, x: Tensor) -> Tensor:
    """A result in the layout of empty_like(x), which a compiled graph counts on."""
    like = torch.empty_like(x, dtype=result.dtype)
    return result if result.stride() == like.stride() else like.copy_(result)
