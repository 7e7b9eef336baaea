"""Updates in low precision: steps by hand, what they keep, what they refuse."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtrain
from qtrain import Expanded, Update, low_precision_
from qtrain.weights.updates.named import find
from quantizers import (
    FloatFormat,
    Quantizer,
    bf16,
    blocks,
    dynamic8,
    e4m3,
    ema,
    groups,
    int8,
    per_axis,
    round_to,
    stochastic,
    udynamic8,
)

F = np.float32


def bf(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(F)


def few_bits(seed: int, count: int, bits: int = 6) -> np.ndarray:
    """Numbers of so few bits that squares, and sums with multiples, are exact in fp32."""
    draw = np.random.default_rng(seed)
    return (draw.integers(-(2**bits), 2**bits, count) * 2.0**-bits).astype(F)


class Lion(torch.optim.Optimizer):
    """An optimizer of a user's own (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                b1, b2 = group["betas"]
                p.add_(state["exp_avg"].lerp(p.grad, 1 - b1).sign_(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - b2)


def test_sgd_with_momentum_and_decay_equals_numpy() -> None:
    """Powers of two as factors, so that no multiplication rounds and none can be fused wrongly."""
    w, lr, mu, decay = few_bits(1, 257), F(2**-7), F(0.5), F(2**-5)
    p = nn.Parameter(torch.tensor(w * F(3.3)))
    sgd = torch.optim.SGD([p], lr=float(lr), momentum=float(mu), weight_decay=float(decay))
    low_precision_(sgd, Update(weight=bf16, states={"momentum_buffer": bf16}, gradient="e5m2"))
    want, buffer = bf(w * F(3.3)), None
    assert np.array_equal(p.detach().numpy(), want)
    for step in range(20):
        g = few_bits(step, 257, 9)
        p.grad = torch.tensor(g)
        sgd.step()
        d = g.astype(ml_dtypes.float8_e5m2).astype(F) + decay * want
        buffer = d if buffer is None else mu * buffer + d
        want = bf(want - lr * buffer)
        buffer = bf(buffer)
        assert np.array_equal(p.detach().numpy(), want), step
        assert np.array_equal(sgd.state[p]["momentum_buffer"].numpy(), buffer)


def test_adam_equals_numpy() -> None:
    w, lr, b1, b2, eps = few_bits(2, 128), 2**-9, 0.5, 0.75, 2**-20
    p = nn.Parameter(torch.tensor(w))
    adam = torch.optim.Adam([p], lr=lr, betas=(b1, b2), eps=eps, foreach=False)
    low_precision_(adam, Update(weight="bf16", states={"exp_avg": "bf16", "exp_avg_sq": "bf16"}))
    want, m, v = bf(w), np.zeros(128, F), np.zeros(128, F)
    for step in range(1, 13):
        g = few_bits(step + 50, 128)
        p.grad = torch.tensor(g)
        adam.step()
        m = m + F(0.5) * (g - m)
        v = F(b2) * v + F(1 - b2) * (g * g)
        size, root = lr / (1 - b1**step), math.sqrt(1 - b2**step)
        want = bf(want + (F(-size) * m) / (np.sqrt(v) / F(root) + F(eps)))
        m, v = bf(m), bf(v)
        assert np.array_equal(adam.state[p]["exp_avg"].numpy(), m), step
        assert np.array_equal(adam.state[p]["exp_avg_sq"].numpy(), v), step
        assert np.array_equal(p.detach().numpy(), want), step


def hundred(**kwargs: Any) -> tuple[nn.Parameter, qtrain.LowPrecision]:
    """100 steps of -1e-4 from 1 of 4,096 weights."""
    p = nn.Parameter(torch.ones(4096))
    sgd = torch.optim.SGD([p], lr=1e-4)
    handle = low_precision_(sgd, Update(weight=bf16, **kwargs))
    for _ in range(100):
        p.grad = torch.ones(4096)
        sgd.step()
    return p, handle


def test_nearest_loses_what_stochastic_and_kahan_keep() -> None:
    p, nearest = hundred()
    assert (p == 1).all() and nearest.report()["0", "weight"].share == 1
    p, _ = hundred(rounding=stochastic())
    # a weight's steps: at most 100 of 2^-8 (below 1), each with a variance of at most u * step
    deviation = math.sqrt(100 * 1e-4 * 2**-8 / 4096)
    assert abs(p.mean().item() - 0.99) < 5 * deviation
    p, kahan = hundred(compensation="bf16")
    assert (p == p[0]).all() and abs(p[0].item() - 0.99) <= 2**-8
    assert kahan.report()["0", "weight"].lost == 0


def test_the_mean_of_stochastic_updates_is_the_update() -> None:
    """n = 2^18 weights a case, 5 sigma: a false alarm in 6e-7 of cases, were the seed not fixed."""
    count = 2**18
    for seed, part in enumerate((0.01, 0.3, 0.5, 0.97)):
        p = nn.Parameter(torch.full((count,), 1.5))
        sgd = torch.optim.SGD([p], lr=2**-7)
        low_precision_(sgd, Update(weight=bf16, rounding="stochastic"), seed=seed)
        p.grad = torch.full((count,), part)
        sgd.step()
        taken = ((1.5 - p.detach().double()) * 2**7).mean().item()
        assert abs(taken - part) < 5 * math.sqrt(part * (1 - part) / count)
        assert set(p.unique().tolist()) == {1.5, 1.5 - 2**-7}


def test_kahan_follows_a_wide_sum() -> None:
    """Random updates far below and above a step of bf16: within a step of the float64 sum, and
    bit for bit the formula in float64."""
    w = np.random.default_rng(3).normal(size=500).astype(F)
    p = nn.Parameter(torch.tensor(w))
    sgd = torch.optim.SGD([p], lr=1.0)
    low_precision_(sgd, Update(weight=bf16, compensation=bf16))
    want, wide, c = bf(w), bf(w).astype(np.float64), np.zeros(500)
    for step in range(300):
        g = (np.random.default_rng(step).normal(size=500) * 2.0**-12 + 2.0**-13).astype(F)
        p.grad = torch.tensor(g)
        sgd.step()
        u = (want - g).astype(F) - want
        y = u.astype(np.float64) + c
        new = nearest_bf16(want + y)
        c = nearest_bf16(y - (new.astype(np.float64) - want)).astype(np.float64)
        want, wide = new, wide - g
        assert np.array_equal(p.detach().numpy(), want), step
    step_size = 2.0 ** (np.floor(np.log2(np.abs(wide))) - 7)
    # what the compensation itself loses, half a step of it a step, is far below one of the weight
    assert (np.abs(want - wide) <= step_size * (0.5 + 300 * 2.0**-10)).all()


def nearest_bf16(x: np.ndarray) -> np.ndarray:
    """float64 to bf16 in one rounding: the nearer of the two neighbours, ties to even."""
    near = x.astype(ml_dtypes.bfloat16)
    candidates = [near, np.nextafter(near, ml_dtypes.bfloat16(np.inf)),
                  np.nextafter(near, ml_dtypes.bfloat16(-np.inf))]  # fmt: skip
    stack = np.stack([one.astype(np.float64) for one in candidates])
    error = np.abs(stack - x)
    odd = np.stack([one.view(np.uint16) & 1 for one in candidates])
    best = np.lexsort((odd, error), axis=0)[0]
    return np.take_along_axis(stack, best[None], 0)[0].astype(F)


MADE: dict[str, Any] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.01),
    "AdamW": lambda g: torch.optim.AdamW(g, lr=0.01, foreach=True, amsgrad=True),
    "fused": lambda g: torch.optim.AdamW(g, lr=0.01, fused=True),
    "Adagrad": lambda g: torch.optim.Adagrad(g, lr=0.1),
    "RMSprop": lambda g: torch.optim.RMSprop(g, lr=0.01, momentum=0.5, centered=True),
    "NAdam": lambda g: torch.optim.NAdam(g, lr=0.01),
    "Adafactor": lambda g: torch.optim.Adafactor(g, lr=0.01),
    "Lion": Lion,
}
KEPT = {
    "bf16": Update(weight=bf16, rounding=stochastic(8), states={"*": "bf16"}),
    "kahan": Update(weight=FloatFormat(6, 9), compensation="bf16", gradient="bf16"),
    "8-bit": Update(
        weight=Quantizer(format=int8, granularity=groups(32), rounding="stochastic"),
        states={"*": Quantizer(format=dynamic8, granularity=groups(64))},
    ),
    "expanded": Update(states={"*": Expanded(size=32, rounding="stochastic")}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    net.append(nn.Linear(16, 4))
    net[2].bias.requires_grad_(False)
    return net


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(32, 8)).square().mean().backward()
        optimizer.step()


def started(kind: str, update: Update, *, backwards: bool = False) -> tuple[Any, Any, Any]:
    net = network()
    groups_ = [{"params": [p]} for p in net.parameters()]
    optimizer = MADE[kind](groups_[::-1] if backwards else groups_)
    return net, optimizer, low_precision_(optimizer, update, model=net)


def bits(net: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in net.parameters()]


PAIRS = [(kind, "bf16") for kind in MADE]
PAIRS += [(kind, kept) for kind in ("SGD", "Adam") for kept in KEPT if kept != "bf16"]


@pytest.mark.parametrize(("kind", "kept"), PAIRS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(kind: str, kept: str) -> None:
    whole, optimizer, handle = started(kind, KEPT[kept])
    steps(whole, optimizer, 0, 6)
    first, optimizer, _ = started(kind, KEPT[kept])
    steps(first, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    model, state = torch.load(file, weights_only=True)
    then, optimizer, resumed = started(kind, KEPT[kept])
    then.load_state_dict(model)
    optimizer.load_state_dict(state)
    steps(then, optimizer, 3, 6)
    assert bits(whole) == bits(then)
    assert handle.report() == resumed.report() and handle.report().rows[0].steps == 6


@pytest.mark.parametrize("kind", MADE)
def test_weights_and_states_are_values_of_their_formats(kind: str) -> None:
    net, optimizer, _ = started(kind, KEPT["bf16"])
    steps(net, optimizer, 0, 3)
    for p in net.parameters():
        tensors = [p.detach(), *(v for n, v in optimizer.state.get(p, {}).items() if n != "step")]
        for x in (t for t in tensors if isinstance(t, Tensor) and t.dim()):
            assert torch.equal(x, round_to(x, bf16))


def test_noise_depends_on_names_and_seed_alone() -> None:
    """Neither on the order of groups, nor on who else steps, nor on torch's own random state."""
    runs = []
    for backwards in (False, True):
        net, optimizer, _ = started("SGD", KEPT["bf16"], backwards=backwards)
        steps(net, optimizer, 0, 4)
        runs.append(bits(net))
    assert runs[0] == runs[1]
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    low_precision_(optimizer, KEPT["bf16"], model=net, seed=1)
    steps(net, optimizer, 0, 4)
    assert bits(net) != runs[0]
    named = network()
    optimizer = torch.optim.SGD(list(named.named_parameters())[::-1], lr=0.1, momentum=0.9)
    low_precision_(optimizer, KEPT["bf16"])
    steps(named, optimizer, 0, 4)
    assert bits(named) == runs[0]


@pytest.mark.parametrize("kind", ["SGD", "fused"])
def test_a_skipped_step_changes_nothing(kind: str) -> None:
    """A GradScaler skips SGD's step altogether, and fused AdamW's within it, where what is owed
    would be rounded anew."""
    owing = Update(weight=bf16, rounding="stochastic", compensation=bf16, states={"*": "bf16"})
    net, optimizer, handle = started(kind, owing)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(seed: int, factor: float) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        scaler.scale(net(torch.randn(32, 8)).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0, 1.0)
    before = copy.deepcopy(optimizer.state_dict())
    weights = bits(net)
    step(1, math.inf)
    assert bits(net) == weights and scaler.get_scale() == 2.0
    after = optimizer.state_dict()
    assert str(after) == str(before)
    step(2, 1.0)
    assert bits(net) != weights and handle.report().rows[0].steps == 2


def test_fused_gradients_are_unscaled_before_they_are_rounded() -> None:
    net, optimizer, _ = started("fused", KEPT["kahan"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(net(torch.randn(32, 8)).square().mean()).backward()
    with pytest.raises(ValueError, match="unscale_"):
        scaler.step(optimizer)
    net, optimizer, handle = started("fused", KEPT["kahan"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(net(torch.randn(32, 8)).square().mean()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert handle.report().rows[0].steps == 1


def test_lost_updates_and_moments_are_counted() -> None:
    p = nn.Parameter(torch.tensor([1.0, 1.0, 2**-9, 1.0]))
    adam = torch.optim.Adam([{"params": [p]}], lr=2**-9, betas=(0.0, 0.0), eps=1e-8)
    handle = low_precision_(adam, Update(weight=bf16, states={"exp_avg_sq": e4m3}))
    assert (
        str(handle.report()).startswith("nothing counted: no step yet") and not handle.report().rows
    )
    for g in ([1.0, 2**-6, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2**-8, 2**-7, 2**-7, 1.0]):
        p.grad = torch.tensor(g)
        adam.step()
    weight, square = handle.report()["0", "weight"], handle.report()["0", "exp_avg_sq"]
    # every step is lr where there is a gradient, half a step of bf16 below 1: a tie that goes to 1
    assert (weight.seen, weight.lost, weight.times, weight.first, weight.last) == (7, 5, 2, 0, 2)
    assert (weight.most, weight.worst, weight.kept, weight.noisy) == (3, 2, "bf16", False)
    # e4m3 ends at 2^-9, and 2^-10 is a tie that goes to 0
    assert (square.seen, square.lost, square.most, square.worst) == (7, 4, 3, 2)
    assert "0: exp_avg_sq" in str(handle.report())
    with pytest.raises(KeyError):
        handle.report()["0", "exp_avg"]


def test_parameters_shared_frozen_or_without_a_gradient() -> None:
    net = network()
    net[0].weight = nn.Parameter(net[0].weight.detach())
    extra = nn.Parameter(torch.randn(3))
    net.register_parameter("unused", extra)
    net.register_parameter("again", net[2].weight)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    handle = low_precision_(optimizer, KEPT["bf16"], model=net)
    kept = extra.detach().clone()
    steps(net, optimizer, 0, 2)
    assert torch.equal(extra, kept) and torch.equal(kept, round_to(kept, bf16))
    names = {row.parameter for row in handle.report().rows}
    assert "unused" not in names and "2.bias" not in names and len(names) == 5


@pytest.mark.parametrize("slot", ["weight", "gradient", "states"])
def test_what_has_fewer_axes_than_blocks_is_a_row(slot: str) -> None:
    """A bias and a 0-d step as (1, n) and (1, 1), in the same noise."""
    tile = Quantizer(format=int8, granularity=blocks(4, 2), rounding=stochastic(8))
    update = Update(**{slot: {"exp_avg": tile} if slot == "states" else tile})  # type: ignore[arg-type]
    found = []
    for axes in (0, 2):
        net = nn.ParameterDict({"bias": torch.linspace(-3, 2, 7), "step": torch.tensor(0.3)})
        if axes:
            net = nn.ParameterDict({k: p.detach().reshape(1, -1) for k, p in net.items()})
        adam = torch.optim.Adam(net.parameters(), lr=0.1)
        low_precision_(adam, update, model=net)
        for k in range(1, 4):
            for p in net.values():
                p.grad = (p.detach() * k).cos()
            adam.step()
        found.append({k: (p.detach(), adam.state[p]["exp_avg"]) for k, p in net.items()})
    for name, own in found[0].items():
        for one, other in zip(own, found[1][name], strict=True):
            assert torch.equal(one.reshape(1, -1), other)


def test_groups_of_parameters_may_step_by_turns() -> None:
    net = network()
    first, *others = net.parameters()
    groups_ = [{"params": [first], "momentum": 0.9}, {"params": others}]
    optimizer = torch.optim.SGD(groups_, lr=0.1)
    handle = low_precision_(optimizer, Update(states={"momentum_buffer": "bf16"}), model=net)
    for trained in ([first], others, [first]):
        optimizer.zero_grad()
        for p in trained:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert handle.report()["0.weight", "momentum_buffer"].steps == 3


def test_remove_leaves_a_plain_optimizer() -> None:
    net, optimizer, handle = started("SGD", KEPT["bf16"])
    steps(net, optimizer, 0, 1)
    handle.remove()
    assert "low_precision" not in optimizer.state_dict()["state"]
    other = copy.deepcopy(optimizer)
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    steps(net, optimizer, 1, 2)
    assert any(not torch.equal(p, round_to(p.detach(), bf16)) for p in net.parameters())


@pytest.mark.parametrize("name", ["adam-8bit", "adam-fp8"])
def test_states_of_few_elements_stay_in_fp32(name: str) -> None:
    assert find(name).min_size == 4096  # bitsandbytes' min_8bit_size, torchao's _new_buffer

    def state(update: str | Update | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        large, small = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(4095))
        adam = torch.optim.Adam([large, small])
        if update is not None:
            low_precision_(adam, update)
        for p in (large, small):
            p.grad = torch.randn_like(p)
        adam.step()
        return adam.state[large]["exp_avg_sq"], adam.state[small]["exp_avg_sq"]

    (plain, small), (rounded, same) = state(None), state(name)
    assert torch.equal(same, small) and not torch.equal(rounded, plain)
    every = replace(find(name), min_size=0)
    assert every.identity != find(name).identity  # a checkpoint of one is not the other's
    assert not torch.equal(state(every)[1], small)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "nothing that is in low precision"),
        ({"weight": "bf17"}, "weight: unknown format"),
        ({"states": {"exp_avg": "bf17"}}, r"states\['exp_avg'\]: unknown format"),
        ({"weight": int8}, "int8, whose elements need a scale"),
        ({"states": {"exp_avg": "dynamic8"}}, "dynamic8, whose elements need a scale"),
        ({"weight": Expanded()}, "Expanded is of states"),
        ({"rounding": "stochastic", "gradient": "bf16"}, "without a weight's format"),
        ({"compensation": "bf16", "gradient": "bf16"}, "without a weight's format"),
        ({"compensation": "int8", "weight": "bf16"}, "compensation: got IntFormat"),
        ({"weight": Quantizer(format=int8), "rounding": "floor"}, "which has its own"),
        ({"gradient": Quantizer(format=int8, range=ema())}, "has a memory"),
        ({"gradient": "bf16", "states": ["exp_avg"]}, "states: got"),
        ({"gradient": 8}, "gradient: got 8"),
        ({"weight": "bf16", "min_size": 4096}, "min_size: got 4096 without states"),
        ({"states": {"*": "bf16"}, "min_size": -1}, "min_size: got -1"),
    ],
)
def test_updates_that_cannot_be_are_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Update(**kwargs)


def test_optimizers_that_cannot_be_followed_are_refused() -> None:
    net = network()
    update = Update(weight=bf16)
    with pytest.raises(ValueError, match="LBFGS"):
        low_precision_(torch.optim.LBFGS(net.parameters()), update)
    with pytest.raises(ValueError, match="float32"):
        low_precision_(torch.optim.SGD(network().bfloat16().parameters()), update)
    with pytest.raises(TypeError, match="Update"):
        low_precision_(torch.optim.SGD(net.parameters()), bf16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lacks 6 of"):
        low_precision_(torch.optim.SGD(net.parameters()), update, model=network()[0])
    columns = Update(states={"*": Quantizer(format=int8, granularity=per_axis(1))})
    with pytest.raises(ValueError, match=r"0.bias: granularity names axis 1"):
        low_precision_(torch.optim.SGD(net.parameters(), momentum=0.9), columns, model=net)
    optimizer = torch.optim.SGD(net.parameters())
    low_precision_(optimizer, update)
    with pytest.raises(ValueError, match="already"):
        low_precision_(optimizer, update)
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            copied(optimizer)


def test_steps_that_cannot_be_followed_are_refused() -> None:
    net, optimizer, _ = started("SGD", Update(weight=bf16))
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: None)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="added"):
        optimizer.step()
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    low_precision_(optimizer, Update(weight=bf16))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    net, optimizer, _ = started("Adam", Update(states={"momentum_buffer": "bf16"}))
    with pytest.raises(ValueError, match="keeps no momentum_buffer; it keeps exp_avg, exp_avg_sq"):
        steps(net, optimizer, 0, 1)


def test_states_of_others_are_refused() -> None:
    net, optimizer, _ = started("Adam", KEPT["kahan"])
    steps(net, optimizer, 0, 1)
    state = optimizer.state_dict()
    _, other, _ = started("Adam", KEPT["bf16"])
    with pytest.raises(ValueError, match="of another update"):
        other.load_state_dict(state)
    plain = torch.optim.Adam([{"params": [p]} for p in net.parameters()])
    steps(net, plain, 0, 1)
    with pytest.raises(ValueError, match="without low precision"):
        optimizer.load_state_dict(plain.state_dict())
    broken = {**state, "state": {**state["state"], "low_precision": {"update": 1}}}
    with pytest.raises(ValueError, match="need entries"):
        optimizer.load_state_dict(broken)


def test_8_bit_maps_of_adam() -> None:
    """The second moment in a map of its own, as 8-bit optimizers keep it."""
    maps = {
        "exp_avg": Quantizer(format=dynamic8, granularity=groups(256)),
        "exp_avg_sq": Quantizer(format=udynamic8, granularity=groups(256)),
    }
    net, optimizer, handle = started("Adam", Update(states=maps))
    steps(net, optimizer, 0, 3)
    for p in (p for p in net.parameters() if p.grad is not None):
        square = optimizer.state[p]["exp_avg_sq"]
        values = (square / square.max()).unique().double()
        known = torch.tensor(udynamic8.values, dtype=torch.float64)
        assert (values[:, None] - known).abs().amin(1).max() < 1e-7
    assert handle.report()["0.weight", "exp_avg_sq"].steps == 3


def test_a_compiled_step_has_the_bits_of_others() -> None:
    """Rounding and noise stay outside of its graph; SGD's own arithmetic is the same there."""
    made = []
    for compiled in (False, True):
        net, optimizer, handle = started("SGD", KEPT["bf16"])
        steps(net, optimizer, 0, 1)
        torch.manual_seed(1)
        net(torch.randn(32, 8)).square().mean().backward()

        def step(optimizer: Any = optimizer) -> None:
            optimizer.step()

        with warnings.catch_warnings():  # torch's own, of what it imports to compile
            warnings.simplefilter("ignore")
            (torch.compile(step, backend="eager") if compiled else step)()
        made.append((bits(net), handle.report()))
    assert made[0] == made[1]


def test_a_report_of_gradients_alone_says_so() -> None:
    net = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = low_precision_(optimizer, Update(gradient="e5m2"), model=net)
    steps(net, optimizer, 0, 1)
    assert "gradients alone" in str(handle.report())
