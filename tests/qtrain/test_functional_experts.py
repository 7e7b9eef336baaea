"""Mixtures of experts: grouped products, and loops over the experts that tokens chose."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import quantize, summary
from qtrain.conversion.functional.naming import kind_of
from qtrain.products.module import products_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Grouped(nn.Module):
    """Three experts, each of so many rows; what lies behind them is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(3, 4, 8, seed=1))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return F.grouped_mm(x, self.weight.mT, offs=ends)


@pytest.mark.parametrize("lengths", [(2, 0, 3), (0, 0, 0), (8, 0, 0), (1, 4, 2)])
def test_a_grouped_product_is_each_groups(lengths: Sequence[int]) -> None:
    """With nothing quantized but the products' routes, on integers: exact."""
    model = quantize(Grouped(), recipe="bf16")
    model.weight.data.round_()  # type: ignore[union-attr, operator]
    ends = torch.tensor(lengths).cumsum(0).to(torch.int32)
    x = (4 * draw(8, 8)).round().requires_grad_()
    output = model(x, ends)
    again = x.detach().clone().requires_grad_()
    weight = model.weight.detach().clone().requires_grad_()  # type: ignore[union-attr, operator]
    parts = again[: int(ends[-1])].split(list(lengths))
    expected = torch.cat([part @ weight[e].t() for e, part in enumerate(parts)])
    assert torch.equal(output, F.pad(expected, (0, 0, 0, 8 - len(expected))))
    grad = (2 * draw(8, 4, seed=2)).round()
    output.backward(grad)
    expected.backward(grad[: len(expected)])
    assert torch.equal(x.grad, again.grad)  # type: ignore[arg-type]
    assert torch.equal(model.weight.grad, weight.grad)  # type: ignore[arg-type]
    assert [product.name for product in products_of(model)] == ["functional.matmul0"]


def test_a_grouped_products_groups_are_taken_alike_where_nobody_knows_them() -> None:
    model = quantize(Grouped()).to("meta")
    x, ends = torch.empty(8, 8, device="meta"), torch.empty(3, dtype=torch.int32, device="meta")
    shown = summary(model, x, ends)
    assert shown.share is not None and shown.share.value == 1
    assert shown.share.simulated == 3 * 3 * 4 * 8  # 2, 3 and 3 rows, padded to 3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_grouped_product_is_torchs() -> None:
    torch._dynamo.reset()
    plain = Grouped().bfloat16()
    plain.weight = nn.Parameter(draw(3, 8, 8).bfloat16())
    x, ends = draw(8, 8).bfloat16(), torch.tensor([2, 2, 8], dtype=torch.int32)
    model = quantize(plain, example_inputs=(x, ends))
    assert [product.name for product in products_of(model)] == ["functional.matmul0"]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, ends), plain(x, ends))


class Loop(nn.Module):
    """Experts by a loop over those that were chosen, as transformers' eager ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.up = nn.Parameter(draw(4, 6, 8, seed=1) / 3)
        self.down = nn.Parameter(draw(4, 6, 8, seed=2) / 3)
        self.head = nn.Parameter(draw(8, 8, seed=3) / 3)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        found = torch.zeros_like(x)
        for expert in chosen.unique():
            rows = torch.where(chosen == expert)[0]
            hidden = F.linear(x[rows], self.inner.up[expert]).relu()  # type: ignore[index]
            found = found.index_add(0, rows, hidden @ self.down[expert])
            if expert == 0:
                found = found.index_add(0, rows, x[rows] @ self.down[expert].t() @ self.down[0])
        return F.linear(found, self.head)


BATCHES = [[0, 2, 2], [1, 3, 1], [3, 0, 2], [2, 1, 0]]


def trained(model: nn.Module, steps: range) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in steps:
        optimizer.zero_grad()
        output = model(draw(3, 8, seed=step + 5), torch.tensor(BATCHES[step]))
        output.square().mean().backward()
        found += [output.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]
        optimizer.step()
    return found


def test_an_experts_layer_is_its_own_whichever_are_chosen() -> None:
    model = quantize(Loop())
    trained(model, range(1))
    names = [product.name for product in products_of(model)]
    assert names[:8] == [
        *(f"functional.linear_inner_up_{i}" for i in range(4)),
        *(f"functional.linear_down_{i}" for i in range(4)),
    ]
    assert names[8:] == [
        *(f"functional.linear_down_{i}_again1" for i in range(4)),
        *(f"functional.linear_down_{i}_again2" for i in range(4)), "functional.linear0",
    ]  # fmt: skip
    trained(model, range(1, 3))
    assert [product.name for product in products_of(model)] == names
    counts = {p.name: int(p.noise_count) for p in products_of(model)}
    for i, count in enumerate((2, 1, 2, 2)):  # of three batches, those that chose it
        assert counts[f"functional.linear_inner_up_{i}"] == count
    shown = summary(model, draw(3, 8), torch.tensor([1, 1, 1]))
    assert not shown.never_ran and shown.outside == {}


class Filters(nn.Module):
    """Experts that convolve."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(draw(3, 4, 2, 3, seed=1))
        self.down = nn.Parameter(draw(3, 4, 2, 3, seed=2))

    def forward(self, x: Tensor, chosen: int) -> Tensor:
        return F.conv_transpose1d(F.conv1d(x, self.up[chosen]), self.down[chosen])


def test_an_expert_that_convolves_has_a_layer_of_its_own() -> None:
    model = quantize(Filters())
    for step, chosen in enumerate((2, 0, 2)):
        model(draw(1, 2, 9, seed=step), chosen)
    counts = {p.name: int(p.noise_count) for p in products_of(model)}
    assert counts == {
        f"functional.{kind}_{i}": count
        for kind in ("conv_up", "conv_transpose_down")
        for i, count in enumerate((1, 0, 2))
    }


def test_experts_ranges_are_kept_apart() -> None:
    """Running ranges are those of a model in which each expert is a module."""
    model = quantize(Loop(), recipe="int8")
    optimized = copy.deepcopy(model)
    for step in range(3):
        x = draw(3, 8, seed=step)
        optimized(x * 100, torch.tensor([3, 3, 3]))
        for one in (model, optimized):
            one(x, torch.tensor([0, 2, 2]))
    own, other = model.state_dict(), optimized.state_dict()
    mine = [key for key in own if "up_0" in key or "up_2" in key]
    assert any("input" in key for key in mine)
    assert all(torch.equal(own[key], other[key]) for key in mine)
    assert any(not torch.equal(own[key], other[key]) for key in own if "up_3" in key)


def test_experts_are_saved_and_resumed_bit_for_bit() -> None:
    model = quantize(Loop())
    trained(model, range(2))
    fresh = quantize(Loop())
    fresh.load_state_dict(model.state_dict())
    assert list(fresh.state_dict()) == list(model.state_dict())
    for own, other in zip(trained(model, range(2, 4)), trained(fresh, range(2, 4)), strict=True):
        assert torch.equal(own, other)
    made = quantize(Loop(), example_inputs=(draw(3, 8), torch.tensor([0, 0, 1])))
    assert list(made.state_dict()) == list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of experts that no token chose
        trained(made, range(1))


LAST = "functional.linear0"
OVERRIDES = {"functional.linear_down_*": None, "functional.linear_inner_up_1": 4}


def test_overrides_and_learned_scales_of_experts() -> None:
    model = quantize(Loop(), overrides=OVERRIDES)
    trained(model, range(3))
    made = {product.name: product.recipe for product in products_of(model)}
    assert list(made) == [*(f"functional.linear_inner_up_{i}" for i in range(4)), LAST]
    assert made["functional.linear_inner_up_1"] != made["functional.linear_inner_up_0"]
    learned = quantize(Loop(), recipe="lsq", example_inputs=(draw(3, 8), torch.tensor([0, 0, 0])))
    trained(learned, range(3))  # the first chose one expert; the others' scales are there


def test_a_name_says_its_kind() -> None:
    assert [kind_of(name) for name in ("linear12", "conv_transpose0", "conv0", "linear_a_1_3")] == [
        "linear", "conv_transpose", "conv", "linear",
    ]  # fmt: skip
    assert kind_of("conv_transpose_w2_3_again1") == "conv_transpose" and not kind_of("linear")
    assert kind_of("conv_transpose_3") == "conv"


def test_two_parameters_of_one_name_and_other_views_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_b = nn.Module(), nn.Module()
            self.a.b_c = nn.Parameter(draw(2, 4, 4))
            self.a_b.c = nn.Parameter(draw(2, 4, 4))
            self.transpose_w = nn.Parameter(draw(2, 4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x, self.a.b_c[1]) + F.linear(x, self.a_b.c[1])  # type: ignore[index]
            x = F.linear(x, self.transpose_w[:, 0, :, 0].mT @ torch.ones(2, 4))
            return F.conv1d(x[..., None], self.transpose_w[1])

    model = quantize(Twice())
    model(draw(3, 4))
    names = [product.name for product in products_of(model)]
    assert names == [
        f"functional.{x}" for x in ("linear0", "linear1", "linear2", "linear3", "conv0")
    ]


class Fixed(nn.Module):
    """A loop over every expert."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 8, 8, seed=1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        for expert in range(2):
            x = F.linear(x, self.weight[expert]) @ self.weight[expert]
        return x


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_experts_have_the_eager_layers() -> None:
    torch._dynamo.reset()
    eager, model = quantize(Fixed(), recipe="bf16"), quantize(Fixed(), recipe="bf16")
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(draw(3, 8)), eager(draw(3, 8)))
    assert list(eager.state_dict()) == list(model.state_dict())
    assert [p.name for p in products_of(model)] == [
        "functional.linear_weight_0", "functional.linear_weight_1",
        "functional.linear_weight_0_again1", "functional.linear_weight_1_again1",
    ]  # fmt: skip
