"""InstanceNorm in one, two and three dimensions with a choice of deviation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .module import Slots, role_slots
from .recipe import NormRecipe
from .row import QRowNorm


class QInstanceNorm(QRowNorm, nn.modules.instancenorm._InstanceNorm):
    """A torch instance-norm under a NormRecipe: rows are the elements of a channel of a sample.

    (N, C, *S) or (C, *S), a scale and a shift for each channel.  One that tracks running statistics
    is not converted.
    """

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
        channels: Any = module.num_features  # any number of axes may follow
        return role_slots(recipe, (None, channels), (channels,))

    @classmethod
    def refusal(cls, module: nn.Module, recipe: NormRecipe) -> str | None:
        if module.track_running_stats:
            return "it tracks running statistics, one batch's of rows; kept in full precision"
        return super().refusal(module, recipe)

    @property
    def _widened(self) -> bool:
        return False

    def forward(self, input: Tensor) -> Tensor:
        checked: Tensor = nn.modules.instancenorm._InstanceNorm.forward(self, input)
        return checked

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if input.numel() == 0:
            empty: Tensor = super()._apply_instance_norm(input)  # type: ignore[no-untyped-call]
            return empty
        return self.followed(input)

    def _check(self, input: Tensor) -> None:
        super()._check(input)
        if input.numel() == input.shape[0] * input.shape[1]:
            raise ValueError(
                f"Expected more than 1 spatial element when training, got input size "
                f"{tuple(input.shape)}"
            )

    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        return x.reshape(x.shape[0], x.shape[1], -1), [2]

    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        return parameter.view(1, -1, 1)


class QInstanceNorm1d(QInstanceNorm, nn.InstanceNorm1d):
    """nn.InstanceNorm1d under a NormRecipe."""


class QInstanceNorm2d(QInstanceNorm, nn.InstanceNorm2d):
    """nn.InstanceNorm2d under a NormRecipe."""


class QInstanceNorm3d(QInstanceNorm, nn.InstanceNorm3d):
    """nn.InstanceNorm3d under a NormRecipe."""
