"""A model's twin, whose functions' products are converted modules: torch's functions are replaced,
each by one that makes and calls a module, without `qtrain.conversion.functional`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrize import ParametrizationList

from experiments.coverage.twin_functions import Functions
from qtrain import Recipe, quantize


@contextmanager
def recorded() -> Iterator[list[Any]]:
    """The products of functions that run within it, in their order."""
    found: list[Any] = []

    def note(module: nn.Module, args: Any) -> None:
        of = [cls.__name__ for cls in type(module).__mro__]
        called = "QProduct" in of and "functional" in str(module.name).split(".")
        if called and not module.noise_key.is_meta:  # as where calls are looked for
            found.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


class Twin(Functions):
    """`model`, converted with functional=False, and its functions' products as modules.

    recipe   of these
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self._places = list(self._found())
        #: what is within a module of qtrain's, or computes a weight, stays
        self.paused = 0
        self.calls = 0
        self.order: Iterator[Any] | None = None
        self.known: dict[Any, nn.Module] = {}
        for module in model.modules():
            own = any(cls.__module__.startswith("qtrain.") for cls in type(module).__mro__)
            if own or isinstance(module, ParametrizationList):
                module.register_forward_pre_hook(self._pause)
                module.register_forward_hook(self._go_on, always_call=True)

    def _pause(self, *_: Any) -> None:
        self.paused += 1

    def _go_on(self, *_: Any) -> None:
        self.paused -= 1

    def __call__(self, order: list[Any] | None, *args: Any, **kwargs: Any) -> Any:
        """Its forward.  order: the products whose noise and states its modules take; None: each
        call is a new module."""
        self.order, self.calls = None if order is None else iter(order), 0
        with self._replaced():
            output = self.model(*args, **kwargs)
        if self.order is not None and (more := list(self.order)):
            raise ValueError(f"the twin makes no call for {[product.name for product in more]}")
        return output

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, name, function, run in self._places:
                stack.enter_context(patch.object(place, name, self._twin(function, run)))
            yield

    def _found(self) -> Iterator[tuple[Any, str, Any, Callable[..., Any]]]:
        """Where these functions are, in torch's namespaces and in those that import them."""
        own = {id(function): (function, run) for function, run in self._functions().items()}
        for module in list(sys.modules.values()):
            path = getattr(module, "__name__", None) or ""
            if path in _HOMES or not path.startswith(("torch.", "qtrain", "quantizers")):
                for name, value in list(getattr(module, "__dict__", {}).items()):
                    if id(value) in own:
                        yield module, name, *own[id(value)]
        for name in _METHODS:
            yield Tensor, name, getattr(Tensor, name), self._functions()[getattr(Tensor, name)]

    def _twin(self, function: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [x for arg in (*args, *kwargs.values()) for x in _operands(arg)]
            flows = torch.is_grad_enabled() and any(x.requires_grad for x in given)
            if self.paused or not flows or not all(x.is_floating_point() for x in given[:2]):
                return function(*args, **kwargs)
            self.paused += 1
            try:
                return run(*args, **kwargs)
            finally:
                self.paused -= 1

        return call

    def _made(self, layer: nn.Module, kind: str) -> nn.Module:
        """The converted layer of the next call."""
        self.calls += 1
        layer = quantize(layer, recipe=self.recipe)
        for name, child in list(layer.named_children()) if self.order is not None else ():
            own = next(self.order, None)
            if own is None or not re.search(rf"\bfunctional\.{kind}\d+(\.\w+)?$", own.name):
                raise ValueError(f"call {self.calls} is a {kind}, and {own and own.name!r} ran")
            if own in self.known:
                setattr(layer, name, self.known[own])
            else:
                child.noise_key.copy_(own.noise_key)
                self.known[own] = child
        return layer.train(self.model.training)

    def _weighted(self, layer: nn.Module, kind: str, weight: Tensor, bias: Tensor | None) -> Any:
        layer = self._made(layer, kind)
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                delattr(layer, name)
                setattr(layer, name, value)
        return layer

    def _functions(self) -> dict[Any, Callable[..., Any]]:
        matmul = self.matmul
        found: dict[Any, Callable[..., Any]] = {
            F.linear: self.linear, torch.matmul: matmul, torch.linalg.matmul: matmul,
            torch.mm: matmul, torch.bmm: matmul, torch.addmm: self.addmm,
            torch.baddbmm: self.baddbmm, torch.einsum: self.einsum,
            torch.tensordot: self.tensordot, F.bilinear: self.bilinear,
            F.scaled_dot_product_attention: self.attention,
            Tensor.__rmatmul__: lambda b, a: matmul(a, b),
        }  # fmt: skip
        for space in ("1d", "2d", "3d"):
            found |= {getattr(place, f"conv{space}"): self.conv for place in (F, torch)}
            found[getattr(F, f"conv_transpose{space}")] = self.conv_transpose
        for name in ("matmul", "__matmul__", "mm", "bmm"):
            found[getattr(Tensor, name)] = matmul
        found |= {Tensor.addmm: self.addmm, Tensor.baddbmm: self.baddbmm}
        return found


_HOMES = ("torch", "torch.nn.functional", "torch.linalg")
_METHODS = ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm")


def _operands(arg: Any) -> list[Tensor]:
    every = arg if isinstance(arg, list | tuple) else [arg]
    return [x for x in every if isinstance(x, Tensor)]
