"""Which forwards move the noise, and what activation checkpointing repeats."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import qtrain
from qtrain import Forward, GradInput, GradWeight, Recipe, quantize, recipes
from qtrain.norms import deviations
from qtrain.norms.recipe import NormRecipe
from quantizers import IntFormat, Quantizer, RangeRule, absmax, e4m3, ema, int8, minmax, stochastic

aten = torch.ops.aten
PRODUCTS = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default]

FP8 = Quantizer(format=e4m3)
RECIPES: dict[str, Any] = {
    "int8": "int8",
    "bf16": "bf16",
    "fp16": "fp16",
    "banner2018": "banner2018",
    "fp8": replace(
        recipes.fp32(),
        name="fp8",
        forward=qtrain.Forward(input=FP8, weight=FP8),
        grad_input=qtrain.GradInput(grad_output=FP8),
        grad_weight=qtrain.GradWeight(grad_output=FP8),
    ),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8))


def images() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


def noisy(bits: int = 4) -> qtrain.Recipe:
    """Stochastic gradients in few bits: two draws differ."""
    draw = Quantizer(format=IntFormat(bits), rounding=stochastic())
    return replace(
        recipes.int8(),
        name="noisy",
        grad_input=qtrain.GradInput(grad_output=draw),
        grad_weight=qtrain.GradWeight(grad_output=draw),
        norm=NormRecipe(deviation=deviations.get("l1"), grad_output=draw),
    )


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)  # type: ignore[no-any-return]


def reentrant(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=True)  # type: ignore[no-any-return]


def kept(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)  # type: ignore[no-any-return]


WAYS = {"plain": plain, "reentrant": reentrant, "non-reentrant": kept}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("mode", ["training", "evaluation", "one layer in evaluation"])
def test_noise_moves_with_every_forward_that_a_gradient_flows_through(
    mode: str, frozen: bool, way: str
) -> None:
    model = quantize(images(), recipe=noisy(), norm="l1").train(mode != "evaluation")
    if mode.startswith("one"):
        model[3].eval()
    model[1].eval()  # a norm of fixed statistics, the common way to fine-tune
    model.requires_grad_(not frozen)
    x = normal(4, 3, 8, 8)
    gradients = []
    for _ in range(8):
        leaf = x.clone().requires_grad_()
        WAYS[way](model, leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert len({g.numpy().tobytes() for g in gradients if g is not None}) == 8
    counts = [
        m.noise_count for m in model.modules() if isinstance(m, qtrain.layer_state.LayerState)
    ]
    assert len(counts) == 3 and all(count == 8 for count in counts)


def test_in_evaluation_the_mean_of_stochastic_gradients_is_the_gradient() -> None:
    draw = Quantizer(format=IntFormat(4), rounding=stochastic())
    own = replace(recipes.fp32(), name="own", grad_input=qtrain.GradInput(grad_output=draw))
    model, x = quantize(nn.Sequential(nn.Linear(24, 16)), recipe=own).eval(), normal(2, 24)
    target, mean = normal(2, 16), torch.zeros(2, 24)
    for _ in range(400):
        leaf = x.clone().requires_grad_()
        model(leaf).backward(target)
        assert leaf.grad is not None
        mean += leaf.grad / 400
    exact = target @ model[0].weight.detach()
    step = target.abs().max() / 7 * model[0].weight.norm(dim=0).max()
    assert (mean - exact).abs().max() < 6 * step / 2 / 400**0.5


@pytest.mark.parametrize("way", ["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("norm", [None, "l1"])
def test_evaluation_without_gradients_changes_no_state(norm: str | None, way: str) -> None:
    model = quantize(images(), recipe=noisy(), norm=norm)
    model(normal(4, 3, 8, 8)).sum().backward()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        WAYS[way](model, normal(4, 3, 8, 8).requires_grad_())
    model.requires_grad_(False)
    if way != "reentrant":  # which warns that no input asks for a gradient
        WAYS[way](model, normal(4, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("way", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("forwards", [1, 2])
def test_recomputation_repeats_the_noise_of_evaluation(forwards: int, way: str) -> None:
    model = quantize(images(), recipe=noisy(), norm="l1").eval()
    twin = copy.deepcopy(model)
    found = []
    for own, how in ((model, plain), (twin, WAYS[way])):
        leaves = [normal(4, 3, 8, 8, seed=i).requires_grad_() for i in range(forwards)]
        sum(how(own, leaf).square().sum() for leaf in leaves).backward()
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(
        torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items()
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2 axes": (rows, (8, 24)),
    "3 axes": (rows, (2, 8, 24)),
    "images": (images, (2, 3, 8, 8)),
    "attention": (Attention, (2, 8, 24)),
}
POLICIES: dict[str, Any] = {
    "products": PRODUCTS,
    "everything": lambda context, op, *args, **kwargs: CheckpointPolicy.MUST_SAVE,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_selective_checkpointing_changes_no_bit(case: str, recipe: str, policy: str) -> None:
    make, shape = CASES[case]
    model = quantize(make(), recipe=RECIPES[recipe], norm=None if case == "attention" else "range")
    context = partial(create_selective_checkpoint_contexts, POLICIES[policy])
    found = []
    for kept in (False, True):
        own, x = copy.deepcopy(model), normal(*shape).requires_grad_()
        y = checkpoint(own, x, use_reentrant=False, context_fn=context) if kept else own(x)
        y.backward(normal(*y.shape, seed=1))
        ranges = [b for name, b in own.named_buffers() if "product" in name]
        found.append([y.detach(), x.grad, *(p.grad for p in own.parameters()), *ranges])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_selective_checkpointing_keeps_the_products_of_floating_point(case: str) -> None:
    """The policy is honoured: what it names is not computed again."""
    make, shape = CASES[case]
    calls: list[Any] = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if not context.is_recompute:  # before torch 2.12 the recomputation asks again
            calls.append(op)
        return CheckpointPolicy.MUST_SAVE if op in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func in PRODUCTS
            return func(*args, **(kwargs or {}))

    counts = []
    for selective in (False, True):
        model, x = quantize(make(), recipe="bf16"), normal(*shape).requires_grad_()
        context = {"context_fn": partial(create_selective_checkpoint_contexts, policy)}
        y = checkpoint(model, x, use_reentrant=False, **(context if selective else {}))
        with Counter() as counter:
            y.sum().backward()
        counts.append(counter.count)
    products = sum(op in PRODUCTS for op in calls)
    assert products >= 2 and counts[0] - counts[1] == products


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, raised as it compiles
@pytest.mark.parametrize("selective", [False, True])
def test_compiled_checkpointing_without_noise_is_the_eager_one(selective: bool) -> None:
    model, x = quantize(rows(), recipe="bf16"), normal(8, 24)
    context = {"context_fn": partial(create_selective_checkpoint_contexts, PRODUCTS)}
    found = []
    for compiled in (False, True):
        own, leaf = copy.deepcopy(model), x.clone().requires_grad_()

        def forward(x: Tensor, own: nn.Module = own) -> Tensor:
            y = checkpoint(own, x, use_reentrant=False, **(context if selective else {}))
            return y  # type: ignore[no-any-return]

        backend = "inductor" if selective else "aot_eager"
        run = torch.compile(forward, fullgraph=True, backend=backend) if compiled else forward
        run(leaf).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def _ranged() -> Recipe:
    """Every operand in a range with memory."""
    running = Quantizer(format=int8, range=ema(minmax))
    gradient = Quantizer(format=int8, range=ema(absmax), rounding=stochastic())
    return Recipe(
        name="ranged",
        forward=Forward(input=running, weight=running),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient, input=running),
        norm=NormRecipe(input=running, deviation=deviations.l1()),
    )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_recomputation_begins_with_the_ranges_of_the_forward_it_repeats(
    reentrant: bool, times: int
) -> None:
    """Also where the layers run twice, in a segment or before a backward pass; the ranges of
    gradients move on."""
    model = quantize(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), recipe=_ranged())
    found = []
    for kept in (False, True):
        own, x = copy.deepcopy(model), normal(16, 8).requires_grad_()

        def run(x: Tensor, own: nn.Module = own) -> Tensor:
            for _ in range(times):
                x = own(x)
            return x

        for step in range(3):
            scaled = x * 4.0**step
            again = checkpoint(run, scaled, use_reentrant=reentrant) if kept else run(scaled)
            other = checkpoint(run, x, use_reentrant=reentrant) if kept else run(x)
            again.square().sum().backward()
            other.sum().backward()
        states = [value for name, value in own.named_buffers() if "noise" not in name]
        found.append([x.grad, *(p.grad for p in own.parameters()), *states])
    assert len(found[0]) > 20
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def _stopped_early(layer: nn.Module, inner: bool) -> Callable[[Tensor], Tensor]:
    """A segment whose recomputation torch ends before its last call of the layer."""

    def segment(x: Tensor) -> Tensor:
        y = layer(x)
        with torch.no_grad():
            still = layer(x)
        return y - still

    def nested(x: Tensor) -> Tensor:
        return checkpoint(layer, layer(x), use_reentrant=False)  # type: ignore[no-any-return]

    return nested if inner else segment


@pytest.mark.parametrize("rule", [absmax, ema(absmax)], ids=["noise", "noise and ranges"])
@pytest.mark.parametrize("inner", [False, True])
def test_every_backward_pass_repeats_the_same_forward(inner: bool, rule: RangeRule) -> None:
    coarse = Quantizer(format=IntFormat(4), rounding=stochastic())
    ranged = replace(coarse, range=rule)
    recipe = Recipe(
        name="coarse",
        forward=Forward(input=ranged, weight=ranged),
        grad_input=GradInput(grad_output=coarse),
        grad_weight=GradWeight(grad_output=coarse),
    )
    model = quantize(nn.Sequential(nn.Linear(16, 16)), recipe=recipe)
    model(normal(4, 16, seed=1) * 2)
    found = []
    for kept in (False, True):
        own, x = copy.deepcopy(model), normal(4, 16).requires_grad_()
        segment = _stopped_early(own, inner)
        y = checkpoint(segment, x, use_reentrant=False) if kept else segment(x)
        for _ in range(3):
            wanted = [x, *own.parameters()]
            found.append(torch.autograd.grad(y.sum(), wanted, retain_graph=True))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)
