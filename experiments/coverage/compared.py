"""Steps of a model's conversion and of its twin, compared bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from experiments.coverage.twins import Twin, recorded
from qtrain import Recipe, quantize


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
