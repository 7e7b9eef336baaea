"""Ranges from tensors before, in every slot of a layer: training, evaluation, resume, reruns."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_cases import DELAYED, HINDSIGHT, convnet, normal
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Monitor,
    Recipe,
    hadamard,
    load_recipe,
    quantize,
    save_recipe,
    set_recipe,
)
from quantizers import Quantizer, e4m3, history

RECIPES = {"delayed": DELAYED, "in hindsight": HINDSIGHT}
GRADIENTS = ("grad_input_grad_output", "grad_weight_grad_output")


def mlp() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, optimizer: Any, steps: range, rerun: bool | None = None) -> None:
    """rerun: whether activation checkpointing is the reentrant one; None: there is none."""
    for step in steps:
        x = (normal(12, 8, seed=step) * 2.0 ** (step % 4)).requires_grad_()
        target = torch.arange(12) % 4
        optimizer.zero_grad()
        y = model(x) if rerun is None else checkpoint(model, x, use_reentrant=rerun)
        F.cross_entropy(y, target).backward()
        optimizer.step()


def started(recipe: Recipe) -> tuple[nn.Module, Any]:
    model = quantize(mlp(), recipe=recipe)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def equal(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    wrong = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert not wrong


@pytest.mark.parametrize("name", RECIPES)
def test_training_resumes_in_the_middle_of_a_window(name: str) -> None:
    model, optimizer = started(RECIPES[name])
    train(model, optimizer, range(7))
    first, own = started(RECIPES[name])
    train(first, own, range(4))
    file = io.BytesIO()
    torch.save((first.state_dict(), own.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, last = started(RECIPES[name])
    resumed.load_state_dict(saved[0])
    last.load_state_dict(saved[1])
    train(resumed, last, range(4, 7))
    equal(model, resumed)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_recomputation_pushes_once(name: str, reentrant: bool) -> None:
    (model, optimizer), (again, other) = started(RECIPES[name]), started(RECIPES[name])
    train(model, optimizer, range(5))
    train(again, other, range(5), rerun=reentrant)
    mine = {n: v for n, v in model.state_dict().items() if n.startswith("0.product")}
    assert {int(v) for n, v in mine.items() if n.endswith("_steps")} == {5}
    for own, value in again.state_dict().items():
        if "1." not in own[:2]:  # torch's batch statistics move twice, of a plain model too
            assert torch.equal(value, model.state_dict()[own]), own


@pytest.mark.parametrize("name", RECIPES)
def test_a_gradients_range_is_that_of_the_backward_passes_before(name: str) -> None:
    model = quantize(nn.Sequential(nn.Linear(8, 4)), recipe=RECIPES[name])
    seen = []
    for step in range(3):
        x, grad = normal(5, 8, seed=step).requires_grad_(), normal(5, 4, seed=9 + step) * 3**step
        model(x).backward(grad)
        seen.append(grad.abs().amax())
        state = model.state_dict()
        for slot in GRADIENTS:
            prefix = f"0.product.{slot}_"
            assert state[prefix + "steps"] == step + 1
            if name == "delayed" and slot.startswith("grad_weight"):
                ends = torch.maximum(state[prefix + "highs"], -state[prefix + "lows"]).flatten()
                kept = min(step + 1, len(ends))
                assert torch.equal(ends[:kept], torch.stack(seen[::-1][:kept]))
    # what its first backward pass finds is far below what the last leaves in use
    q = model[0].product.recipe.grad_weight.grad_output
    held = {n: state[f"0.product.grad_weight_grad_output_{n}"] for n in q.range.memory}
    q = q(normal(5, 4), state=held, training=False, key=torch.zeros((), dtype=torch.int64))
    assert q.scale > 1.5 * seen[0] / q.format.largest


@pytest.mark.parametrize("name", RECIPES)
def test_evaluation_uses_the_last_range_and_leaves_it(name: str) -> None:
    model, optimizer = started(RECIPES[name])
    train(model, optimizer, range(3))
    model.eval()
    before = copy.deepcopy(model)
    with torch.no_grad():
        big = model(1e4 * normal(6, 8))
    assert big.abs().max() < 1e3  # clipped
    small = model(normal(6, 8).requires_grad_())
    small.sum().backward()
    changed = {n for n, v in before.state_dict().items() if not torch.equal(v, _at(model, n))}
    assert all(name.endswith("noise_count") for name in changed)


def _at(model: nn.Module, name: str) -> Tensor:
    value: Tensor = model.state_dict()[name]
    return value


@pytest.mark.parametrize("name", RECIPES)
def test_a_burst_is_counted_as_clipped(name: str) -> None:
    model, optimizer = started(RECIPES[name])
    train(model, optimizer, range(2))
    clipped = []
    with Monitor(model, every=1, layers=None) as monitor:
        for size in (1.0, 1000.0, 1000.0):
            optimizer.zero_grad()
            model(size * normal(12, 8, seed=5)).square().mean().backward()
            optimizer.step()
            row = next(r for r in monitor.report().rows if (r.layer, r.role) == ("0", "input"))
            clipped.append(row.clipped)
    assert clipped[0] < 0.1 and clipped[1] > 0.9
    assert clipped[2] == 0 or name == "in hindsight"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_a_file_and_stays_through_a_switch(
    name: str, tmp_path: Path
) -> None:
    recipe = RECIPES[name]
    path = save_recipe(recipe, tmp_path / "a.yaml")
    found = load_recipe(path)
    assert found == recipe and repr(found) == repr(recipe)
    text = path.read_text()
    assert ("History" in text and "window: 4" in text) or "use: previous" in text
    model, optimizer = started(recipe)
    train(model, optimizer, range(2))
    kept = {n: v.clone() for n, v in model.state_dict().items()}
    set_recipe(model, found)
    assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, raised as it compiles
@pytest.mark.parametrize("name", RECIPES)
def test_a_compiled_step_moves_the_ranges_as_an_eager_one(name: str) -> None:
    model = quantize(nn.Sequential(nn.Linear(8, 4)), recipe=RECIPES[name])
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for step in range(3):
        x = normal(6, 8, seed=step) * (1 + step)
        for one in (model, compiled):
            one(x).square().sum().backward()
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_convolutions_and_their_channels(name: str) -> None:
    """A scale an output channel, of images, in training and in another layout."""
    model = quantize(convnet(), recipe=RECIPES[name])
    for step in range(3):
        model(normal(4, 3, 8, 8, seed=step)).square().mean().backward()
    state = model.state_dict()
    assert state["0.product.forward_weight_low"].numel() == 8
    assert (state["0.product.forward_weight_high"] > 0).all()
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("source", ["input", "forward"])
@pytest.mark.parametrize("rerun", [None, False, True])
def test_operands_that_are_quantized_in_the_backward_pass_move_there(
    source: Any, rerun: bool | None
) -> None:
    """As a product's transform has them; their ranges are no part of what is recomputed."""
    delayed = Quantizer(format=e4m3, range=history(4))
    recipe = Recipe(
        name="rotated",
        forward=Forward(input=delayed, weight=delayed),
        grad_input=GradInput(grad_output=delayed),
        grad_weight=GradWeight(
            grad_output=delayed, input=delayed, source=source, transform=hadamard(4)
        ),
    )
    model, optimizer = started(recipe)
    train(model, optimizer, range(4), rerun)
    counts = {n: int(v) for n, v in model.state_dict().items() if n.endswith("_steps")}
    assert len(counts) == 10 and set(counts.values()) == {4}
