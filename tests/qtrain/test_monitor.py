"""Monitor: right numbers, the same training bit for bit, bounded, resumed."""

from __future__ import annotations

import copy
import gc
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils.checkpoint import checkpoint
from training_cases import assert_same_run, quiet, small

from qtrain import (
    CheckpointError,
    Forward,
    GradInput,
    GradWeight,
    Monitor,
    Recipe,
    inspect,
    quantize,
    read_monitor,
    recipes,
    train,
)
from qtrain.cli import main
from qtrain.inspection.distributions import code_counts, value_counts
from qtrain.inspection.record import thinned_out
from qtrain.inspection.rows import _row
from qtrain.inspection.sampling import places, sampled
from qtrain.products.module import QProduct
from qtrain.training.trainee import Branch
from quantizers import IntFormat, QTensor, Quantizer, bf16, e4m3, minmax, per_axis, percentile


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, TARGETS = normal(6, 3, 8, 8, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])


class Net(nn.Module):
    """Two fused pairs, dropout, three kinds of layers; `way` is how the middle is called."""

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 4, 3, bias=False), nn.Dropout(0.3),
        )  # fmt: skip
        self.last = nn.Linear(64, 4)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "plain":
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.way == "reentrant")
        output: Tensor = self.last(x.flatten(1))
        return output


def converted(way: str = "plain", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return quantize(Net(way), **options)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    micro: int = 1,
    autocast: bool = False,
) -> None:
    """Steps of `micro` accumulated forwards and backwards; noise of torch's from the step."""
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(micro):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(X).float(), TARGETS)
            loss.backward()
        optimizer.step()


def probes(model: nn.Module) -> list[str]:
    """The layers that have one."""
    return [m.name for m in model.modules() if isinstance(m, QProduct) and m.probe is not None]


def layers_at(monitor: Monitor, step: int) -> list[str]:
    return list(dict.fromkeys(row.layer for row in monitor.rows if row.step == step))


@pytest.fixture(autouse=True)
def no_hook_stays() -> Iterator[None]:
    yield
    gc.collect()
    hooks = optimizers._global_optimizer_post_hooks.values()
    assert not [hook for hook in hooks if hook.__module__ == "qtrain.inspection.step_ends"]


# The numbers --------------------------------------------------------------------------------------

AFFINE = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
CLIPPING = Quantizer(format=IntFormat(8), range=percentile(0.9))
ROWS = Quantizer(format=IntFormat(6), granularity=per_axis(0, 1))
FLOAT = Quantizer(format=e4m3)


def binade_counts(x: np.ndarray) -> list[int]:
    """By Python's own frexp, one value at a time."""
    counts = [0] * 97
    for value in x.ravel().tolist():
        if value == 0:
            counts[48] += 1
        elif math.isfinite(value):
            e = min(max(math.frexp(value)[1] - 1, -32), 15)
            counts[48 + (1 if value > 0 else -1) * (e + 33)] += 1
    return counts


def measured(x: np.ndarray, q: np.ndarray) -> dict[str, float]:
    error = q - x
    return {
        "sqnr_db": 10 * math.log10((x * x).sum() / (error * error).sum()),
        "gain": (error * x).sum() / (x * x).sum(),
        "cosine": (x * q).sum() / math.sqrt((x * x).sum() * (q * q).sum()),
        "bias": error.mean(),
        "relative_bias": error.mean() / np.abs(x).mean(),
        "zeroed": ((x != 0) & (q == 0)).mean(),
        "low": x.min(),
        "high": x.max(),
    }


def test_every_number_is_the_definitions_in_float64() -> None:
    """One linear layer over two steps: each role from the quantizers, the rest by numpy."""
    torch.manual_seed(0)
    recipe = Recipe(
        name="small",
        forward=Forward(input=AFFINE, weight=ROWS),
        grad_input=GradInput(grad_output=CLIPPING, weight=Quantizer(format=IntFormat(12))),
        grad_weight=GradWeight(grad_output=FLOAT),
    )
    first, plain = nn.Linear(12, 12, bias=False), nn.Linear(12, 5)
    model = nn.Sequential(first, nn.ReLU(), quantize(plain, recipe=recipe))
    grad, x0 = normal(7, 5, seed=2), normal(7, 12, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    expected: list[dict[str, tuple[Tensor, Any, Tensor | None]]] = []
    with Monitor(model, every=1) as monitor:
        for _ in range(2):
            w, b = model[2].weight.detach().clone(), model[2].bias.detach().clone()
            x = model[1](model[0](x0)).detach()
            xq, wq, g8, g16 = AFFINE(x), ROWS(w[None]), CLIPPING(grad), FLOAT(grad)
            w12 = Quantizer(format=IntFormat(12))(w[None])
            xd, wd = xq.dequantize().double(), wq.dequantize()[0].double()
            gd, hd = g8.dequantize().double(), g16.dequantize().double()
            d = torch.float64
            expected.append(
                {
                    "input": (x, xq, None),
                    "weight": (w[None], wq, None),
                    "output": (x.to(d) @ w.to(d).T + b.to(d), None, xd @ wd.T + b.to(d)),
                    "grad_output (grad_input)": (grad, g8, None),
                    "weight (grad_input)": (w[None], w12, None),
                    "grad_input": (
                        grad.to(d) @ w.to(d), None, gd @ w12.dequantize()[0].double()
                    ),
                    "grad_output (grad_weight)": (grad, g16, None),
                    "grad_weight": (grad.to(d).T @ x.to(d), None, hd.T @ xd),
                }
            )  # fmt: skip
            optimizer.zero_grad()
            (model(x0) * grad).sum().backward()
            optimizer.step()
    for step, by_role in enumerate(expected):
        rows = {row.role: row for row in monitor.rows if row.step == step}
        assert list(rows) == list(by_role)
        for role, (exact, q, found) in by_role.items():
            row = rows[role]
            if q is not None:
                found = q.dequantize()
            assert found is not None
            reference, value = exact.double().numpy(), found.double().numpy()
            for name, number in measured(reference, value).items():
                # fp32 products and scales; a bias is a difference of nearly equal numbers
                assert getattr(row, name) == pytest.approx(number, rel=2e-4, abs=1e-6), (role, name)
            assert (row.layer, row.elements, row.nonfinite) == ("(model)", exact.numel(), 0)
            if q is None:
                assert (row.codes, row.scale, row.drift) == ((), None, None)
                assert (row.offset, row.spread, row.reach, row.crowded) == (None,) * 4
                assert row.clipped == row.saturated == 0
                continue
            assert row.values == tuple(binade_counts(reference))
            scales = sorted(q.scale.flatten().tolist())
            assert row.scale == (scales[0], scales[(len(scales) - 1) // 2], scales[-1])
            before = monitor_at(monitor, step - 1, role)
            assert row.drift == (None if before is None else row.scale[1] / before[1])  # type: ignore[index]
            codes = q.elements.double().numpy()
            if q.format == e4m3:
                assert row.codes == tuple(binade_counts(codes))
                assert row.saturated == (np.abs(codes) == 448).mean() > 0
                continue
            width = {12: 16}.get(q.format.bits, 1)
            place = (codes - q.format.low).astype(int) // width
            assert row.codes == tuple(np.bincount(place.ravel(), minlength=len(row.codes)))
            assert len(row.codes) == (q.format.high - q.format.low) // width + 1
            ends = (codes == q.format.low) | (codes == q.format.high)
            assert row.saturated == (ends & (value != 0)).mean() > 0
            # neighbours on the grid differ by the scale: the roundings are to the nearest
            error = (value - reference) / q.spread(q.scale).double().numpy()
            if q.format != e4m3 and row.clipped == 0:
                assert row.spread == pytest.approx(math.sqrt((error**2).mean()), rel=1e-3)
                assert (row.offset, row.offset_error, row.shared) == (0, 0, None)
                assert row.reach == pytest.approx(1, abs=1e-6)
    clipped = monitor.rows[3]
    limit = CLIPPING(grad).scale.item() * 127.5  # type: ignore[union-attr]
    assert clipped.role == "grad_output (grad_input)"
    assert clipped.clipped == (grad.abs() > limit).double().mean().item() > 0
    assert monitor.rows[0].clipped == 0


def test_an_update_is_the_optimizers_in_steps_of_the_weight() -> None:
    """Plain descent moves a weight by the rate times its gradient."""
    model = converted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Monitor(model, 1) as monitor:
        trained(model, optimizer, 2)
    weights = {row.layer: row for row in monitor.rows if row.role == "weight" and row.step == 1}
    assert len(weights) == 4
    for name, row in weights.items():
        weight = model.get_parameter(f"{name}.weight")
        assert weight.grad is not None
        before = (weight + 0.05 * weight.grad).detach()
        scale = before.flatten(1).abs().amax(1) / 127
        moved = (0.05 * weight.grad.flatten(1).abs() / scale[:, None]).mean().item()
        assert row.update == pytest.approx(moved, rel=1e-3)
    assert {row.update for row in monitor.rows if row.role != "weight"} == {None}


def test_weights_that_swing_between_two_codes_oscillate() -> None:
    torch.manual_seed(0)
    model = quantize(nn.Linear(8, 4, bias=False), bits=8)
    weight = model.weight
    with torch.no_grad():
        weight[:, 0] = 1.27  # codes are hundredths
        weight[:, 1:] = 0.254
    with Monitor(model, 1) as monitor:
        for step in range(12):
            with torch.no_grad():
                weight[:, 1:3] = 0.256 if step % 2 else 0.254  # 26, 25
                weight[:, 3] = 0.25 + step / 100  # on its way
            model(normal(5, 8)).sum().backward()
            monitor.end_step()
    found = [row.oscillation for row in monitor.rows if row.role == "weight"]
    assert found == [None, None, None, *[2 / 8] * 9]


def monitor_at(monitor: Monitor, step: int, role: str) -> tuple[float, float, float] | None:
    found = [row.scale for row in monitor.rows if (row.step, row.role) == (step, role)]
    return found[0] if found else None


def test_what_a_relu_cut_off_is_not_saturated() -> None:
    x = torch.tensor([0.0, 0.0, 0.5, 1.0])
    recipe = Recipe(name="r", forward=Forward(input=AFFINE))
    model = quantize(nn.Linear(4, 2), recipe=recipe)
    with Monitor(model, 1) as monitor:
        model(x)
        monitor.end_step()
    assert monitor.rows[0].codes[0] == 2 and monitor.rows[0].saturated == 0.25


def test_non_finite_values_are_counted_and_in_no_bin() -> None:
    x = torch.tensor([[1.0, math.inf, math.nan, -2.0]])
    wide = Quantizer(format=bf16, range=None)
    model = quantize(nn.Linear(4, 2), recipe=Recipe(name="r", forward=Forward(input=wide)))
    with Monitor(model, 1) as monitor:
        model(x)
        monitor.end_step()
    row = monitor.rows[0]
    assert (row.nonfinite, row.elements, sum(row.values)) == (2, 4, 2)
    assert math.isnan(row.sqnr_db) and math.isnan(monitor.rows[-1].sqnr_db)
    assert (row.low, row.high) == (-2, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_bins_are_binades(dtype: torch.dtype) -> None:
    exponents = torch.arange(-40, 20, dtype=torch.float64)
    x = torch.cat([2**exponents, -(1.5 * 2**exponents), torch.zeros(3, dtype=torch.float64)])
    x = x.to(dtype)
    assert value_counts(x).tolist() == binade_counts(x.double().numpy())
    assert value_counts(x[:0]).tolist() == [0] * 97


@pytest.mark.parametrize("bits", [2, 5, 8, 9, 16])
def test_code_bins_hold_equally_many_codes_and_every_code(bits: int) -> None:
    for wanted in (IntFormat(bits), IntFormat(bits, signed=False, symmetric=False)):
        codes = torch.arange(wanted.low, wanted.high + 1).to(wanted.dtype)
        counts = code_counts(QTensor(codes, torch.ones(1), None, wanted, (len(codes),)))
        assert counts.sum() == len(codes) and len(counts) <= 256
        assert set(counts[:-1].tolist()) == {max(2 ** (bits - 8), 1)}


# Sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 17, 4096, 12345, 2 * 3 * 5 * 7 * 11 * 13, 2**21])
def test_places_are_different_and_even(count: int) -> None:
    for limit in {1, min(1000, count - 1)}:
        found = places(count, limit, torch.device("cpu")).tolist()
        assert len(set(found)) == limit and 0 <= min(found) and max(found) < count
    gaps = np.diff(sorted(found))
    if count > 4 * limit > 4:  # three gaps at most, of a Kronecker sequence
        assert gaps.max() <= 3.5 * count / limit


def test_places_prefer_no_channel_and_no_pixel() -> None:
    at = places(32 * 64 * 8 * 8, 2**14, torch.device("cpu"))
    for modulus in (8, 64, 64 * 64):
        counts = torch.bincount(at % modulus, minlength=modulus)
        mean = 2**14 / modulus
        assert (counts - mean).abs().max() <= max(2, 0.02 * mean)


@pytest.mark.parametrize(
    "granularity", [per_axis(1), per_axis(0, 2), None], ids=["channel", "two axes", "tensor"]
)
def test_sampled_tensors_are_the_whole_ones_there(granularity: Any) -> None:
    x = normal(8, 6, 20).transpose(0, 2)
    options = {} if granularity is None else {"granularity": granularity}
    q = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax, **options)(x)
    some, part = sampled(x, 100), sampled(q, 100)
    assert isinstance(some, Tensor) and isinstance(part, QTensor)
    at = places(960, 100, x.device)
    assert torch.equal(some, x.reshape(-1)[at])
    assert torch.equal(part.dequantize(), q.dequantize().reshape(-1)[at])
    assert sampled(x, 960) is x


def test_a_sample_measures_what_the_whole_tensor_has() -> None:
    whole, part = converted(), converted()
    for model, samples in ((whole, 10**6), (part, 200)):
        torch.manual_seed(7)
        with Monitor(model, 1, samples=samples) as monitor:
            trained(model, sgd(model), 1)
        rows = monitor.rows
        if model is whole:
            exact = rows
    assert len(rows) == len(exact)
    for row, full in zip(rows, exact, strict=True):
        assert row.elements == min(full.elements, 200)
        assert row.scale == full.scale  # all granules
        # 200 elements: the noise power is known to 1 / sqrt(200) of its own spread, 4 sigma
        if "output" in row.role or row.role == "grad_input":
            assert row.sqnr_db == pytest.approx(full.sqnr_db, abs=3)


# The training is the same -------------------------------------------------------------------------

RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "int8": lambda: {"bits": 8, "norm": "range"},
    "banner2018": lambda: {"recipe": "banner2018"},
    "bf16 unit, narrow": lambda: {"recipe": replace(recipes.int8(unit="bf16"), activation=bf16)},
}


@pytest.mark.parametrize("way", ["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_training_is_the_same_bit_for_bit(options: Callable[[], dict[str, Any]], way: str) -> None:
    found = []
    for every in (None, 1, 2):
        model = converted(way, **options())
        optimizer = sgd(model)
        torch.manual_seed(7)
        if every is None:
            trained(model, optimizer, 5, micro=2)
        else:
            with Monitor(model, every, layers=2) as monitor:
                trained(model, optimizer, 5, micro=2)
            assert {row.step for row in monitor.rows} == set(range(0, 5, every))
        grads = {n: p.grad for n, p in model.named_parameters()}
        found.append((model.state_dict(), grads, torch.get_rng_state()))
    (plain, grads, noise), *others = found
    assert any("noise_count" in name for name in plain)
    for state, other, later in others:
        assert state.keys() == plain.keys()
        assert [name for name in plain if not torch.equal(plain[name], state[name])] == []
        assert all(torch.equal(grads[name], other[name]) for name in grads)  # type: ignore[arg-type]
        assert torch.equal(noise, later)


def test_under_autocast_training_is_the_same_too() -> None:
    models = [converted(norm="range") for _ in range(2)]
    with Monitor(models[1], 1):
        for model in models:
            torch.manual_seed(7)
            trained(model, sgd(model), 3, autocast=True)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


def groups() -> nn.Module:
    return nn.Sequential(nn.Conv1d(5, 10, 3, groups=5), nn.ReLU(), nn.ConvTranspose1d(10, 4, 3))


@pytest.mark.parametrize(
    ("make", "x", "tensors"),
    [
        (attention, normal(3, 5, 16), 50),
        (groups, normal(3, 5, 16).double(), 12),
        (groups, normal(3, 5, 16).half(), 12),
        (groups, normal(3, 5, 16)[:0], 12),
    ],
    ids=["attention", "fp64", "fp16", "empty"],
)
def test_other_layers_and_dtypes_train_the_same_too(
    make: Callable[[], nn.Module], x: Tensor, tensors: int
) -> None:
    states = []
    for monitored in (False, True):
        torch.manual_seed(0)
        model = quantize(make().to(x.dtype), bits=8)
        optimizer = sgd(model)
        with Monitor(model, 1 if monitored else 10**6, layers=None) as monitor:
            if not monitored:
                monitor.close()
            for _ in range(3):
                optimizer.zero_grad()
                model(x).float().square().sum().backward()
                optimizer.step()
        states.append(model.state_dict())
    assert len({(row.layer, row.role) for row in monitor.rows}) == tensors
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_step_that_is_not_recorded_has_no_probe_and_takes_turns_else() -> None:
    model = converted()
    optimizer = sgd(model)
    with Monitor(model, every=3, layers=3) as monitor:
        for step in range(10):
            turn = [["first", "middle.2", "middle.5"], ["last"]][step // 3 % 2]
            assert probes(model) == (turn if step % 3 == 0 else [])
            trained(model, optimizer, 1)
            assert monitor.step == step + 1
        assert probes(model) == []
    assert [layers_at(monitor, step) for step in (0, 3, 6, 9)] == [
        ["first", "middle.2", "middle.5"], ["last"], ["first", "middle.2", "middle.5"], ["last"]
    ]  # fmt: skip
    assert {row.step for row in monitor.rows} == {0, 3, 6, 9}


@pytest.mark.parametrize("way", ["plain", "reentrant", "not reentrant"])
def test_accumulated_forwards_are_one_step_and_repeated_ones_count_once(way: str) -> None:
    model = converted(way)
    with Monitor(model, 1) as monitor:
        trained(model, sgd(model), 2, micro=3)
        assert monitor.step == 2
    roles = {row.role: row for row in monitor.rows if row.step == 1 and row.layer == "middle.5"}
    assert len(roles) == 7
    for role, size in (("input", 6 * 8 * 36), ("output", 6 * 4 * 16), ("grad_weight", 288)):
        assert roles[role].elements == 3 * size


def test_an_operation_in_place_after_a_layer_is_noted_not_refused() -> None:
    torch.manual_seed(0)
    model = quantize(nn.Linear(4, 3), bits=8)
    with Monitor(model, 1) as monitor:
        x = normal(5, 4) * torch.ones((), requires_grad=True)
        y = model(x)
        x.detach().mul_(2)  # int8 keeps codes: nothing of it is needed
        y.sum().backward()
        monitor.end_step()
    row = monitor.rows[-1]
    assert (row.role, row.elements) == ("grad_weight", 0) and "changed in place" in row.note
    assert [r.elements > 0 for r in monitor.rows[:-1]] == [True] * (len(monitor.rows) - 1)


def test_evaluation_is_not_recorded() -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        model.eval()
        model(X)
        monitor.end_step()
        assert monitor.rows == ()
        model.train()
        trained(model, sgd(model), 1)
        model.eval()
        model(X)
    assert {row.step for row in monitor.rows} == {1}


# What ends a step ---------------------------------------------------------------------------------


def test_optimizers_that_take_turns_end_a_step_together_and_others_none() -> None:
    model, other = converted(), nn.Linear(2, 2)
    own = list(model.parameters())
    first, second = torch.optim.SGD(own[:3], lr=0.1), torch.optim.AdamW(own[3:])
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)
    with Monitor(model, 1) as monitor:
        for step in range(1, 4):
            stranger.step()
            assert monitor.step == step - 1
            first.step()
            second.step()
            assert monitor.step == step
        second.step()  # alone from here on
        second.step()
        assert monitor.step == 5
        del second
        third = torch.optim.SGD(own[3:], lr=0.1)
        third.step()
        third.step()
        assert monitor.step == 6


def test_another_optimizer_after_the_first_is_gone_counts_at_once() -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        trained(model, sgd(model), 2)
        gc.collect()
        trained(model, sgd(model), 2)
        assert monitor.step == 4


def test_updates_within_the_backward_pass_end_no_step() -> None:
    model = converted()
    own = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for p in own:
        p.register_post_accumulate_grad_hook(lambda p: own[p].step())
    with Monitor(model, 1) as monitor:
        nn.functional.cross_entropy(model(X), TARGETS).backward()
        assert monitor.step == 0
        monitor.end_step()
    assert {"grad_weight", "grad_input"} <= {row.role for row in monitor.rows}


# Bounds, files, resuming --------------------------------------------------------------------------


def test_every_second_record_of_the_older_half_makes_room() -> None:
    assert thinned_out(set(range(0, 90, 10)), 10, 1) == {10, 30}
    # two turns lose alike: 0 20 40 60 80, and 10 30 50 70
    assert thinned_out(set(range(0, 90, 10)), 10, 2) == {20, 30}
    model = converted()
    optimizer = sgd(model)
    with Monitor(model, 1, layers=2, keep=8) as monitor:
        for step in range(40):
            trained(model, optimizer, 1)
            steps = sorted({row.step for row in monitor.rows})
            assert len(steps) <= 8 and steps[0] == 0 and steps[-1] == step
            assert len(steps) + monitor.thinned == step + 1
            if step > 8:
                assert {s % 2 for s in steps} == {0, 1}
    with pytest.raises(ValueError, match=r"step 3 is not .*thinned out.*nearest"):
        monitor.report(3)


def test_a_resumed_record_is_that_of_a_run_that_never_stopped() -> None:
    model = converted()
    optimizer = sgd(model)
    options: dict[str, Any] = {"every": 2, "layers": 3, "keep": 8, "samples": 500}
    monitor = Monitor(model, **options)
    torch.manual_seed(3)
    for step in range(40):
        if step == 25:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), monitor.state_dict()], file)
            file.seek(0)
            noise = torch.get_rng_state()
        trained(model, optimizer, 1)
    monitor.close()
    weights, momenta, record = torch.load(file, weights_only=True)
    again = converted()
    optimizer = sgd(again)
    with Monitor(again, **options) as other:
        again.load_state_dict(weights)
        optimizer.load_state_dict(momenta)
        other.load_state_dict(record)
        torch.set_rng_state(noise)
        trained(again, optimizer, 15)
    assert monitor.thinned > 0 and monitor.step == other.step == 40
    assert other.state_dict() == monitor.state_dict()
    assert other.rows == monitor.rows


def test_the_file_gives_every_row_back(tmp_path: Path) -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        model(X * math.nan)
        monitor.end_step()
        trained(model, sgd(model), 1)
    path = monitor.save(tmp_path / "monitor.jsonl")
    header, *rest = map(json.loads, path.read_text().splitlines())
    assert (header["every"], header["step"], header["binades"]) == (1, 2, [-32, 15])
    assert len(rest) == len(monitor.rows)
    back = read_monitor(path)
    assert list(map(repr, back)) == list(map(repr, monitor.rows))  # a NaN equals none
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        monitor.save(tmp_path / "monitor.csv")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_record_from_before_a_figure_came_is_read() -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        trained(model, sgd(model), 1)
    (line, *_) = monitor.state_dict()["rows"].splitlines()
    values = json.loads(line)
    older = {name: value for name, value in values.items() if name not in ("update", "reach")}
    assert _row(older) == replace(_row(values), update=None, reach=None)
    for wrong in ({**values, "other": 1}, {n: v for n, v in values.items() if n != "layer"}):
        with pytest.raises(ValueError, match="no row of a monitor"):
            _row(wrong)


def test_a_report_is_that_of_inspect() -> None:
    model = converted()
    torch.manual_seed(5)
    seen = inspect(model, X, TARGETS)
    torch.manual_seed(5)
    with Monitor(model, 10, samples=10**6) as monitor:
        trained(model, sgd(model), 1)
    report = monitor.report()
    assert [(r.layer, r.role) for r in report.rows] == [(r.layer, r.role) for r in seen.rows]
    for row, other in zip(report.rows, seen.rows, strict=True):
        assert row.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)
        assert (row.clipped, row.zeroed, row.note) == (other.clipped, other.zeroed, other.note)
        assert row.saturated == other.saturated
    assert "SQNR" in str(report) and report == monitor.report(0)


def test_copies_are_not_monitored_and_the_forgotten_is_gone() -> None:
    model = converted()
    monitor = Monitor(model, 1)
    assert len(probes(model)) == 4
    assert probes(copy.deepcopy(model)) == []
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert probes(torch.load(file, weights_only=False)) == []
    inspect(model, X, TARGETS)
    monitor.end_step()
    assert monitor.rows == ()
    del monitor
    assert probes(model) == []
    trained(model, sgd(model), 1)


def test_a_report_says_which_layers_were_not_in_turn() -> None:
    model = converted()
    with Monitor(model, 1, layers=3) as monitor:
        trained(model, sgd(model), 2)
    assert (
        monitor.report(0)
        .table()
        .endswith("\n3 of 4 layers; the others take turns (layers=None: all at once)")
    )
    assert monitor.report(1).overview().endswith(monitor.report(1).remark)
    assert monitor.report(1).remark.startswith("1 of 4 layers")
    with Monitor(model, 1, layers=None) as monitor:
        trained(model, sgd(model), 1)
    assert monitor.report().remark == ""


def test_closed_it_keeps_what_it_has_and_records_no_more() -> None:
    model = converted()
    optimizer = sgd(model)
    with Monitor(model, 1) as monitor:
        trained(model, optimizer, 1)
        model(X)
    assert probes(model) == [] and layers_at(monitor, 0) != [] and monitor.step == 1
    monitor.load_state_dict(monitor.state_dict())
    trained(model, optimizer, 1)
    monitor.close()
    assert {row.step for row in monitor.rows} == {0} and probes(model) == []


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"every": 0}, ValueError, "every: got 0"),
        ({"every": 2.0}, TypeError, "every: got 2.0"),
        ({"layers": 0}, ValueError, "layers: got 0"),
        ({"samples": 0}, ValueError, "samples: got 0"),
        ({"keep": 7, "layers": 2}, ValueError, "keep: got 7, need an integer of at least 8"),
    ],
)
def test_bad_settings_are_refused(options: Any, kind: type[Exception], text: str) -> None:
    model = converted()
    with pytest.raises(kind, match=text):
        Monitor(model, **options)
    assert probes(model) == []


def test_models_it_cannot_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="no quantized layer"):
        Monitor(Net())
    with pytest.raises(ValueError, match="no quantized layer"):
        Monitor(converted(recipe="fp32"))
    with pytest.raises(TypeError, match=r"need a torch\.nn\.Module"):
        Monitor("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is compiled"):
        Monitor(torch.compile(converted(), backend="eager"))  # type: ignore[arg-type]
    model: Any = converted()
    model.middle.compile(backend="eager")
    with pytest.raises(ValueError, match="middle is compiled"):
        Monitor(model)
    model = converted()
    with Monitor(model) as monitor:
        with pytest.raises(ValueError, match="monitored already"):
            Monitor(model)
        assert len(probes(model)) == 4
        with pytest.raises(ValueError, match=r"nothing is recorded.*end_step"):
            monitor.report()


@pytest.mark.filterwarnings("ignore")  # torch's own, in its tracer
@pytest.mark.parametrize("fullgraph", [False, True], ids=["with breaks", "one graph"])
def test_a_model_that_is_compiled_later_is_refused_where_it_would_be_measured(
    fullgraph: bool,
) -> None:
    torch._dynamo.reset()
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), bits=8)
    with Monitor(model, 2) as monitor:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        with pytest.raises(Exception, match="runs compiled"):
            compiled(normal(3, 4))
        monitor.end_step()
        assert compiled(normal(3, 4)).shape == (3, 4)  # no probe on it
        assert monitor.rows == ()
    torch._dynamo.reset()


def test_a_state_of_something_else_is_refused_with_nothing_changed() -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        trained(model, sgd(model), 1)
        good = monitor.state_dict()
        bad = [
            {},
            {**good, "every": 2},
            {**good, "names": ["a"]},
            {**good, "step": -1},
            {**good, "thinned": "1"},
            {**good, "rows": good["rows"][:-5]},
            {**good, "rows": good["rows"].replace('"step": 0', '"step": "0"')},
            {**good, "rows": good["rows"].replace('"values": [', '"values": ["a", ')},
            {**good, "rows": 5},
            {**good, "medians": [1]},
            {**good, "medians": [["last", "weight", 10**400]]},
            {**good, "codes": {"last": [[math.inf]]}},
            {**good, "codes": {"last": [[0], [0, 1]]}},
            {**good, "codes": {"last": [[0]] * 9}},
            {**good, "codes": [1]},
        ]
        for state in bad:
            with pytest.raises((ValueError, TypeError)):
                monitor.load_state_dict(state)
        assert monitor.state_dict() == good
        monitor.load_state_dict(good)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    for text in ("", "{}\n{}\n", "[]\n", "{}\n[\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="no record of a Monitor"):
            read_monitor(path)


# The plot -----------------------------------------------------------------------------------------


def test_the_plot_shows_chosen_layers_and_roles(tmp_path: Path) -> None:
    model = converted()
    with Monitor(model, 1) as monitor:
        with pytest.raises(ValueError, match="nothing to plot"):
            monitor.plot(tmp_path / "none.png")
        trained(model, sgd(model), 3)
    monitor.plot(tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("a.svg", "b.svg"):
        monitor.plot(tmp_path / name, layers=["last"], roles=["weight", "grad_weight"])
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<!-- last -->" in text and "<!-- grad_weight -->" in text
    assert "<!-- first -->" not in text and "<!-- input -->" not in text
    with pytest.raises(ValueError, match=r"layers: got 'lost'.*did you mean 'last'"):
        monitor.plot(tmp_path / "c.svg", layers=["lost"])
    with pytest.raises(ValueError, match="roles: got 'weight', need a list"):
        monitor.plot(tmp_path / "c.svg", roles="weight")


# The command line ---------------------------------------------------------------------------------


def test_a_monitored_run_is_the_run_and_resumes_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, whole, cut = (tmp_path / name for name in ("plain", "whole", "cut"))
    train(small(plain), say=quiet)
    result = train(small(whole, monitor=3), say=quiet)
    assert_same_run(plain / "run", whole / "run")
    assert result.monitor is not None
    rows = read_monitor(whole / "run" / "monitor.jsonl")
    assert {row.step for row in rows} == {0, 3, 6, 9} and tuple(rows) == result.monitor.rows
    assert "every 3 steps: monitor.jsonl, .png" in str(result)
    assert (whole / "run" / "monitor.png").stat().st_size > 10_000
    assert not (plain / "run" / "monitor.jsonl").exists()

    cut_at_step(monkeypatch, 6)
    with pytest.raises(RuntimeError, match="cut here"):
        train(small(cut, monitor=3, checkpoint_every=4), say=quiet)
    monkeypatch.undo()
    assert {row.step for row in read_monitor(cut / "run" / "monitor.jsonl")} == {0, 3}
    train(small(cut, monitor=3, checkpoint_every=4, resume=True), say=quiet)
    assert_same_run(cut / "run", whole / "run")
    first, second = (run / "run" / "monitor.jsonl" for run in (cut, whole))
    assert first.read_bytes() == second.read_bytes()


def cut_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The quantized model's step of that number fails."""
    real = Branch.step

    def failing(self: Branch, *args: Any, **options: Any) -> dict[str, float]:
        if options["step"] == step:
            raise RuntimeError("cut here")
        return real(self, *args, **options)

    monkeypatch.setattr(Branch, "step", failing)


def test_a_checkpoint_of_before_monitors_resumes_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at_step(monkeypatch, 6)
    with pytest.raises(RuntimeError, match="cut here"):
        train(small(tmp_path, checkpoint_every=4), say=quiet)
    monkeypatch.undo()
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert "monitor" not in content and content["config"].pop("monitor") is None
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"another monitor \(stored None, now 3\)"):
        train(small(tmp_path, monitor=3, resume=True), say=quiet)
    assert train(small(tmp_path, resume=True), say=quiet).monitor is None


@pytest.mark.parametrize("damage", ["missing", "of another step", "damaged"])
def test_a_checkpoint_whose_record_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    train(small(tmp_path, epochs=1, monitor=3), say=quiet)
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    if damage == "missing":
        del content["monitor"]
    elif damage == "of another step":
        content["monitor"]["step"] += 1
    else:
        content["monitor"]["rows"] = "rows"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"[mM]onitor"):
        train(small(tmp_path, epochs=1, monitor=3, resume=True), say=quiet)


def test_the_command_line_refuses_what_cannot_be_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, text in (
        (["fp32", "--monitor", "10"], "recipe 'fp32' quantizes no product"),
        (["int8", "--monitor", "0"], "monitor: got 0"),
        (["int8", "--monitor", "1.5"], "monitor: got 1.5"),
    ):
        assert main(["train", *flags, "--model", "mlp", "--runs-dir", str(tmp_path)]) == 2
        assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
