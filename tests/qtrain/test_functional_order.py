"""Calls of functions that are repeated, kept, nested, or another number from forward to forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from network_cases import NETWORKS, Unfused, Window
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from qtrain import quantize

aten = torch.ops.aten
kept = partial(create_selective_checkpoint_contexts, [aten.mm.default, aten.bmm.default])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Blocks(nn.Module):
    """Blocks of functions, and a product of its own, run as they are or through what is given."""

    def __init__(self, run: Callable[..., Tensor] | None = None, nested: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Unfused(8, 2) for _ in range(2))
        self.head = nn.Parameter(torch.randn(8, 8) / 3)
        self.run, self.nested = run or (lambda part, x: part(x)), nested

    def forward(self, x: Tensor) -> Tensor:
        if self.nested:
            return self.run(self.whole, x)
        return self.ended(self.whole(x))

    def whole(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.run(block, x)
        return self.run(self.ended, x)

    def ended(self, x: Tensor) -> Tensor:
        return x @ self.head @ (x.mT @ x).softmax(-1)


def blocks(*args: Any) -> nn.Module:
    torch.manual_seed(0)
    return quantize(Blocks(*args), seed=3)


def trained(model: nn.Module) -> list[Tensor]:
    """Outputs of two steps, and what is left behind."""
    found = []
    for step in range(2):
        torch.manual_seed(step)  # of dropout
        model.zero_grad()
        x = draw(2, 5, 8, seed=step).requires_grad_()
        output = model(x)
        output.backward(draw(*output.shape, seed=9))
        assert x.grad is not None
        found += [output.detach(), x.grad]
    return [*found, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


WAYS: dict[str, dict[str, Any]] = {
    "non-reentrant": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
    "selective": {"use_reentrant": False, "context_fn": kept},
}


@pytest.mark.cases(6, 1)
@pytest.mark.filterwarnings("ignore:None of the inputs:UserWarning")  # of the inner of two
@pytest.mark.parametrize("nested", [False, True], ids=["in turn", "nested"])
@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_of_modules_and_functions_change_no_bit(way: str, nested: bool) -> None:
    run = partial(checkpoint, **WAYS[way])
    for own, other in zip(trained(blocks(None, nested)), trained(blocks(run, nested)), strict=True):
        assert torch.equal(own, other)


def test_a_checkpoint_around_the_model_changes_no_bit() -> None:
    for settings in WAYS.values():
        model = blocks()
        run = partial(checkpoint, model, **settings)
        own, first = trained(blocks()), draw(2, 5, 8).requires_grad_()
        torch.manual_seed(0)
        output = run(first)
        output.backward(draw(*output.shape, seed=9))
        assert torch.equal(output, own[0]) and first.grad is not None
        assert torch.equal(first.grad, own[1])


def test_several_forwards_before_a_backward_are_as_one_by_one() -> None:
    torch.manual_seed(0)
    together, apart = quantize(Window(), seed=3), quantize(Window(), seed=3)
    apart.load_state_dict(together.state_dict())
    inputs = [draw(2, 4, 4, 8, seed=seed) for seed in range(2)]
    outputs = [together(x) for x in inputs]
    torch.autograd.backward(outputs, [draw(8, seed=9)] * 2)
    for x, output in zip(inputs, outputs, strict=True):
        own = apart(x)
        assert torch.equal(own, output)
        own.backward(draw(8, seed=9))
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)
    for b, c in zip(together.buffers(), apart.buffers(), strict=True):
        assert torch.equal(b, c)


def test_a_loop_of_another_length_has_the_layers_that_it_needs() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(draw(8, 8) / 3)

        def forward(self, x: Tensor, count: int) -> Tensor:
            for _ in range(count):
                x = torch.tanh(x @ self.weight)
            return x

    model, x = quantize(Loop()), draw(3, 8)
    for count in (3, 5, 2):
        model(x, count).sum().backward()
    counts = {
        name: int(count) for name, count in model.state_dict().items() if "noise_count" in name
    }
    assert counts == {
        f"functional.linear{i}.product.noise_count": runs for i, runs in enumerate([3, 3, 2, 1, 1])
    }


def test_calls_of_a_submodule_are_the_same_in_any_model_around() -> None:
    """Nested in another, or shared by two."""
    network, inputs, _ = NETWORKS["Swin's windows"]
    torch.manual_seed(0)
    inner, x = network(), inputs["x"]()
    outer = nn.Sequential(nn.Sequential(inner, nn.Linear(8, 8)), nn.Linear(8, 3))
    model = quantize(outer, bits=8)
    whole, alone = model(x), model[0][0](x)  # type: ignore[index,operator]
    assert whole.shape == (3,)
    names = [name for name, _ in model.named_modules() if "functional" in name.split(".")]
    assert {name.split(".")[:2] == ["0", "0"] for name in names} == {True}
    assert torch.equal(model[0][1](alone), model[0](x))  # type: ignore[index,operator]
