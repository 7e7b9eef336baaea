"""cost: exact counts, stated bytes, energies from the table or marked as estimated."""

from __future__ import annotations

import copy
import csv
import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from qtrain import (
    CostReport,
    CostRow,
    EnergyTable,
    Forward,
    GradInput,
    GradWeight,
    Matmul,
    Recipe,
    UnitCost,
    cost,
    inspect,
    quantize,
    recipes,
)
from qtrain.hardware.energy import SZE2017, by_width, multiplier, width
from quantizers import (
    FloatFormat,
    Granularity,
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    accumulators,
    e4m3,
    e5m2,
    e8m0,
    fp16,
    int8,
)

PRODUCTS = ("forward", "grad_input", "grad_weight")
FLAT = EnergyTable(name="flat", multiply={"int8": UnitCost(1)}, add={"int8": UnitCost(2)},
                   estimate=lambda operation, name, known: UnitCost(3))  # fmt: skip


def normal(*shape: int, grad: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(grad)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16),
        nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


X = normal(5, 3, 6, 6)


def row(report: CostReport, layer: str, product: str) -> CostRow:
    (found,) = (r for r in report.rows if (r.layer, r.product) == (layer, product))
    return found


def macs(report: CostReport, product: str | None = None) -> int:
    return sum(r.macs for r in report.rows if product in (None, r.product))


# counts

CONVOLUTIONS = {
    "1d": (nn.Conv1d, {}),
    "2d padding": (nn.Conv2d, {"padding": (2, 1)}),
    "2d stride dilation": (nn.Conv2d, {"stride": (2, 3), "dilation": (1, 2), "padding": 1}),
    "2d groups": (nn.Conv2d, {"groups": 2, "stride": 2, "padding": 1}),
    "2d depthwise": (nn.Conv2d, {"groups": 4}),
    "3d": (nn.Conv3d, {"stride": 2, "padding": 1}),
    "transposed 1d": (nn.ConvTranspose1d, {"stride": 2}),
    "transposed 2d": (nn.ConvTranspose2d, {"stride": (2, 1), "dilation": (1, 2)}),
    "transposed 2d cut": (nn.ConvTranspose2d, {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed 2d groups": (nn.ConvTranspose2d, {"groups": 2, "stride": 3, "padding": 1}),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    kind, settings = CONVOLUTIONS[name]
    space = {"1": 1, "2": 2, "3": 3}[kind.__name__[-2]]
    return kind(4, 8, 3, bias=False, **settings), normal(2, 4, *[7, 8, 6][:space], grad=True)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_multiply_as_often_as_ones_add_up(name: str) -> None:
    """Sums of products of ones count them: padding made of ones, nothing cut off the output."""
    layer, x = made(name)
    ones = torch.ones_like(x, dtype=torch.float64).detach()
    weight = torch.ones_like(layer.weight, dtype=torch.float64).detach()
    space = x.dim() - 2
    settings = {k: getattr(layer, k) for k in ("stride", "dilation", "groups")}
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        function = getattr(F, f"conv_transpose{space}d")
    else:
        function = getattr(F, f"conv{space}d")
        flat = [side for side in reversed(layer.padding) for _ in range(2)]
        ones = F.pad(ones, flat, value=1.0)
    ones.requires_grad_()
    weight.requires_grad_()
    total = function(ones, weight, **settings).sum()
    grads = torch.autograd.grad(total, [ones, weight])
    expected = [int(value.sum()) for value in (total, *grads)]

    report = cost(quantize(layer), x)
    assert [row(report, "(model)", product).macs for product in PRODUCTS] == expected


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "group" not in name
                                  and "depth" not in name])  # fmt: skip
def test_convolutions_agree_with_torchs_flop_counter(name: str) -> None:
    layer, x = made(name)
    assert 2 * macs(cost(quantize(layer), x)) == flops(layer, x)


def test_groups_agree_with_torchs_flop_counter_but_for_its_grad_weight() -> None:
    """torch multiplies grad_weight's by the groups once more: each group has its own inputs."""
    layer, x = made("2d groups")
    report = cost(quantize(layer), x)
    spared = (layer.groups - 1) * macs(report, "grad_weight")
    assert 2 * (macs(report) + spared) == flops(layer, x)


def flops(model: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        output = model(*inputs)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    return int(counter.get_total_flops())


def test_networks_agree_with_torchs_flop_counter() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = normal(3, 5, 8, grad=True)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for model, inputs in (
        (net(), (X,)),
        (Matmul(), (normal(2, 1, 3, 4, grad=True), normal(5, 4, 6, grad=True))),
        (attention, (x, x, x)),
    ):
        assert 2 * macs(cost(quantize(model), *inputs)) == flops(model, *inputs)
    tokens, keys = 3 * 5, 5
    weights = tokens * (4 * 8 * 8 + 2 * 8 * 16)
    assert macs(cost(quantize(block), x)) == 3 * (weights + 2 * tokens * keys * 8)


class Mixed(nn.Module):
    """Layers of several kinds, and a product by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.fc = nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.up(self.depthwise(self.down(x))).mean(-1).mT)
        return self.attention(x, x, x)[0] @ x.mT


@pytest.mark.parametrize("recipe", ["int8", "mxfp8", "jetfire", "sums"])
def test_torchs_flop_counter_counts_a_converted_model_as_the_model(recipe: str) -> None:
    """Whatever serves a product: units of floats, blocks, several parts, an accumulator."""
    made: Recipe | str = recipe
    if recipe == "sums":
        made = replace(recipes.fp8(), accumulator=accumulators.sequential(FloatFormat(6, 9)))
    model, x = Mixed(), normal(2, 4, 12, 12, grad=True)
    assert flops(quantize(model, recipe=made), x) == flops(model, x)


def test_the_flop_counter_counts_a_product_once_under_checkpointing() -> None:
    """What a selective one keeps is counted in the recomputation all the same."""
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]

    def again(net: nn.Module, **how: Any) -> nn.Module:
        class Checkpointed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(net, x, use_reentrant=False, **how)  # type: ignore[no-any-return]

        return Checkpointed()

    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), normal(4, 8, grad=True)
    how = {"context_fn": partial(create_selective_checkpoint_contexts, kept)}
    forward = 2 * 4 * 8 * (8 + 4)
    assert flops(net, x) == 3 * forward
    assert flops(again(quantize(net, recipe="bf16")), x) == 4 * forward
    assert flops(again(quantize(net, recipe="bf16"), **how), x) == 4 * forward


def test_a_linear_layer_multiplies_every_weight_with_every_token() -> None:
    report = cost(quantize(nn.Linear(7, 5)), normal(2, 3, 7, grad=True))
    assert [r.macs for r in report.rows] == [2 * 3 * 7 * 5] * 3
    vector = cost(quantize(nn.Linear(7, 5)), normal(7))
    assert [(r.product, r.macs) for r in vector.rows] == [("forward", 35), ("grad_weight", 35)]


def test_calls_add_up_and_a_recomputed_forward_counts_again() -> None:
    class Twice(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.fc, self.reentrant = nn.Linear(4, 4), reentrant

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                return self.fc(self.fc(x)[:2])  # type: ignore[no-any-return]
            y: Any = checkpoint(self.fc, x, use_reentrant=self.reentrant)
            return y  # type: ignore[no-any-return]

    x = normal(3, 4, grad=True)
    assert [r.macs for r in cost(quantize(Twice(None)), x).rows] == [(3 + 2) * 16] * 3
    for reentrant in (True, False):
        report = cost(quantize(Twice(reentrant)), x)
        assert [r.macs for r in report.rows] == [2 * 3 * 16, 3 * 16, 3 * 16]


# bytes


def test_bytes_are_codes_scales_and_zero_points_and_results_in_their_dtype() -> None:
    report = cost(quantize(nn.Linear(12, 5)), normal(6, 12, grad=True))
    x, w = 6 * 12 + 4 + 1, 5 * 12 + 5 * 4  # uint8 with its scale and point; a scale a channel
    g8, g16 = 6 * 5 + 4, 6 * 5 * 2
    moved = [x + w + 6 * 5 * 4, g8 + w + 6 * 12 * 4, g16 + x + 5 * 12 * 4]
    assert [r.moved_bytes for r in report.rows] == moved
    assert [r.stored_bytes for r in report.rows] == [0, w, x]
    full = [4 * (72 + 60 + 30)] * 3
    assert [r.moved_bytes for r in report.fp32] == full
    assert [r.stored_bytes for r in report.fp32] == [0, 4 * 60, 4 * 72]
    assert [(r.a, r.b) for r in report.rows] == [("int8", "int8")] * 2 + [("bf16", "int8")]


def test_fewer_bits_are_fewer_bytes_also_of_results() -> None:
    x = normal(6, 12, grad=True)
    recipe = replace(recipes.int8(4, unit="bf16"), activation=fp16)
    report = cost(quantize(nn.Linear(12, 5), recipe=recipe), x)
    w, codes = 30 + 5 * 4, 36 + 4 + 0.5
    assert row(report, "(model)", "forward").moved_bytes == codes + w + 2 * 30
    assert row(report, "(model)", "grad_weight").moved_bytes == 60 + codes + 2 * 60
    assert row(report, "(model)", "grad_weight").stored_bytes == codes


def test_scales_of_blocks_take_the_bits_of_their_format() -> None:
    def mx(axis: int, fmt: FloatFormat = e4m3) -> Quantizer:
        return Quantizer(
            format=fmt,
            granularity=Granularity(((axis, 32),), rest="each"),
            scale=Scale(e8m0, rule="rceil"),
        )

    recipe = Recipe(
        name="mx",
        forward=Forward(input=mx(-1), weight=mx(-1)),
        grad_input=GradInput(grad_output=mx(-1, e5m2), weight=mx(-2)),
        grad_weight=GradWeight(grad_output=mx(0, e5m2), input=mx(0)),
    )
    report = cost(quantize(nn.Linear(64, 32), recipe=recipe), normal(96, 64, grad=True))
    x, w = 96 * 64, 64 * 32
    assert row(report, "(model)", "forward").moved_bytes == (x + w) * (1 + 1 / 32) + 4 * 96 * 32
    assert row(report, "(model)", "grad_input").stored_bytes == w * (1 + 1 / 32)
    assert row(report, "(model)", "grad_weight").stored_bytes == x * (1 + 1 / 32)
    assert row(report, "(model)", "grad_weight").unit == "e4m3 x e5m2 + fp32"


def test_a_users_quantizer_and_format_are_counted() -> None:
    class Own:
        def __call__(self, x: Tensor, *, state: Any, key: Any = None, training: bool = True) -> Any:
            return QTensor(x.sign().to(torch.int8), x.abs().amax(), None, int8)

    odd = Quantizer(format=FloatFormat(6, 5, name="mine"))
    recipe = Recipe(name="own", forward=Forward(input=Own(), weight=odd))
    with torch.no_grad():
        (only,) = cost(quantize(nn.Linear(8, 4), recipe=recipe), normal(3, 8)).rows
    assert (only.a, only.b) == ("int8", "e6m5")
    assert only.moved_bytes == 24 + 4 + 32 * 12 / 8 + 4 + 3 * 4 * 4


def test_what_is_not_quantized_takes_its_own_dtype() -> None:
    x = normal(3, 8, grad=True)
    for dtype, name in ((torch.float64, "fp64"), (torch.bfloat16, "bf16")):
        rows = cost(nn.Linear(8, 4).to(dtype), x.detach().to(dtype).requires_grad_()).rows
        assert {(r.a, r.b) for r in rows} == {(name, name)}
        assert rows[0].moved_bytes == (24 + 32 + 12) * dtype.itemsize
    with torch.autocast("cpu", torch.bfloat16):
        rows = cost(quantize(nn.Linear(8, 4), recipe="fp32"), x).rows
    assert {(r.a, r.b) for r in rows} == {("bf16", "bf16")}
    assert rows[0].moved_bytes == 2 * (24 + 32 + 12)


# what is counted of a model


def test_layers_left_or_off_count_in_full_precision() -> None:
    whole = cost(quantize(net()), X)
    mixed = cost(quantize(net(), overrides={"0": None, "5": "fp32"}), X)
    assert [r.macs for r in mixed.rows] == [r.macs for r in whole.rows]
    assert mixed.fp32 == whole.fp32
    formats = {r.layer: (r.a, r.b) for r in mixed.rows if r.product == "forward"}
    assert formats == {"0": ("fp32",) * 2, "3": ("int8",) * 2, "5": ("fp32",) * 2}
    plain, off = cost(net(), X), cost(quantize(net(), recipe="fp32"), X)
    assert plain.rows == whole.fp32 == off.rows
    followed = sum(row.macs for row in mixed.rows if row.layer == "3")
    assert mixed.share == followed / sum(row.macs for row in mixed.rows)
    assert (whole.share, plain.share, off.share) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("left", [None, "fp32"])
def test_attention_left_or_off_counts_as_much_as_converted(left: str | None) -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    x = normal(3, 5, 8, grad=True)
    want = cost(quantize(model), x)
    found = cost(quantize(model, overrides={"layers.0.self_attn": left}), x)
    assert [(r.layer, r.product, r.macs) for r in found.rows] == [
        (r.layer, r.product, r.macs) for r in want.rows
    ]
    first = [r.a for r in found.rows if r.layer.startswith("layers.0.self_attn")]
    assert len(first) == 18 and set(first) == {"fp32"}


def test_parts_converted_apart_keep_their_own_formats() -> None:
    """Their layers share a name, "(model)"; the scales and widths of each are its own."""
    four = quantize(nn.Linear(8, 8), recipe=replace(recipes.int8(4), activation=fp16))
    with torch.no_grad():
        rows = cost(nn.Sequential(four, quantize(nn.Linear(8, 8))), normal(3, 8)).rows
    x, w = [12 + 4 + 0.5, 24 + 4 + 1], [32 + 8 * 4, 64 + 8 * 4]
    assert [r.moved_bytes for r in rows] == [x[0] + w[0] + 24 * 2, x[1] + w[1] + 24 * 4]


class Outside(nn.Module):
    """A product in a function, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return torch.linalg.matrix_power(y[:, :3], 2)


def test_what_is_not_counted_is_named() -> None:
    report = cost(quantize(Outside()), normal(3, 4))
    assert {r.layer for r in report.rows} == {"fc"}
    assert list(report.outside) == ["(model)"] and list(report.never_ran) == ["idle"]
    assert "in no row: (model): mm" in str(report) and "never ran: idle" in str(report)


def test_no_gradient_is_an_error_unless_asked_for() -> None:
    model = quantize(net()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no_grad\(\) to count the forward alone"):
        cost(model, X)
    with torch.no_grad():
        report = cost(model.eval(), X)
    assert {r.product for r in report.rows} == {"forward"}
    assert all(r.stored_bytes == 0 for r in report.rows)
    with pytest.raises(ValueError, match="ReLU ran no linear"), torch.no_grad():
        cost(nn.ReLU(), X)


def test_nothing_of_the_model_changes() -> None:
    model = quantize(net(), overrides={"0": None}, norm=None)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    report = cost(model, X)
    assert report == cost(model, X)
    assert torch.equal(state, torch.get_rng_state())
    assert str(model) == str(before) and [type(m) for m in model] == [type(m) for m in before]
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert all(p.grad is None for p in model.parameters())
    assert all(m.probe is None for m in model.modules() if hasattr(m, "probe"))


# energy


def test_the_papers_figures_come_from_the_default_table() -> None:
    same = replace(SZE2017, accumulators={"int8": "int8", "fp16": "fp16"})
    for a, pj in (("int8", 0.23), ("fp16", 1.5), ("fp32", 4.6)):
        unit = same.unit(a, a)
        assert unit.multiply.pj + unit.add.pj == pytest.approx(pj)
        assert unit.estimated == ()


def test_sums_have_the_format_that_is_simulated() -> None:
    pairs = {
        ("int8", "int8"): "int32", ("int4", "int4"): "int32", ("int16", "int8"): "int40",
        ("int16", "int16"): "int48", ("bf16", "int8"): "fp32", ("fp16", "fp16"): "fp32",
        ("fp64", "fp64"): "fp64",
    }  # fmt: skip
    for (a, b), accumulator in pairs.items():
        assert SZE2017.unit(a, b).accumulator == accumulator == SZE2017.unit(b, a).accumulator
    assert SZE2017.unit("int8", "int8").estimated == ("add",)
    assert SZE2017.unit("fp16", "fp16").estimated == ()
    assert SZE2017.unit("bf16", "int8").estimated == ("multiply",)


def test_energy_is_operations_times_their_cost_and_says_what_is_estimated() -> None:
    summed = replace(FLAT, accumulators={"int8": "int8"})
    report = cost(quantize(nn.Linear(7, 5)), normal(2, 7, grad=True), table=summed)
    first, _, last = report.rows
    assert (first.energy_pj, first.add_pj) == (70 * 3, 70 * 2)
    assert (first.estimated, first.missing, first.estimated_pj) == ("", [], 0)
    assert (last.energy_pj, last.add_pj) == (70 * 6, 70 * 3)
    assert last.missing == ["multiply bf16 x int8", "add fp32"] and last.estimated_pj == 70 * 6
    half = cost(quantize(nn.Linear(7, 5)), normal(2, 7), table=FLAT).rows[0]
    assert half.missing == ["add int32"] and half.estimated_pj == half.add_pj == 70 * 3
    assert {r.table for r in (*report.rows, *report.fp32)} == {"flat"}


def test_an_entry_of_a_pair_counts_in_either_order() -> None:
    for name in ("bf16 x int8", "int8 x bf16"):
        table = replace(SZE2017, multiply={name: UnitCost(9)})
        assert table.unit("int8", "bf16").multiply == UnitCost(9)
        assert table.unit("int8", "bf16").multiplier == "bf16 x int8"


def test_by_width_scales_multipliers_by_both_widths_and_adders_by_one() -> None:
    multiply, add = SZE2017.multiply, SZE2017.add
    assert by_width("multiply", "int4", multiply).pj == pytest.approx(0.2 / 4)
    assert by_width("multiply", "int16 x int8", multiply).pj == pytest.approx(0.2 * 2)
    assert by_width("multiply", "bf16 x int8", multiply).pj == pytest.approx(1.1 * 64 / 121)
    assert by_width("multiply", "e5m2 x e4m3", multiply).pj == pytest.approx(1.1 * 12 / 121)
    assert by_width("add", "bf16", add).pj == pytest.approx(0.4 * 8 / 11)
    assert by_width("multiply", "fp64", multiply).pj == pytest.approx(3.7 * 53**2 / 24**2)
    tie = {"int4": UnitCost(1), "int16": UnitCost(100)}
    assert by_width("multiply", "int8", tie) == UnitCost(4)


def test_by_width_holds_what_its_docstring_says_of_horowitzs_table() -> None:
    """Entries of the 2014 table that the default lacks, or taken out of it: within 1.5."""
    multiply, add = dict(SZE2017.multiply), dict(SZE2017.add)
    fp32 = multiply.pop("fp32"), add.pop("fp32")
    pairs = [
        (by_width("multiply", "int32", multiply).pj, 3.1),
        (by_width("add", "int32", add).pj, 0.1),
        (by_width("multiply", "fp32", multiply).pj, fp32[0].pj),
        (by_width("add", "fp32", add).pj, fp32[1].pj),
    ]
    assert all(abs(math.log(found / true)) < math.log(1.5) for found, true in pairs)


def test_what_the_table_lacks_can_be_an_error_that_says_how_to_give_it() -> None:
    strict = replace(SZE2017, estimate=None)
    with pytest.raises(ValueError, match=r"no add of 'int32': give it as EnergyTable\(add="):
        cost(quantize(net()), X, table=strict)
    with pytest.raises(ValueError, match=r"no integer entry of add to scale"):
        cost(quantize(net()), X, table=replace(SZE2017, add={"fp32": UnitCost(1)}))
    whole = replace(strict, add={**SZE2017.add, "int32": UnitCost(0.1)},
                    multiply={**SZE2017.multiply, "bf16 x int8": UnitCost(1)})  # fmt: skip
    assert "~" not in str(cost(quantize(net()), X, table=whole))


def test_a_table_of_wrong_entries_is_refused() -> None:
    one = UnitCost(1)
    for changes, error, text in (
        ({"multiply": {"uint8": one}}, ValueError, "int<bits>"),
        ({"multiply": {"int8 x int8 x int8": one}}, ValueError, "one format or two"),
        ({"add": {"int8 x int8": one}}, ValueError, "int<bits>"),
        ({"add": {"fp32": 0.9}}, TypeError, "need a UnitCost"),
        ({"accumulators": {"int8": "int0"}}, ValueError, "int0"),
    ):
        with pytest.raises(error, match=text):
            replace(SZE2017, **changes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"table: got \{\}"):
        cost(quantize(net()), X, table={})  # type: ignore[arg-type]
    for pj in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="UnitCost"):
            UnitCost(pj)
    for area in (lambda: UnitCost(1, 282), lambda: UnitCost(1, um2=282)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"um2: got 282, but areas have left.*UnitCost\(1\)"):
            area()


def test_names_and_widths_of_formats() -> None:
    assert width("int12") == (12, 12, False) and width("e4m3") == (8, 4, True)
    assert width("fp32") == (32, 24, True) and width("e6m9") == (16, 10, True)
    assert multiplier("int4", "int8") == "int8 x int4" and multiplier("int8", "int8") == "int8"
    assert multiplier("int16", "e4m3") == "e4m3 x int16"
    for fmt in (IntFormat(5), e4m3, fp16):
        assert width(str(fmt)).bits == fmt.bits


# the report


def test_it_prints_in_80_columns_whatever_the_names() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            name = "_".join(["a_rather_long_name_of_a_module"] * 4)
            self.add_module(name, nn.Sequential(nn.Linear(1000, 1000)))
            self.add_module(f"{name}_idle", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            child, _ = self.children()
            return child(x)  # type: ignore[no-any-return]

    for report in (cost(quantize(Long()), normal(999, 1000)), cost(quantize(net()), X)):
        assert max(map(len, str(report).splitlines())) <= 80


def test_the_printed_totals_are_those_of_the_rows() -> None:
    report = cost(quantize(net()), X)
    text = str(report)
    energy, full = (sum(r.energy_pj for r in rows) for rows in (report.rows, report.fp32))
    moved, moved_full = (sum(r.moved_bytes for r in rows) for rows in (report.rows, report.fp32))
    totals = [line.split() for line in text.splitlines() if line.startswith("total ")]
    assert totals[0] == totals[2] and totals[1] == totals[3]  # by layer, and by product
    assert totals[0][1:] == [
        f"{macs(report) / 1e3:.3f}", f"{moved / 1e3:.3f}",
        f"{sum(r.stored_bytes for r in report.rows) / 1e3:.3f}", f"{energy / 1e3:.3f}",
        f"{energy / full:.3f}",
    ]  # fmt: skip
    assert totals[1][3] == f"{moved / moved_full:.3f}" and totals[1][5] == f"{energy / full:.3f}"
    assert "multiply bf16 x int8" in text and "(k)" in text and "(nJ)" in text


def test_rows_are_saved_as_they_are(tmp_path: Path) -> None:
    report = cost(quantize(net()), X)
    rows = json.loads(report.save(tmp_path / "c.json").read_text())
    assert rows == [asdict(r) for r in report.rows]
    with report.save(tmp_path / "c.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(r["macs"]) for r in table] == [r.macs for r in report.rows]
    with pytest.raises(ValueError, match=r"\.json or \.csv"):
        report.save(tmp_path / "c.txt")


def test_costs_join_errors_by_layer_and_product(tmp_path: Path) -> None:
    model = quantize(net(), overrides={"0": None})
    report, errors = cost(model, X), inspect(model, X, torch.arange(5) % 4)
    trades = report.against(errors)
    assert [(t.layer, t.product) for t in trades] == [(n, p) for n in "35" for p in PRODUCTS]
    roles = dict(zip(PRODUCTS, ("output", "grad_input", "grad_weight"), strict=True))
    for trade in trades:
        (error,) = (
            e for e in errors.rows if (e.layer, e.role) == (trade.layer, roles[trade.product])
        )
        assert trade.sqnr_db == error.sqnr_db
        assert trade.energy_pj == row(report, trade.layer, trade.product).energy_pj
    for name in ("t.png", "t.svg"):
        report.plot(errors, tmp_path / name)
    assert (tmp_path / "t.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (tmp_path / "t.svg").read_text()

    forward = inspect(model, X)
    assert [t.product for t in report.against(forward)] == ["forward"] * 2
    with torch.no_grad(), pytest.raises(ValueError, match="3 grad_input"):
        cost(model, X).against(errors)
    with pytest.raises(ValueError, match="has no product among the costs"):
        report.against(replace(errors, rows=()))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_multiplies_as_often(name: str) -> None:
    """Blocks in convolutions are of unfolded matrices, which no hardware reads; what a layer hands
    on may be changed in place."""
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, groups=2),
        nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 4, 3, stride=2), nn.Flatten(2),
        nn.Linear(81, 5), nn.ReLU(inplace=True),
    )  # fmt: skip
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    found, plain = cost(quantize(net, recipe=name), x), cost(net, x)
    for row, full, exact in zip(found.rows, found.fp32, plain.rows, strict=True):
        assert row.macs == full.macs == exact.macs
        assert full.moved_bytes == exact.moved_bytes
        assert row.moved_bytes <= exact.moved_bytes
