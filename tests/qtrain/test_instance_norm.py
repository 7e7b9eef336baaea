"""InstanceNorm under a NormRecipe: a group norm with one channel a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from other_norm_cases import RECIPES
from torch import Tensor, nn

from qtrain import NormRecipe, quantize
from qtrain.conversion.kinds import convert_norm_
from qtrain.norms.deviations import range_
from quantizers import Quantizer


def gradients(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and every gradient."""
    x = x.clone().requires_grad_()
    y = norm(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    leaves = [x, *(p for p in norm.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_instance_norm_is_a_group_norm_of_single_channels(
    dims: int, affine: bool, recipe: NormRecipe
) -> None:
    kind: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    own, group = kind(4, affine=affine), nn.GroupNorm(4, 4, affine=affine)
    x = torch.randn(2, 4, *(3, 2, 5)[:dims])
    if affine:
        with torch.no_grad():
            for a, b in zip(own.parameters(), group.parameters(), strict=True):
                a.copy_(torch.rand(4))
                b.copy_(a)
    plain = gradients(own, x)
    for norm in (own, group):
        convert_norm_(norm, recipe)
    ours = gradients(own, x)
    for a, b in zip(ours, gradients(group, x), strict=True):
        torch.testing.assert_close(a, b)
    if recipe.deviation.name == "l2":
        torch.testing.assert_close(ours[0], plain[0], rtol=1e-2, atol=2e-2)  # bf16 outputs
    if isinstance(recipe.input, Quantizer) or recipe.arithmetic:
        return
    torch.testing.assert_close(own(x[0]), own(x)[0])  # without a batch


def test_an_instance_norm_says_what_it_does_not_take() -> None:
    tracked = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True))
    with pytest.raises(ValueError, match="it tracks running statistics"):
        quantize(tracked, norm="range")
    norm = nn.InstanceNorm2d(4, affine=True)
    convert_norm_(norm, NormRecipe(deviation=range_()))
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        norm(torch.randn(2, 4, 1, 1))
    with pytest.raises(ValueError, match="match num_features"):
        norm(torch.randn(2, 3, 2, 2))
