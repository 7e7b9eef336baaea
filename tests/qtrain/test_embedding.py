"""nn.Embedding and nn.EmbeddingBag under a recipe's lookup, against torch's own on the quantized
table and scalar loops over the quantized gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import qtrain
from qtrain import Lookup, Monitor, Recipe, Schedule, quantize, recipes, set_recipe, summary
from qtrain.layers.embedding import QEmbedding, QEmbeddingBag
from quantizers import (
    OFF,
    Quantizer,
    QuantizerLike,
    blocks,
    e4m3,
    e5m2,
    ema,
    fold,
    groups,
    int8,
    per_channel,
    stochastic,
)

TENSOR = Quantizer(format=int8)
ROWS = Quantizer(format=int8, granularity=per_channel())
FP8 = Quantizer(format=e4m3)
DRAWN = Quantizer(format=int8, rounding=stochastic())
GRADIENT = Quantizer(format=e5m2, rounding=stochastic())
WEIGHT, GRAD = 1, 4  # places of forward.weight and grad_weight.grad_output in SLOTS


def recipe(weight: QuantizerLike = OFF, grad_output: QuantizerLike = OFF) -> Recipe:
    return Recipe(name="table", lookup=Lookup(weight=weight, grad_output=grad_output))


def ids(rows: int, *shape: int) -> Tensor:
    return torch.randint(rows, shape, generator=torch.Generator().manual_seed(1))


def of_table(layer: Any, count: int) -> Tensor:
    """The table as forward number `count` sees it."""
    key = fold(fold(layer.lookup.noise_key, count), WEIGHT)
    return layer.lookup.recipe.lookup.weight(layer.weight.detach()[None], key=key).dequantize()[0]


def of_gradient(layer: Any, count: int, grad: Tensor) -> Tensor:
    """A gradient as the backward of forward number `count` adds it, on rank 0."""
    key = fold(fold(layer.lookup.noise_key, count), GRAD + 6)
    return layer.lookup.recipe.lookup.grad_output(grad, key=key).dequantize()


@pytest.mark.parametrize("weight", [TENSOR, ROWS, FP8, DRAWN, replace(FP8, granularity=blocks(8)),
                                    replace(ROWS, granularity=blocks(4, 4)),
                                    replace(TENSOR, granularity=groups(8))], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "gradient", [DRAWN, GRADIENT, replace(FP8, granularity=blocks(8))], ids=str
)
def test_an_embedding_is_that_of_the_quantized_table(
    weight: Quantizer, gradient: Quantizer
) -> None:
    layer: Any = quantize(nn.Embedding(11, 16, padding_idx=3), recipe=recipe(weight, gradient))
    assert type(layer) is QEmbedding
    for count in (1, 2):
        layer.zero_grad()
        taken, grad = ids(11, 4, 5), torch.randn(4, 5, 16)
        out = layer(taken)
        assert torch.equal(out, of_table(layer, count)[taken])
        out.backward(grad)
        expected = torch.zeros(11, 16)
        rows = of_gradient(layer, count, grad).flatten(0, 1)
        for row, g in zip(taken.flatten(), rows, strict=True):
            if row != 3:
                expected[row] += g
        assert torch.equal(layer.weight.grad, expected)


def test_a_clipped_weight_gets_no_gradient_and_frequencies_divide_it() -> None:
    clipping = replace(FP8, range=None, straight_through="inclusive")
    plain = nn.Embedding(5, 4, scale_grad_by_freq=True)
    with torch.no_grad():
        plain.weight[1, 2] = 1000.0  # beyond e4m3's 448
    layer: Any = quantize(plain, recipe=recipe(clipping))
    layer(torch.tensor([1, 1, 2])).sum().backward()
    expected = torch.zeros(5, 4)
    expected[1:3] = 1.0
    expected[1, 2] = 0.0
    assert torch.equal(layer.weight.grad, expected)


def test_one_id_and_none_are_looked_up() -> None:
    tiles = replace(DRAWN, granularity=blocks(2, 2))
    layer: Any = quantize(nn.Embedding(5, 4), recipe=recipe(ROWS, tiles))
    one, none = layer(torch.tensor(3)), layer(torch.empty(2, 0, dtype=torch.int64))
    assert torch.equal(one, of_table(layer, 1)[3]) and none.shape == (2, 0, 4)
    (one.square().sum() + none.sum()).backward()
    expected = of_gradient(layer, 1, 2 * one.detach()[None])[0]
    assert torch.equal(layer.weight.grad[3], expected) and int(layer.weight.grad.any(1).sum()) == 1


def test_a_backward_takes_the_range_of_its_own_forward() -> None:
    ranged = Quantizer(format=int8, range=ema(momentum=0.9), straight_through="inclusive")
    layer: Any = quantize(nn.Embedding(2, 2), recipe=recipe(ranged))
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer(torch.tensor([0]))
    with torch.no_grad():
        layer.weight[0, 0] = 9.0
    out = layer(torch.tensor([0]))  # by a range of 8.2
    for _ in range(10):
        layer(torch.tensor([0]))  # by one of 9, in the end
    out.sum().backward()
    assert layer.weight.grad[0].tolist() == [0.0, 1.0]


BAGS: list[tuple[dict[str, Any], bool]] = [
    ({"mode": "sum"}, True), ({"mode": "sum", "include_last_offset": True}, False),
    ({"mode": "mean", "padding_idx": 2, "scale_grad_by_freq": True}, False),
    ({"mode": "max"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("given", "weighted"), BAGS, ids=str)
def test_a_bag_is_that_of_the_quantized_table(given: dict[str, Any], weighted: bool) -> None:
    layer: Any = quantize(nn.EmbeddingBag(9, 8, **given), recipe=recipe(ROWS, DRAWN))
    assert type(layer) is QEmbeddingBag
    taken, offsets = (
        ids(9, 12),
        torch.tensor([0, 5, 5, 12 if "include_last_offset" in given else 9]),
    )
    factors = torch.rand(12) if weighted else None
    table = of_table(layer, 1).requires_grad_()
    own = factors if factors is None else factors.clone().requires_grad_()
    known = None if own is None else own.detach().clone().requires_grad_()
    expected = F.embedding_bag(taken, table, offsets, per_sample_weights=known, **given)
    out = layer(taken, offsets, own)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(of_gradient(layer, 1, grad))
    assert torch.equal(layer.weight.grad, table.grad)  # type: ignore[arg-type]
    if own is not None and known is not None:
        assert torch.equal(own.grad, known.grad)  # type: ignore[arg-type]


def net(**given: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 8, **given), nn.Linear(8, 5))


def mine(weight: QuantizerLike = ROWS, grad_output: QuantizerLike = DRAWN) -> Recipe:
    return replace(recipes.bf16(), lookup=Lookup(weight=weight, grad_output=grad_output))


def step(model: nn.Module, taken: Tensor) -> list[Tensor]:
    model.zero_grad()
    out = model(taken)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]  # type: ignore[union-attr]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_what_is_off_is_torchs_bit_for_bit_there_and_back() -> None:
    plain, taken = net(), ids(7, 3, 4)
    model = quantize(plain, recipe=Schedule({0: mine(), 5: "fp32"}))
    on = step(copy.deepcopy(model), taken)
    set_recipe(model, "fp32")
    assert same(step(model, taken), step(plain, taken))
    assert int(model[0].lookup.noise_count) == 0
    model[1].product.noise_count.zero_()
    set_recipe(model, mine())
    assert same(step(model, taken), on)


def test_none_leaves_tables_as_they_were() -> None:
    model = quantize(net())
    assert type(model[0]) is nn.Embedding
    said = "Embedding: a lookup, no product; kept in full precision; a recipe with lookup=Lookup"
    assert summary(model).left == {"0": f"{said}(...) quantizes it"}
    with pytest.raises(
        ValueError, match=r"cannot be honoured: 0: .*lookup=Lookup\(...\) quantizes"
    ):
        quantize(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)), overrides={"0": 4})
    assert replace(recipes.int8(), lookup=Lookup()) == recipes.int8()
    assert all(recipes.get(name).lookup is None for name in recipes.names())
    with pytest.raises(
        ValueError, match=r"lookup: bf16 has lookup weight int8.* and 0 were not co"
    ):
        set_recipe(model, mine())


def test_a_schedule_of_norms_and_of_lookups_converts_both() -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    norms = replace(recipes.bf16(), norm=qtrain.NormRecipe(deviation=qtrain.deviations.l1()))
    for first, then in ((mine(), norms), (norms, mine())):
        model_ = quantize(model, recipe=Schedule({0: first, 5: then}))
        alone = [quantize(model, recipe=one) for one in (first, then)]
        assert list(summary(model_).converted) == ["0", "1", "2"] and not summary(model_).left
        for one in alone:
            set_recipe(model_, summary(one).conversion.asked.base)
            assert model_[0].lookup.is_off == (type(one[0]) is nn.Embedding)


def test_overrides_by_name() -> None:
    ours = replace(recipes.int8(), lookup=mine().lookup)
    floats = replace(recipes.int8(), lookup=Lookup(weight=FP8))
    left = quantize(net(), recipe=ours, overrides={"0": None})
    assert type(left[0]) is nn.Embedding and summary(left).left == {
        "0": "Embedding: left by an override"
    }
    bits: Any = quantize(net(), recipe=ours, overrides={"0": 4})
    own = bits[0].lookup.recipe.lookup
    assert own.weight.format.bits == own.grad_output.format.bits == 4
    assert summary(bits).conversion.overridden["0"] == str(own)
    assert ours.at(4).lookup == own
    alone: Any = quantize(net(), overrides={"0": floats})
    assert alone[0].lookup.recipe.lookup == Lookup(weight=FP8)
    assert bits[1].product.recipe.lookup == mine().lookup
    with pytest.raises(ValueError, match="it is a lookup, which the recipe's lookup= decides"):
        quantize(net(), recipe=floats, overrides={"0": 4})
    with pytest.raises(ValueError, match=r"overrides\['0'\] cannot be honoured.*a lookup, no prod"):
        quantize(net(), recipe=ours, overrides={"0": "fp8"})
    set_recipe(bits, ours, overrides={"0": None})
    assert bits[0].lookup.is_off and torch.equal(bits[0](ids(7, 3)), net()[0](ids(7, 3)))


class Own(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 8, max_norm=1.0), "max_norm, by which its forward writes into"),
        (nn.EmbeddingBag(4, 8, max_norm=1.0), "max_norm, by which its forward writes into"),
        (nn.Embedding(4, 8, sparse=True), "sparse=True, whose gradient is no dense tensor"),
        (nn.EmbeddingBag(4, 8, sparse=True), "sparse=True, whose gradient is no dense tensor"),
        (Own(4, 8), "a subclass of Embedding with its own forward"),
    ],
)  # fmt: skip
def test_what_cannot_follow_is_left_and_named(layer: nn.Module, reason: str) -> None:
    model = quantize(nn.Sequential(layer, nn.Linear(8, 2)), recipe=mine())
    assert type(model[0]) is type(layer) and reason in summary(model).left["0"]
    with pytest.raises(ValueError, match="cannot be honoured"):
        quantize(nn.Sequential(layer, nn.Linear(8, 2)), overrides={"0": mine()})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="lookup: got 8, need Lookup"):
        Recipe(name="x", lookup=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lookup\.weight: got .* which learns"):
        Lookup(weight=recipes.lsq().forward.weight)
    with pytest.raises(TypeError, match=r"lookup\.grad_output: got 8, need a quantizer"):
        Lookup(grad_output=8)  # type: ignore[arg-type]
    model: Any = quantize(net(), recipe=mine())
    with pytest.raises(TypeError, match=r"layer '0': weight is torch\.int64, need a floating"):
        model[0].lookup(torch.zeros(7, 8, dtype=torch.int64), lambda table: table)


def test_a_tied_table_stays_tied_and_gets_both_gradients() -> None:
    model: Any = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7, bias=False))
    model[1].weight = model[0].weight
    tied: Any = quantize(model, recipe=mine())
    assert tied[0].weight is tied[1].weight and len(list(tied.parameters())) == 1
    step(tied, ids(7, 3, 4))
    apart: Any = quantize(
        nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7, bias=False)), recipe=mine()
    )
    apart.load_state_dict({**tied.state_dict(), "0.lookup.noise_count": torch.tensor(0),
                           "1.product.noise_count": torch.tensor(0)})  # fmt: skip
    _, table, head = step(apart, ids(7, 3, 4))
    torch.testing.assert_close(tied[0].weight.grad, table + head)


def test_state_ranges_and_copies_go_on_bit_for_bit(tmp_path: Path) -> None:
    ranged = mine(replace(TENSOR, range=ema()), replace(DRAWN, range=ema(use="previous")))
    model: Any = quantize(net(), recipe=ranged)
    taken = ids(7, 3, 4)
    step(model, taken)
    names = {key for key in model.state_dict() if "lookup" in key}
    assert any("forward_weight_" in name for name in names)
    assert any("grad_weight_grad_output_" in name for name in names)
    qtrain.save_recipe(ranged, tmp_path / "recipe.yaml")
    assert qtrain.load_recipe(tmp_path / "recipe.yaml") == ranged
    with torch.device("meta"):
        loaded = quantize(net(), recipe=qtrain.load_recipe(tmp_path / "recipe.yaml"))
    loaded.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    twins = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = step(model, taken)
    assert all(same(step(twin, taken), expected) for twin in twins)
    net().load_state_dict(qtrain.plain_state_dict(model))
    calibrated = quantize(net(), recipe=ranged)
    qtrain.calibrate(calibrated, [taken])
    key = next(name for name in names if "forward_weight_" in name)
    before = quantize(net(), recipe=ranged).state_dict()[key]
    assert not torch.equal(calibrated.state_dict()[key], before)


def test_a_recomputed_forward_draws_the_same_noise() -> None:
    plain, again = (quantize(net(), recipe=mine(DRAWN)) for _ in range(2))

    class Checkpointed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, taken: Tensor) -> Tensor:
            return checkpoint(self.model, taken, use_reentrant=False)

    taken = ids(7, 3, 4)
    for _ in range(2):
        assert same(step(Checkpointed(again), taken), step(plain, taken))


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("make", [lambda: net(), lambda: nn.EmbeddingBag(7, 8)])
def test_it_compiles_in_one_graph_to_the_same_bits(make: Callable[[], nn.Module]) -> None:
    eager, taken = quantize(make(), recipe=mine(DRAWN)), ids(7, 3, 4)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    step(eager, taken)
    step(compiled, taken)  # the first forward looks at what stays outside
    for _ in range(2):
        expected = step(eager, taken)
        compiled.zero_grad()
        out = run(taken)
        out.square().sum().backward()
        assert same([out, *(p.grad for p in compiled.parameters())], expected)  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_come_in_the_tables_dtype_and_autocast_changes_nothing(dtype: torch.dtype) -> None:
    layer: Any = quantize(nn.Embedding(7, 8).to(dtype), recipe=recipe(ROWS, DRAWN))
    expected = of_table(layer, 1).to(dtype)[ids(7, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(ids(7, 5))
        assert out.dtype == dtype and torch.equal(out, expected)
        out.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_reports_show_it() -> None:
    model: Any = quantize(net(), recipe=mine())
    taken = ids(7, 3, 4)
    found = summary(model, taken)
    assert found.converted == {"0": "Embedding", "1": "Linear"} and not found.never_ran
    assert "lookup weight int8, per axis 0,1; grad_output int8, per tensor, stochastic" in str(
        found
    )
    assert repr(model[0]) == "QEmbedding(7, 8; bf16)"
    roles = {"weight", "grad_output (grad_weight)"}
    report = qtrain.inspect(model, taken, loss=lambda out: out.square().sum())
    assert {row.role for row in report.rows if row.layer == "0"} == roles
    with Monitor(model, every=1) as monitor:
        step(model, taken)
        monitor.end_step()
        step(model, taken)
        monitor.end_step()
    assert {row.role for row in monitor.rows if row.layer == "0"} == roles
    assert str(qtrain.diagnose(monitor))
    alone = quantize(net(), recipe=recipe(ROWS))
    (row,) = qtrain.inspect(alone, taken).rows
    assert (row.layer, row.role) == ("0", "weight") and row.sqnr_db < 60
    with torch.no_grad():
        assert {row.layer for row in qtrain.cost(model, taken).rows} == {"1"}


def test_the_reference_of_accumulated_errors_looks_up_in_full_precision() -> None:
    model = quantize(net(), recipe=recipe(TENSOR))
    (row,) = (r for r in qtrain.accumulated(model, ids(7, 3, 4)).rows if r.role == "output")
    assert row.layer == "1" and row.sqnr_db < 60


def test_a_table_that_no_forward_reaches_is_named() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(3, 4), nn.Linear(4, 4)
            self.spare = nn.Embedding(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.fc(x), self.table.weight)

    found = summary(quantize(Head(), recipe=mine()), torch.randn(2, 4))
    assert found.never_ran == ["spare"] and found.used_by == {"table": "functional.linear0"}
