"""Averages of models: the state that conversion adds survives them, as common rules take them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qtrain import quantize, recipes
from qtrain.training.checkpoint import load_model
from quantizers import Quantizer, ema, int8, kernels, minmax, uint8

DECAY = 0.99
Update = Callable[[nn.Module], None]
Started = tuple[nn.Module, Update]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


def batch(seed: int) -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def every_value(model: nn.Module) -> Started:
    """timm's ModelEmaV2: each value of the state_dict, integers too, copied into their buffers."""
    average = copy.deepcopy(model).eval()

    def update(model: nn.Module) -> None:
        values = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for own, new in values:
            own.copy_(DECAY * own + (1.0 - DECAY) * new)

    return average, update


@torch.no_grad()
def floats_alone(model: nn.Module) -> Started:
    """timm's ModelEmaV3: what is floating point moves, the rest is the model's."""
    average = copy.deepcopy(model).eval()

    def update(model: nn.Module) -> None:
        values = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for own, new in values:
            if own.is_floating_point():
                own.lerp_(new.to(own.dtype), weight=1.0 - DECAY)
            else:
                own.copy_(new)

    return average, update


def torchs_ema(model: nn.Module) -> Started:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    averaged.n_averaged.fill_(1)  # else its first update copies the model
    return averaged.module, averaged.update_parameters


def torchs_mean(model: nn.Module) -> Started:
    averaged = AveragedModel(model, use_buffers=True, avg_fn=lambda a, m, n: a + (m - a) / (n + 1))
    averaged.n_averaged.fill_(1)
    return averaged.module, averaged.update_parameters


RULES = {f.__name__: f for f in (every_value, floats_alone, torchs_ema, torchs_mean)}


@pytest.mark.parametrize("recipe", ["int8", "banner2018"])
@pytest.mark.parametrize("rule", RULES)
def test_an_average_of_unmoving_weights_is_the_model(rule: str, recipe: str) -> None:
    model = quantize(network(), recipe=recipe).train()
    average, update = RULES[rule](model)
    for _ in range(20):
        model(batch(0)).sum().backward()  # gradients that no optimizer takes
        with torch.no_grad():
            update(model)
    average.eval()
    model.eval()
    x = batch(0)
    with torch.no_grad():
        expected, got = model(x), average(x)
    # ranges differ in their last bits, so a code here and there in one
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()
    states, mine = average.state_dict(), model.state_dict()
    shares = [name for name in states if name.endswith("_share")]
    assert shares
    for name in shares:
        assert 0.1 < states[name] < 1.0 == mine[name]
        for end in ("_low", "_high"):
            place = name.removesuffix("_share") + end
            torch.testing.assert_close(states[place] / states[name], mine[place])
    for name in states:
        if name.endswith(("noise_count", "_steps")):  # still counts, and not of the future
            assert states[name].dtype == torch.int64 and 0 <= states[name] <= mine[name]
    # a product's noise is still its own: it runs in training too
    average.train()(x).sum().backward()


@pytest.mark.parametrize("granularity", ["one range", "a range a channel"])
@pytest.mark.parametrize("fused", [True, False])
def test_training_goes_on_from_an_average(granularity: str, fused: bool) -> None:
    """From the range low / share, with the bits of a state that is that range; also where the next
    tensor is not finite."""
    quantizer = Quantizer(format=int8, range=ema(minmax, momentum=0.25))
    if granularity != "one range":
        from quantizers import per_axis

        quantizer = replace(quantizer, granularity=per_axis(1))
    x = torch.linspace(-3, 7, 32).view(8, 4)
    for bad in (False, True):
        parts = []
        for share in (1.0, 0.25):
            state = quantizer.init_state((None, 4))
            quantizer(x, state=state)
            for name in ("low", "high", "share"):
                state[name].mul_(share)
            now = (2 * x).clone()
            if bad:
                now[1, 2] = float("inf")
            with kernels.eager() if not fused else torch.no_grad():
                evaluated = quantizer(x, state=state, training=False)
                trained = quantizer(now, state=state)
            assert state["share"] == 1 and state["steps"] == 1 + (not bad)
            parts.append([*evaluated[:2], *trained[:2], state["low"], state["high"]])
        for one, other in zip(*parts, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_a_state_of_before_ranges_had_a_share_loads() -> None:
    model = quantize(network())
    model(batch(0)).sum().backward()
    state = model.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("_share")}
    assert len(old) < len(state)
    for load in (
        lambda new: new.load_state_dict(old),
        lambda new: load_model(new, old, where="here"),
    ):
        new = quantize(network())
        load(new)
        assert "share" not in " ".join(old)
        for name, value in new.state_dict().items():
            assert torch.equal(value, state[name])
        model.eval()
        assert torch.equal(new.eval()(batch(1)), model(batch(1)))
    fresh = quantize(network()).state_dict()
    unseen = {name: value for name, value in fresh.items() if not name.endswith("_share")}
    new = quantize(network())
    new.load_state_dict(unseen)
    assert not new.state_dict()["0.product.forward_input_share"]


def test_an_average_of_moving_ranges_is_their_average() -> None:
    """What the rule's weights give, in fp64."""
    recipe = recipes.int8()
    assert isinstance(recipe.forward.input, Quantizer) and recipe.forward.input.format == uint8
    model = quantize(network(), recipe=recipe)
    average, update = every_value(model)
    total, weight = 0.0, 0.0
    for i in range(12):
        model(batch(i) * (i + 1)).sum().backward()
        high = model.state_dict()["0.product.forward_input_high"].double()
        total = DECAY * total + (1 - DECAY) * float(high)
        weight = DECAY * weight + (1 - DECAY)
        with torch.no_grad():
            update(model)
    state = average.state_dict()
    found = state["0.product.forward_input_high"] / state["0.product.forward_input_share"]
    assert float(found) == pytest.approx(total / weight, rel=1e-5)
