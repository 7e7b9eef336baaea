"""The mode under which a module's forward runs: its calls of functions that multiply become calls
of layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils.checkpoint import checkpoint

from ...autograd.own_functions import in_function
from ...autograd.recomputation import in_first_pass, is_running, repeat_within
from .functions import FUNCTIONS
from .naming import counted, kind_of, repeated
from .sites import Sites
from .traced import has_stacks, traced_layer, traced_slice, traced_takes
from .tracing import written


class Calls(TorchFunctionMode):
    """The calls in one forward of a module.

    frame        the Python frame that the forward runs in
    learning     whether gradients are recorded where the forward, or one around it, begins
    transformed  whether the forward runs within one of torch.func's transforms, which layers
                 refuse; calls in one that it begins itself are left
    """

    def __init__(self, sites: Sites, module: nn.Module | None = None, frame: Any = None) -> None:
        super().__init__()
        self.sites, self.module, self.frame = sites, module, frame
        self.learning = True
        self.transformed = torch._C._are_functorch_transforms_active()
        self.restart()

    def restart(self) -> None:
        """Before the first call."""
        self.calls: dict[str, int] = {}
        self.layers: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        read = FUNCTIONS.get(func)
        if read is None:
            if torch.compiler.is_compiling():
                return self._other(func, args, kwargs)
            return func(*args, **kwargs)
        follows = self._follows(read.__name__, args, kwargs)
        if follows is None and not torch.compiler.is_compiling():
            with self.sites.set_aside("constant"):
                return func(*args, **kwargs)
        if not follows:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return read(_Call(self, func, args, kwargs), *args, **kwargs)

    def _follows(self, function: str, args: Any, kwargs: dict[str, Any]) -> bool | None:
        """Whether the next call of a function follows the recipe; None: no gradient flows."""
        compiling = torch.compiler.is_compiling()
        if not compiling:
            if not is_running(self.frame):  # Ctrl-C ended it, and no hook was told
                return False
            if torch._C._are_functorch_transforms_active() and not self.transformed:
                return False
            repeat_within(self.frame, self._again)
        operands = _tensors(args, kwargs)
        held = self._slice(operands)
        call = f"{function}_{held}" if held else written(counted, self.calls, function)
        if not all([_is_dense(x) for x in operands[:2]]):
            return False
        graded = torch.is_grad_enabled()
        flows = graded and any([x.requires_grad for x in operands])
        if compiling:
            return traced_takes(self.sites.number, call, flows, not self.learning) or None
        if not graded and in_function(self.frame):
            self.sites.takes(call, False, False)  # so too where the compiler asks
            return False
        hidden = self.transformed or (not graded and (in_first_pass() or in_function()))
        unknown = hidden or not self.learning
        return self.sites.takes(call, flows, unknown) or None

    def _slice(self, operands: Sequence[Tensor]) -> str:
        """What `Stacks.slice` calls the first of these that a parameter of the module stacks."""
        compiling = torch.compiler.is_compiling()
        for x in operands:
            if not compiling:
                assert self.module is not None
                found = self.sites.slice(self.module, x)
            elif has_stacks(self.sites.number):
                found = traced_slice(self.sites.number, x)
            else:
                return ""
            if found:
                return found
        return ""

    def layer(self, kind: str, sizes: tuple[int, ...], operands: Sequence[Tensor]) -> Any:
        """The layer of the next product of a kind, or None where it is left or off."""
        name = f"{kind}_{self._slice(operands)}"
        if kind_of(name) == kind:
            name = written(repeated, self.layers, name)
        else:
            name = written(counted, self.layers, kind)
        if torch.compiler.is_compiling():
            traced_layer(self.sites.number, name, kind, sizes)
            found = getattr(self.sites.box, name)
        else:
            assert self.module is not None
            found = self.sites.layer(self.module, name, kind, sizes)
        return None if found is None or _is_off(found) else found

    def _other(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the compiler must not trace as it is."""
        if func is Tensor.unflatten:
            return torch.unflatten(*args, **kwargs)  # the method's own body is not to be traced
        if func is checkpoint:
            return func(self._around(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function run in this scope."""

        def run(*args: Any, **kwargs: Any) -> Any:
            written(_push_mode, self)
            found = function(*args, **kwargs)
            written(_pop_mode)
            return found

        return run

    def _again(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointed segment's function, run again in a scope as at its first call."""
        calls, layers = dict(self.calls), dict(self.layers)
        sites, module, learning = self.sites, self.module, self.learning

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            mode = Calls(sites, module, sys._getframe())
            mode.calls, mode.layers, mode.learning = dict(calls), dict(layers), learning
            with mode:
                return function(*args, **kwargs)

        return run


class _Call:
    """One call, as `functions.Calling`."""

    def __init__(self, calls: Calls, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.calls, self.func, self.args, self.kwargs = calls, func, args, kwargs
        self.is_left = False

    def plain(self) -> Any:
        if torch.compiler.is_compiling() or not self.is_left:
            return self.func(*self.args, **self.kwargs)
        with self.calls.sites.set_aside("left"):
            return self.func(*self.args, **self.kwargs)

    def layer(self, kind: str, sizes: tuple[int, ...] = (), *operands: Tensor) -> Any:
        found = self.calls.layer(kind, sizes, operands)
        self.is_left = found is None
        return found

    def left(self, function: Callable[..., Any], *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args)
        with self.calls.sites.set_aside("left"):
            return function(*args)


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """All among the arguments, in order; of an einsum's list too."""
    found = []
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += [x for x in arg if isinstance(x, Tensor)]
    return found


def _is_dense(x: Tensor) -> bool:
    return x.is_floating_point() and x.layout is torch.strided and not x.is_nested


def _is_off(layer: nn.Module) -> bool:
    """Whether a recipe that came later leaves it to torch."""
    return all([product.recipe.products_off for product in layer.children()])  # type: ignore[union-attr]
