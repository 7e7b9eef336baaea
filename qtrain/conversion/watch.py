"""Which products of a model run outside its recipe, and which of its layers never run."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import checks
from ..autograd.own_functions import in_function
from ..copies import aside, copied, random_state_kept, take_hooks_off, unwrapped
from ..products.module import QProduct, products_of
from ..products.watched import Watched
from .functional.attach import sites_of
from .functional.discover import discover_, only_scopes_
from .functional.naming import of_slice
from .record import Conversion
from .share import Share, inside_function, multiplies

_TORCH = os.path.dirname(torch.__file__)


def _is_off(module: nn.Module) -> bool:
    """Whether a layer was converted under a recipe that leaves its products to torch."""
    products = products_of(module)
    return bool(products) and all(product.recipe.products_off for product in products)


class Watch(TorchDispatchMode):
    """Notes every product, by the path of the module it runs in, and every layer that runs.

    outside   module path -> products outside the recipe;  aside: those of calls that are left
    inside    of the former those in a torch.autograd.Function: path -> what to do, in words
    share     of the multiply-adds
    """

    lets_kernels_pass = True  # a forward computes the same bits watched and unwatched

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler at the first operation (1.4 s)."""
        return False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conversion = Conversion.of(model)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.layers = list(model.modules())
        #: parameters -> the products that multiply them, of those that ran
        self.weights: dict[int, str] = {}
        #: the modules whose forwards run, and the frames that these run in
        self.stack: list[tuple[nn.Module, Any]] = []
        self.outside: dict[str, list[str]] = {}
        self.inside: dict[str, str] = {}
        self.aside: dict[str, dict[str, list[str]]] = {"constant": {}, "left": {}}
        self.share = Share()
        self.ran: set[int] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Any:
        self._handles = [
            hooks.register_module_forward_pre_hook(self.reached),
            hooks.register_module_forward_hook(self._pop, always_call=True),
        ]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def reached(self, module: nn.Module, args: Any) -> None:
        self.stack.append((module, sys._getframe(1)))
        self.ran.add(id(module))

    def _pop(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, QProduct) and isinstance(output, Tensor):
            parent = module.name.rpartition(".")[0] or "(model)"
            self.share.note(args, output, parent if module.is_off else None)
        product = module if isinstance(module, QProduct) else getattr(module, "product", None)
        if isinstance(product, QProduct):
            for x in args:
                if isinstance(x, Tensor):  # a weight is the left operand of a matmul, too
                    self.weights.setdefault(id(x if x._base is None else x._base), product.name)
        while self.stack and self.stack.pop()[0] is not module:
            pass

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func._overloadpacket.__name__.rstrip("_")  # addmm_ is addmm in place
        if multiplies(name):
            self._note(name, func, args, kwargs, found)
        return found

    def _note(self, name: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """A product of torch's."""
        if any(isinstance(module, QProduct) for module, _ in self.stack):
            return
        named = [entry for entry in self.stack if id(entry[0]) in self.names]
        module, frame = named[-1] if named else (None, None)
        path = (self.names[id(module)] if named else "") or "(model)"
        sites = None if module is None else sites_of(module)
        why = None if sites is None else sites.aside
        self.share.note_left(path, func, args, kwargs, output, graded=why != "constant")
        if any(_is_off(module) for module, _ in self.stack):
            return
        if module is not None and self._calls_are_off(module):
            return
        found = (self.outside if why is None else self.aside[why]).setdefault(path, [])
        if why is None and module is not None and in_function(frame):
            self.inside[path] = inside_function(module)
        if name not in found:
            found.append(name)

    def _calls_are_off(self, module: nn.Module) -> bool:
        """Whether the calls of a module's functions follow a recipe that leaves them to torch."""
        calls = None if self._conversion is None else self._conversion.functional
        recipe = None if calls is None else calls.recipe(self.names[id(module)])
        return recipe is not None and recipe.products_off

    def never_ran(self) -> dict[str, str]:
        """Products, and lookups, that no forward reached, but experts that no token chose -> the
        product of another layer that used their layer's weight, as a function that its parent
        calls; "": none did."""
        found = {}
        for layer in self.layers:
            own = {c.name: c for c in layer.children() if isinstance(c, Watched)}
            used = [self.weights.get(id(p), "") for p in layer.parameters(False)]
            instead = next((name for name in used if name and name not in own), "")
            for name, product in own.items():
                chosen = id(product) in self.ran or of_slice(name)
                if not (chosen or product.is_off):
                    found[name] = instead
        return found


def rehearsed(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], *, learning: bool
) -> tuple[Watch, bool]:
    """One pass through a model, watched: forward, and, where learning, backward from the sum of
    every output that has a gradient.  -> the watch; whether there was a backward pass.

    Run it on a copy: gradients and running statistics of `model` change.
    """
    args, named = aside((inputs, kwargs))
    with random_state_kept(), torch.set_grad_enabled(learning):
        with Watch(model) as watch:
            output = model(*args, **named)
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        sums = [leaf.sum() for leaf in leaves if leaf.requires_grad and leaf.is_floating_point()]
        if sums:
            torch.stack([one.double() for one in sums]).sum().backward()
    return watch, bool(sums)


class _FirstForward:
    """Watches a model's first eager forward, warns of what stayed outside, and takes itself off."""

    def __init__(self) -> None:
        self.watch: Watch | None = None

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            if self.watch is not None:  # Ctrl-C ended a forward, and no hook was told
                self.watch.__exit__(None, None, None)
            frozen = any(not p.requires_grad for p in module.parameters())
            if frozen or not torch.is_grad_enabled():  # gradients are not to be seen in it
                discover_(module, args, kwargs, only_scopes_, strict=False)
            self.watch = Watch(module)
            self.watch.reached(module, args)  # the model itself is past its global hooks
            self.watch.__enter__()

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.watch is None:
            return
        watch, self.watch = self.watch, None
        watch.__exit__(None, None, None)
        forget_watch(module)
        if output is None:
            return  # the forward failed: its own error says so
        conversion = Conversion.of(module)
        assert conversion is not None
        lines = [
            f"{path}: {', '.join(found)} ran in full precision{watch.inside.get(path, '')}"
            for path, found in watch.outside.items()
            if not conversion.is_intended(path)
        ]
        idle = [name for name, instead in watch.never_ran().items() if not instead]
        lines += [f"{name}: converted, but never ran" for name in idle]
        lines += filter(None, [conversion.unmatched(module)])
        if lines:
            if conversion.functional is None:
                lines.append("quantize(..., functional=True) has functions follow the recipe")
            lines.append(str(watch.share))
            warnings.warn(
                "qtrain: outside the recipe in the first forward:\n  " + "\n  ".join(lines),
                stacklevel=_outside_torch(),
            )


def _outside_torch() -> int:
    """The stacklevel, for a warning of its caller, of the first frame that is not torch's."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame, level = frame.f_back, level + 1
    return level


def watch_first_forward(model: nn.Module) -> None:
    """Name, after the model's first forward, every product that ran outside the recipe."""
    first = _FirstForward()
    model.register_forward_pre_hook(first.before, with_kwargs=True)
    model.register_forward_hook(first.after, always_call=True)


def forget_watch(model: nn.Module) -> bool:
    """Take the first-forward watch off a model and its parts, which may be converted by themselves
    (or off its copy, whose hooks are copies too); whether there was one."""
    parts = list(model.modules())
    return any([take_hooks_off(part, lambda one: isinstance(one, _FirstForward)) for part in parts])


def twin(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A copy to run on these inputs: of the model inside any wrapper, without the first-forward
    watch, with the layers of its calls of functions."""
    copy = copied(unwrapped(model))
    if forget_watch(copy):
        discover_(copy, args, kwargs, forget_watch)
    return copy


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a tensor, a tuple (positional) or a mapping (by name)."""
    checks.batch("inputs", inputs)
    if isinstance(inputs, Mapping):
        return (), dict(checks.mapping("inputs", inputs, "a mapping by name"))
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | Tensor):
        return tuple(inputs), {}
    return (inputs,), {}
