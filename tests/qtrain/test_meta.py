"""Models that begin without numbers: on the meta device, or as fake tensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from training_cases import on_two_ranks

from qtrain import quantize, reseed, summary
from qtrain.layer_state import LayerState


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )


CONVERSIONS: dict[str, dict[str, Any]] = {
    "int8": {},
    "range norm": {"norm": "range"},
    "banner2018": {"recipe": "banner2018"},
    "bf16": {"recipe": "bf16"},
}
conversions = pytest.mark.parametrize("settings", CONVERSIONS.values(), ids=CONVERSIONS)


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def on_meta(settings: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return quantize(net(), seed=5, **settings)


def assert_same_state(got: nn.Module, expected: nn.Module) -> None:
    own = expected.state_dict()
    assert got.state_dict().keys() == own.keys()
    for name, value in got.state_dict().items():
        assert value.device == own[name].device and torch.equal(value, own[name]), name


@conversions
def test_a_model_from_meta_that_loads_plain_weights_is_a_new_conversion(
    settings: dict[str, Any],
) -> None:
    plain, expected = net().state_dict(), quantize(net(), seed=5, **settings)
    emptied = on_meta(settings).to_empty(device="cpu")
    emptied.load_state_dict(plain)
    assert_same_state(emptied, expected)
    assigned = on_meta(settings)
    assigned.load_state_dict(plain, assign=True)
    assert_same_state(assigned, expected)
    expected.eval(), emptied.eval()
    assert torch.equal(emptied(images()), expected(images()))


@conversions
def test_a_model_from_meta_loads_trained_state(settings: dict[str, Any]) -> None:
    trained = quantize(net(), **settings)
    trained(images()).sum().backward()
    for assign in (False, True):
        model = on_meta(settings)
        model = model if assign else model.to_empty(device="cpu")
        model.load_state_dict(trained.state_dict(), assign=assign)
        assert_same_state(model, trained)


def test_to_empty_keeps_the_noise_and_ranges_of_a_model_that_has_them() -> None:
    model = quantize(net())
    model(images()).sum().backward()
    kept = {n: b.clone() for n, b in model.named_buffers() if "product" in n}
    model.to_empty(device="cpu")
    assert all(torch.equal(dict(model.named_buffers())[n], b) for n, b in kept.items())


def test_reseed_on_meta_holds() -> None:
    model = reseed(on_meta({}), 9).to_empty(device="cpu")
    expected = reseed(quantize(net()), 9)
    for own, other in zip(model.modules(), expected.modules(), strict=True):
        if isinstance(own, LayerState):
            assert isinstance(other, LayerState) and torch.equal(own.noise_key, other.noise_key)


@conversions
def test_meta_and_fake_tensors_pass_through_a_conversion(settings: dict[str, Any]) -> None:
    model, meta = on_meta(settings), images().to("meta")
    output = model(meta)
    output.sum().backward()
    assert output.shape == (4, 4) and output.is_meta
    expected = str(summary(quantize(net(), **settings), images())).splitlines()[:3]
    assert str(summary(model, meta)).splitlines()[:3] == expected
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = quantize(net(), **settings)
        output = fake(torch.randn(4, 3, 8, 8))
        output.sum().backward()
        assert output.shape == (4, 4) and output.device.type == "cpu"
        assert str(summary(fake, torch.randn(4, 3, 8, 8))).splitlines()[:3] == expected


def test_a_default_device_leaves_a_conversion_where_its_model_is() -> None:
    expected = quantize(net(), seed=5, norm="range")
    model = net()
    with torch.device("meta"):
        converted = quantize(model, seed=5, norm="range")
        copied = copy.deepcopy(converted)
    assert_same_state(converted, expected)
    assert_same_state(copied, expected)


FSDP = """
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from qtrain import quantize
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
with torch.device("meta"):
    model = quantize(net(), seed=3)
mesh = torch.distributed.init_device_mesh("cpu", (2,))
for layer in (model[0], model[2], model):
    fully_shard(layer, mesh=mesh)
model.to_empty(device="cpu")
set_model_state_dict(
    model, net().state_dict(), options=StateDictOptions(full_state_dict=True, strict=False)
)
expected = quantize(net(), seed=3)
buffers = dict(expected.named_buffers())
assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
assert torch.equal(model(x), expected(x))
"""


def test_a_sharded_model_starts_on_meta(tmp_path: Path) -> None:
    on_two_ranks(FSDP, tmp_path)
