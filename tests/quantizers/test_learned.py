"""Quantizers with learned steps against their papers' formulas, in float64, and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantizers import (
    LSQ,
    PACT,
    IntFormat,
    LearnedClip,
    LSQPlus,
    blocks,
    groups,
    per_axis,
    per_token,
)

SIGNED = IntFormat(3, symmetric=False)
UNSIGNED = IntFormat(3, signed=False)

Array = Any


def lsq(x: Array, state: dict[str, Array], low: int, high: int) -> tuple[Array, Array, Array]:
    """Esser et al. 2020, equations 1 to 3 and 5: value, d value/d x, d value/d step."""
    ratio = x / state["step"]
    value = np.rint(np.clip(ratio, low, high)) * state["step"]
    inside = (ratio > low) & (ratio < high)
    slope = np.where(ratio <= low, low, np.where(ratio >= high, high, np.rint(ratio) - ratio))
    return value, inside, {"step": slope}


def lsq_plus(x: Array, state: dict[str, Array], low: int, high: int) -> tuple[Array, Array, Array]:
    """Bhalgat et al. 2020, equations 1 to 6."""
    value, inside, slope = lsq(x - state["offset"], state, low, high)
    return value + state["offset"], inside, {**slope, "offset": np.where(inside, 0.0, 1.0)}


def pact(x: Array, state: dict[str, Array], low: int, high: int) -> tuple[Array, Array, Array]:
    """Choi et al. 2018, equations 1 to 3."""
    clip = state["clip"]
    kept = 0.5 * (np.abs(x) - np.abs(x - clip) + clip)
    value = np.rint(kept * high / clip) * clip / high
    return value, (x >= 0) & (x < clip), {"clip": (x >= clip).astype(float)}


def clipped(x: Array, state: dict[str, Array], low: int, high: int) -> tuple[Array, Array, Array]:
    """Jain et al. 2020, equations 4 to 8, the step not a power of two."""
    step = 2.0 ** state["log2_clip"] / high
    code = np.rint(x / step)
    inside = (code >= low) & (code <= high)
    slope = np.where(inside, code - x / step, np.clip(code, low, high))
    return np.clip(code, low, high) * step, inside, {"log2_clip": step * math.log(2) * slope}


def powers(x: Array, state: dict[str, Array], low: int, high: int) -> tuple[Array, Array, Array]:
    """The same, the step a power of two: 2^ceil(log2 t) / 2^(b - 1)."""
    step = 2.0 ** (np.ceil(state["log2_clip"]) - 2)
    return clipped(x, {"log2_clip": np.log2(step * high)}, low, high)


KINDS: dict[str, tuple[Any, dict[str, float], Callable[..., Any]]] = {
    "lsq": (LSQ(format=SIGNED, scaled_by="none"), {"step": 0.37}, lsq),
    "lsq unsigned": (LSQ(format=UNSIGNED, scaled_by="none"), {"step": 0.21}, lsq),
    "lsq plus": (
        LSQPlus(format=UNSIGNED, scaled_by="none"), {"step": 0.37, "offset": -0.9}, lsq_plus,
    ),
    "pact": (PACT(format=UNSIGNED), {"clip": 1.3}, pact),
    "clip": (LearnedClip(format=SIGNED), {"log2_clip": 0.3}, clipped),
    "clip power": (LearnedClip(format=SIGNED, power_of_two=True), {"log2_clip": 0.3}, powers),
}  # fmt: skip


def state_of(values: dict[str, float], count: int = 0) -> dict[str, Tensor]:
    """fp32 tensors; other values for each of `count` granules."""
    spread = torch.linspace(0.5, 1.5, count) if count else torch.ones(())
    return {name: value * spread for name, value in values.items()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("granules", [0, 5])
def test_values_and_gradients_are_the_papers(name: str, granules: int) -> None:
    quantizer, values, paper = KINDS[name]
    x = torch.randn(7, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0], x[0, 1, 0] = 0.0, 40.0
    grad = torch.randn(7, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if granules:
        quantizer = replace(quantizer, granularity=per_axis(1))
    state = state_of(values, granules)
    wide = {k: v.double().numpy().reshape(1, -1, 1) for k, v in state.items()}
    value, inside, slopes = paper(x.numpy(), wide, quantizer.format.low, quantizer.format.high)
    q = quantizer(x, state=state)
    np.testing.assert_allclose(q.dequantize().numpy(), value, rtol=3e-7, atol=1e-7)
    of_x, learned = quantizer.backward(grad, x, state)
    np.testing.assert_array_equal(of_x.numpy(), grad.numpy() * inside)
    assert set(learned) == set(slopes) == set(quantizer.learned)
    for key, slope in slopes.items():
        own = (grad.numpy() * slope).sum((0, 2) if granules else None)
        np.testing.assert_allclose(learned[key].numpy(), own, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["lsq", "lsq plus", "clip"])
def test_gradients_are_those_of_autograd_with_rounding_that_passes_them(name: str) -> None:
    quantizer, values, _ = KINDS[name]
    x = torch.randn(300, dtype=torch.float64, requires_grad=True)
    leaves = {k: torch.tensor(v).double().requires_grad_() for k, v in values.items()}
    low, high = quantizer.format.low, quantizer.format.high
    if "log2_clip" in leaves:
        step = leaves["log2_clip"].exp2() / high
    else:
        step = leaves["step"]
    offset = leaves.get("offset", torch.zeros((), dtype=torch.float64))
    ratio = (x - offset) / step
    if name == "clip":  # rounded first, clamped then
        ratio = (ratio + (ratio.round() - ratio).detach()).clamp(low, high)
    else:
        ratio = ratio.clamp(low, high)
        ratio = ratio + (ratio.round() - ratio).detach()
    grad = torch.randn(300, dtype=torch.float64)
    (ratio * step + offset).backward(grad)
    state = {k: torch.tensor(v) for k, v in values.items()}
    of_x, learned = quantizer.backward(grad, x.detach(), state)
    assert x.grad is not None
    torch.testing.assert_close(of_x, x.grad, rtol=1e-12, atol=1e-12)
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(learned[key].double(), leaf.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by, count", [("tensor", 140), ("sample", 20)])
def test_the_gradient_of_a_step_is_scaled_by_what_shares_it(by: Any, count: int) -> None:
    x, grad = torch.randn(7, 5, 4), torch.randn(7, 5, 4)
    state = {"step": torch.tensor(0.4)}
    plain = LSQ(format=SIGNED, scaled_by="none").backward(grad, x, state)[1]["step"]
    scaled = LSQ(format=SIGNED, scaled_by=by).backward(grad, x, state)[1]["step"]
    torch.testing.assert_close(scaled, plain / math.sqrt(count * SIGNED.high), rtol=1e-6, atol=0)


def test_first_tensors_set_what_the_papers_say() -> None:
    x = torch.randn(6, 50, dtype=torch.float64) * torch.linspace(0.1, 3, 6).double()[:, None] + 0.3
    x[2] = 0.0
    rows = {"granularity": per_axis(0)}

    def start(quantizer: Any) -> dict[str, Tensor]:
        state: dict[str, Tensor] = quantizer.init_parameters(x.shape)
        quantizer.fit(x, state)
        return state

    mean = x.abs().mean(1)
    mean[2] = x.abs().mean()  # a channel of zeros has no step of its own
    step = start(LSQ(format=SIGNED, **rows))["step"]
    torch.testing.assert_close(step.double(), 2 * mean / math.sqrt(3), rtol=1e-6, atol=0)
    ends = (x.mean(1).abs() + 3 * x.std(1, correction=0)) / 4
    ends[2] = ends.max()
    step = start(LSQ(format=SIGNED, start="deviation", **rows))["step"]
    torch.testing.assert_close(step.double(), ends, rtol=1e-6, atol=0)
    clip = start(LearnedClip(format=SIGNED))["log2_clip"]
    torch.testing.assert_close(clip.double(), x.abs().max().log2(), rtol=1e-6, atol=0)
    assert start(PACT(format=UNSIGNED))["clip"] == x.max().float()
    assert start(PACT(format=UNSIGNED, start=6.0))["clip"] == 6.0


def test_a_first_tensor_gives_lsq_plus_less_error_than_its_whole_range() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    x[0] = 40.0  # an outlier, which the range would follow
    quantizer = LSQPlus(format=UNSIGNED)
    state = quantizer.init_parameters(x.shape)
    quantizer.fit(x, state)
    whole = {"step": (x.max() - x.min()) / 7, "offset": x.min()}
    errors = [(quantizer(x, state=s).elements - x).square().mean() for s in (state, whole)]
    assert errors[0] < errors[1] / 2


def test_a_constant_first_tensor_gives_lsq_plus_a_step_that_learns() -> None:
    quantizer, x = LSQPlus(format=UNSIGNED, granularity=per_axis(0)), torch.full((2, 4), 3.0)
    state = quantizer.init_parameters(x.shape)
    quantizer.fit(x, state)
    assert bool((state["step"] > 0).all())
    torch.testing.assert_close(quantizer(x, state=state).elements, x)


@pytest.mark.parametrize("name", KINDS)
def test_a_non_finite_element_is_seen_and_zeros_stay_zero(name: str) -> None:
    quantizer, values, _ = KINDS[name]
    state = state_of(values)
    for bad in (float("nan"), float("inf")):
        x = torch.tensor([1.0, bad, 0.5])
        assert not quantizer(x, state=state).dequantize()[1].isfinite()
    if name != "lsq plus":  # of which 0 is no level
        assert (quantizer(torch.zeros(3), state=state).dequantize() == 0).all()
    if "step" in values:
        nothing = {**state, "step": torch.zeros(())}
        found = quantizer(torch.ones(3), state=nothing).dequantize()
        assert (found == state.get("offset", torch.zeros(()))).all()


def test_a_step_below_zero_counts_as_its_magnitude() -> None:
    x, grad = torch.randn(50), torch.randn(50)
    quantizer = LSQ(format=SIGNED)
    up, down = ({"step": torch.tensor(s)} for s in (0.4, -0.4))
    assert torch.equal(quantizer(x, state=up).dequantize(), quantizer(x, state=down).dequantize())
    assert (
        quantizer.backward(grad, x, up)[1]["step"] == -quantizer.backward(grad, x, down)[1]["step"]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_dtype_of_what_comes_in(dtype: torch.dtype) -> None:
    for quantizer, values, _ in KINDS.values():
        state = state_of(values)
        x, grad = torch.randn(9).to(dtype), torch.randn(9).to(dtype)
        of_x, learned = quantizer.backward(grad, x, state)
        assert of_x.dtype is dtype
        wide, same = quantizer.backward(grad.float(), x.float(), state)
        assert torch.equal(of_x.float(), wide)
        assert all(torch.equal(learned[key], same[key]) for key in same)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: LSQ(format="e4m3"), "IntFormat"),
        (lambda: LSQ(format="int4", granularity=blocks(32)), "learned"),
        (lambda: LSQ(format="int4", granularity=groups(32)), "learned"),
        (lambda: LSQ(format="int4", granularity=per_token), "learned"),
        (lambda: LSQ(format="int4", scaled_by="all"), "scaled_by"),
        (lambda: LSQ(format="int4", start="max"), "start"),
        (lambda: LSQ(format=UNSIGNED, start="deviation"), "start"),
        (lambda: LSQPlus(format="int4", start="deviation"), "start"),
        (lambda: PACT(format="int4"), "unsigned"),
        (lambda: PACT(format=UNSIGNED, start=0.0), "start"),
        (lambda: LearnedClip(format="int4", power_of_two=1), "power_of_two"),
        (lambda: LSQ(format="int4")(torch.ones(3)), "step"),
        (lambda: LSQ(format="int4")(torch.ones(3), state={"step": torch.ones(2)}), "init_param"),
        *[
            (lambda q=q: q.fit(torch.ones(0, 3), q.init_parameters((0, 3))), "no element")
            for q in (PACT(format=UNSIGNED), LearnedClip(format="int4"), LSQPlus(format="int4"))
        ],
        (
            lambda: LSQ(format="int4").backward(
                torch.ones(2), torch.ones(3), {"step": torch.ones(())}
            ),
            "shape",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()
