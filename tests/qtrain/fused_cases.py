"""What the tests of fused norms share: inputs, converted models, and steps of two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import Recipe, quantize
from qtrain.conversion.watch import forget_watch
from qtrain.layers import fused
from quantizers import FloatFormat

Run = Callable[[Any, Tensor], Tensor]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def images(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return gaussian(4, 3, 7, 5, seed=seed, dtype=dtype).to(memory_format=torch.channels_last)


def kept(recipe: Recipe, activation: FloatFormat, narrow: bool = True) -> Recipe:
    return replace(recipe, activation=activation, narrow=narrow)


def prepared(model: nn.Module) -> nn.Module:
    """The model with channels-last weights, its norms away from 1 and 0."""
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(-0.5, 1.5)  # negative ones turn smallest into largest
                module.bias.uniform_(-0.5, 0.5)
    return model


def converted(model: nn.Module, recipe: Recipe | None, norm: Any) -> nn.Module:
    """The model prepared and quantized, its first forward unwatched."""
    model = prepared(model)
    if recipe is not None:
        model = quantize(model, recipe=recipe, norm=norm)
        forget_watch(model)
    return model


def count_passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often, from now on, each function does more than call the modules."""
    counts: Counter[str] = Counter()
    inner, add = fused._norm_relu, fused._AddRelu.apply

    def counted(*args: Any, deferred: bool) -> Tensor | None:
        found = inner(*args, deferred=deferred)
        if found is not None:
            counts["layer" if deferred else "relu"] += 1
        return found

    def added(*args: Any) -> Any:
        counts["add"] += 1
        return add(*args)

    monkeypatch.setattr(fused, "_norm_relu", counted)
    monkeypatch.setattr(fused._AddRelu, "apply", added)
    return counts


def step(model: Any, x: Tensor, run: Run | None = None) -> list[Tensor]:
    """Output and every gradient of one forward and backward; gradients of parameters accumulate."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = model(x) if run is None else run(model, x)
    output.backward(gaussian(*output.shape, seed=9, dtype=output.dtype))
    assert x.grad is not None
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    return [output.detach().clone(), x.grad, *(g.clone() for g in grads)]


def assert_same_training(
    model: Any,
    other: Any,
    x: Callable[[int], Tensor] = images,
    run: Run | None = None,
    steps: int = 3,
) -> None:
    """Training steps of both: outputs, gradients, every parameter and buffer (running statistics,
    ranges, noise counters)."""
    optimizers = []
    for m in (model, other):
        trained = [p for p in m.parameters() if p.requires_grad]
        optimizers.append(torch.optim.SGD(trained, lr=0.05, momentum=0.9) if trained else None)
    for seed in range(steps):
        found = step(model, x(seed), run)
        want = step(other, x(seed), run)
        assert len(found) == len(want)
        for i, (a, b) in enumerate(zip(found, want, strict=True)):
            assert a.dtype == b.dtype and torch.equal(a, b), (seed, i)
        for optimizer in optimizers:
            if optimizer is not None and seed != 1:  # once gradients accumulate
                optimizer.step()
                optimizer.zero_grad()
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, t in states[0].items():
        assert torch.equal(t, states[1][name]), name


def record(module: nn.Module, kind: str) -> list[Tensor]:
    """The tensors that a hook of this kind, or a forward put on the object, sees of the module."""
    seen: list[Tensor] = []
    forward = module.forward

    def hook(*values: Any) -> None:
        flat = torch.utils._pytree.tree_leaves(values[1:])
        seen.extend(t.detach().clone() for t in flat if isinstance(t, Tensor))

    def replaced(*args: Any) -> Any:
        output = forward(*args)
        hook(module, args, output)
        return output

    if kind == "replaced":
        module.forward = replaced  # type: ignore[method-assign]
    else:
        getattr(module, f"register_{kind}_hook")(hook)
    return seen
