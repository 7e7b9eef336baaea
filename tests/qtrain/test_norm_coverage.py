"""norm=: what is said of norms that stay as they are."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import quantize, quantize_, recipes, summary, weight_norm


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A norm that never takes a batch's own statistics."""

    def forward(self, input: Tensor) -> Tensor:
        self.training = False
        return super().forward(input)


class TwiceLayerNorm(nn.LayerNorm):
    """A layer norm of a layer norm, over channels."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(super().forward(input.movedim(1, -1))).movedim(-1, 1)


class IdentityNorm(nn.Module):
    """A norm by name."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, input: Tensor) -> Tensor:
        return input


def net(*norms: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), *norms)


OWN: dict[str, tuple[Any, str]] = {
    "batch": (lambda: FrozenBatchNorm2d(4), r"1 x Frozen.*: a subclass of BatchNorm2d.* \(1\)"),
    "layer": (lambda: TwiceLayerNorm(4), r"1 x TwiceLayerNorm: a subclass of LayerNorm.* \(1\)"),
    "instance": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), r"norm: got 'range'"),
    "local": (lambda: nn.LocalResponseNorm(4), r"norm: got 'range'"),
    "unknown": (lambda: IdentityNorm(4), r"norm: got 'range'"),
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("convert", [quantize, quantize_])
def test_a_norm_that_nothing_follows_is_an_error(kind: str, convert: Any) -> None:
    make, text = OWN[kind]
    model = net(make())
    before = type(model[1])
    with pytest.raises(ValueError, match=text):
        convert(model, norm="range")
    assert type(model[0]) is nn.Conv2d and type(model[1]) is before


@pytest.mark.parametrize("kind", OWN)
def test_norms_that_stay_beside_others_are_named_once_and_in_the_summary(kind: str) -> None:
    make, _ = OWN[kind]
    model = net(make(), nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"norm: 1 of 2 norms of Sequential stay") as caught:
        converted = quantize(model, norm="range")
    assert len(caught) == 1 and caught[0].filename == __file__ and "(1)" in str(caught[0].message)
    assert "norms      1 do not follow the norm asked for (1)" in str(summary(converted))


def test_a_recipe_whose_norm_nothing_follows_warns() -> None:
    with pytest.warns(UserWarning, match=r"(?s)norm: 1 of 1 norms .* FrozenBatchNorm2d") as caught:
        quantize(net(FrozenBatchNorm2d(4)), recipe="banner2018")
    assert len(caught) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "range", "overrides": {"1": None}},  # on purpose
        {"norm": "range", "overrides": {"0": 8, "*": None}},
        {"norm": "l2"},  # torch's own, which the subclass computes
        {"recipe": recipes.int8()},
    ],
    ids=["by name", "by pattern", "torch's own", "not asked"],
)
@pytest.mark.parametrize("kind", ["batch", "unknown"])
def test_norms_that_may_stay_are_not_spoken_of(settings: dict[str, Any], kind: str) -> None:
    model = net(OWN[kind][0](), nn.BatchNorm2d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = quantize(model, **settings)
    assert "do not follow" not in str(summary(converted))


def test_a_weight_norm_is_no_norm_of_activations() -> None:
    model = weight_norm(net(nn.BatchNorm2d(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(model, norm="range")
