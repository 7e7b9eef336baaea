"""A model's twin, whose functions' products are converted modules: torch's functions are replaced,
each by one that makes and calls a module, without `qtrain.conversion.functional`."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves

from qtrain import Matmul, Recipe, ScaledDotProductAttention, quantize
from qtrain.copies import random_state_kept
from qtrain.products.module import QProduct


@contextmanager
def recorded() -> Iterator[list[QProduct]]:
    """The products of functions that run within it, in their order."""
    found: list[QProduct] = []

    def note(module: nn.Module, args: Any) -> None:
        called = isinstance(module, QProduct) and "functional" in module.name.split(".")
        if called and not module.noise_key.is_meta:  # as where calls are looked for
            found.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


class Twin:
    """`model`, converted with functional=False, and its functions' products as modules.

    recipe   of these
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self._places = list(self._found())
        #: what is within a module of qtrain's, or computes a weight, stays
        self.paused = 0
        self.calls = 0
        self.order: Iterator[QProduct] | None = None
        self.known: dict[QProduct, nn.Module] = {}
        for module in model.modules():
            own = any(cls.__module__.startswith("qtrain.") for cls in type(module).__mro__)
            if own or isinstance(module, ParametrizationList):
                module.register_forward_pre_hook(self._pause)
                module.register_forward_hook(self._go_on, always_call=True)

    def _pause(self, *_: Any) -> None:
        self.paused += 1

    def _go_on(self, *_: Any) -> None:
        self.paused -= 1

    def __call__(self, order: list[QProduct] | None, *args: Any, **kwargs: Any) -> Any:
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

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        with random_state_kept():  # dropout's
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        return self._weighted(layer, "linear", weight, bias)(x)

    def matmul(self, a: Tensor, b: Tensor) -> Any:
        if b.dim() == 2 and _is_weight(b):
            return self.linear(a, b.t())
        left, right = torch.atleast_2d(a), b if b.dim() > 1 else b[:, None]
        found = self._made(Matmul(), "matmul")(left, right)
        found = found if b.dim() > 1 else found.squeeze(-1)
        return found if a.dim() > 1 else found.squeeze(-1 if b.dim() == 1 else -2)

    def addmm(
        self, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        return self.baddbmm(input, mat1, mat2, beta=beta, alpha=alpha)

    def baddbmm(
        self, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        x, a, b = input, batch1, batch2
        if x.dim() == 1 and b.dim() == 2 and _is_weight(b) and alpha == beta == 1:
            return self.linear(a, b.t(), x)
        found = self.matmul(a, b)
        found = found if alpha == 1 else alpha * found
        return found if beta == 0 else found + (x if beta == 1 else beta * x)

    def tensordot(self, a: Tensor, b: Tensor, dims: Any = 2) -> Any:
        if isinstance(dims, int):
            dims = list(range(a.dim() - dims, a.dim())), list(range(dims))
        first, second = ([x % n.dim() for x in d] for n, d in zip((a, b), dims, strict=True))
        left, right = list("abcdefgh"[: a.dim()]), list("ijklmnop"[: b.dim()])
        for i, j in zip(first, second, strict=True):
            right[j] = left[i]
        kept = [x for x in left if x not in right] + [x for x in right if x not in left]
        return self.einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", a, b)

    def bilinear(self, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        half = self.linear(b, weight.flatten(0, 1)).unflatten(-1, tuple(weight.shape[:2]))
        found = self.matmul(half, a[..., None]).squeeze(-1)
        return found if bias is None else found + bias

    def einsum(self, equation: str, *operands: Any) -> Any:
        """Of operands that have no axis twice, from the left to the right."""
        if len(operands) == 1:
            operands = tuple(operands[0])
        named, _, result = equation.replace(" ", "").partition("->")
        names = named.split(",")
        if "..." in equation or len(operands) < 2 or "->" not in equation:
            raise NotImplementedError(equation)
        first, found = names[0], operands[0]
        for number, (other, b) in enumerate(zip(names[1:], operands[1:], strict=True), 1):
            kept = result if number == len(names) - 1 else "".join(
                x for x in dict.fromkeys(first + other)
                if x in result or x in "".join(names[number + 1 :])
            )  # fmt: skip
            found, first = self._contracted(first, other, kept, found, b), kept
        return found

    def _contracted(self, a: str, b: str, kept: str, x: Tensor, y: Tensor) -> Any:
        summed = [n for n in a if n in b and n not in kept]
        if not summed:
            return torch.einsum(f"{a},{b}->{kept}", x, y)
        size = dict(zip(a + b, x.shape + y.shape, strict=True))
        both = [n for n in a if n in b and n in kept]
        left, right = [n for n in a if n not in b], [n for n in b if n not in a]
        weight = not both and _is_weight(y)
        x = x.permute([a.index(n) for n in both + left + summed])
        y = y.permute([b.index(n) for n in both + summed + right])
        sizes = [math.prod(size[n] for n in part) for part in (both, left, summed, right)]
        x, y = x.reshape(*sizes[:3]), y.reshape(sizes[0], *sizes[2:])
        if weight:
            found = self.linear(x[0], y[0].t())
        else:
            found = self._made(Matmul(), "matmul")(x, y)
        letters = both + left + right
        return found.reshape([size[n] for n in letters]).permute([letters.index(n) for n in kept])

    def attention(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(ScaledDotProductAttention(), "attention")(*args, **kwargs)

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Any:  # fmt: skip
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[weight.dim() - 3]
        with random_state_kept():
            layer = kind(
                weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride,
                padding, dilation, groups, bias is not None,
            )  # fmt: skip
        return self._weighted(layer, "conv", weight, bias)(x)

    def conv_transpose(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Any:  # fmt: skip
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[weight.dim() - 3]
        with random_state_kept():
            layer = kind(
                weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride,
                padding, output_padding, groups, bias is not None, dilation,
            )  # fmt: skip
        return self._weighted(layer, "conv_transpose", weight, bias)(x)

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


def _is_weight(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter)


class Compared(NamedTuple):
    """What differs by name, what is not finite, and how many calls and tensors there were."""

    differ: list[str]
    infinite: list[str]
    calls: int
    tensors: int


def compared(
    model: nn.Module, inputs: Mapping[str, Tensor], *, recipe: Recipe, norm: Any = None,
    asking: bool = False, same_noise: bool = True, count: int = 1,
) -> Compared:  # fmt: skip
    """Some SGD steps of a model's conversion and of its twin's, bit for bit.

    asking      whether inputs in floating point ask for a gradient
    same_noise  whether the twin's modules take the noise of the calls' layers, and keep their state
                from step to step: then a forward in evaluation follows; else each call is anew
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = quantize(model, recipe=recipe, norm=norm)
        twin = Twin(quantize(model, recipe=recipe, norm=norm, functional=False), recipe)
        buffers = dict(own.named_buffers())
        differ, infinite, tensors = [], [], 0
        for step in range(count + same_noise):
            with recorded() as order:
                mine = _step(own, own, inputs, asking, step < count)
            other = partial(twin, order if same_noise else None)
            expected = _step(twin.model, other, inputs, asking, step < count)
            if set(mine) != set(expected):
                raise ValueError(f"only one has {sorted(set(mine) ^ set(expected))[:5]}")
            differ += [f"{step}: {k}" for k, x in mine.items() if not same(x, expected[k])]
            infinite += [
                f"{step}: {name}"
                for name, x in mine.items()
                if not (name in buffers or bool(x.isfinite().all()))  # some models have bounds
            ]
            tensors += len(mine)
        return Compared(differ, infinite, twin.calls, tensors)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN and the signs of zeros included."""
    a, b = (x.detach().contiguous().flatten() for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@contextmanager
def _deterministic() -> Iterator[None]:
    """Of the sums of gradients of what an index takes, which are else in any order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _step(
    model: nn.Module, run: Callable[..., Any], inputs: Mapping[str, Tensor], asking: bool,
    learning: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Outputs, gradients, and weights and buffers after a step of SGD; where not `learning`, the
    outputs in evaluation, of a twin with gradients, which say what they flow through."""
    model.train(learning).zero_grad()
    torch.manual_seed(1)  # of dropout
    given = {
        name: x.clone().requires_grad_(asking and x.is_floating_point())
        for name, x in inputs.items()
    }
    with torch.set_grad_enabled(learning or run is not model):
        leaves = [x for x in tree_leaves(run(**given)) if isinstance(x, Tensor)]
    found = {f"output {i}": x for i, x in enumerate(leaves)}
    if not learning:
        return found
    draw = torch.Generator().manual_seed(2)
    roots = [x for x in leaves if x.requires_grad]
    with _deterministic():
        torch.autograd.backward(roots, [torch.randn(x.shape, generator=draw) for x in roots])
    found |= {f"grad of {name}": x.grad for name, x in given.items() if x.grad is not None}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.grad is not None:
                found[f"grad of {name}"] = p.grad
                p -= 1e-4 * p.grad / p.grad.norm().clamp(min=1e-6)
                found[name] = p.clone()
    found |= {
        name: x.clone() for name, x in model.named_buffers() if "functional" not in name.split(".")
    }
    return found
