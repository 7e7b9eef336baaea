"""LayerNorm, RMSNorm and GroupNorm with a choice of deviation: batch-norm's statistics, of rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..autograd.contexts import autocast_dtype
from ..autograd.selective import unseen
from . import deviations
from .module import QNorm, Slots, role_slots
from .normalize import Form
from .operations import Normalize
from .recipe import NormRecipe
from .rounded import RoundedNorm


class QRowNorm(QNorm):
    """A torch norm over rows of each sample, computed as its `recipe` says.

    fp16, bf16, fp32 or fp64, any layout; statistics and arithmetic in fp32 (fp64 for fp64), the
    output in the dtype that torch's has.  The divisor is sigma + eps, for l2 torch's
    sqrt(sigma^2 + eps).  Training and evaluation compute the same.  An empty input is torch's.
    Second derivatives are not defined.

    Raises ValueError for another shape, TypeError for an input that is not floating point, or
    nested.
    """

    centered: ClassVar[bool] = True

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """A view of x, and the axes of it along which each row runs: its last ones."""

    @abstractmethod
    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        """The scale or the shift with the view's axes."""

    @staticmethod
    def refusal(module: nn.Module, recipe: NormRecipe) -> str | None:
        if recipe.deviation.init_state((1,)):
            return f"{recipe.deviation} remembers channels, its rows have none; full precision"
        return None

    def _check(self, input: Tensor) -> None:
        kind = type(self).__name__
        if input.is_nested:
            raise TypeError(f"{kind}: got a nested tensor; pad it (torch.nested.to_padded_tensor)")
        if not input.is_floating_point():
            raise TypeError(f"{kind}: got an input of {input.dtype}, need floating point")

    @unseen
    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        if input.numel() == 0:
            empty: Tensor = super().forward(input)
            return empty
        if input.is_cuda and autocast_dtype(input) is not None:
            input = input.float()  # as torch's norms of rows do there, and not on the CPU
        x, weight, bias, key, states = self._operands(input)
        view, over = self._split(x)
        parameters = [None if p is None else self._lifted(p, view) for p in (weight, bias)]
        output = self._normalized(view, over, *parameters).view(input.shape)
        if self._plain:
            output = self._rounded(output)
        else:
            output = self._with_quantized_gradient(output, key, states)
        return output.to(input.dtype)

    def _normalized(
        self, x: Tensor, over: list[int], weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        recipe = self.recipe
        wide = torch.promote_types(x.dtype, torch.float32)
        own: Any = self.eps
        eps = torch.finfo(wide).eps if own is None else own
        form = Form(
            recipe.deviation, recipe.statistics_gradient, eps, False, None, wide,
            spec=recipe.spec(rounded=False), centered=self.centered, arithmetic=recipe.arithmetic,
        )  # fmt: skip
        output: Tensor
        if recipe.arithmetic is not None:
            output = RoundedNorm.apply(x, weight, bias, None, over, form)[0]  # type: ignore[no-untyped-call]
            return output
        rows = x.reshape(1, -1, x.flatten(over[0]).shape[-1])
        output = Normalize.apply(rows, None, None, form)[0].view(x.shape)  # type: ignore[no-untyped-call]
        if weight is not None:
            output = output * weight
        return output if bias is None else output + bias


class _LastAxes(QRowNorm):
    """Rows are the last axes, `normalized_shape`; each element has its own scale and shift."""

    normalized_shape: tuple[int, ...]

    @staticmethod
    def slots(module: nn.Module, recipe: NormRecipe) -> Slots:
        shape: Any = module.normalized_shape
        return role_slots(recipe, (None, *shape), tuple(shape))

    @staticmethod
    def refusal(module: nn.Module, recipe: NormRecipe) -> str | None:
        shape: Any = module.normalized_shape
        if math.prod(shape) == 1:
            return "its rows have one element, which has no deviation; kept in full precision"
        return QRowNorm.refusal(module, recipe)

    def _check(self, input: Tensor) -> None:
        super()._check(input)
        own = tuple(self.normalized_shape)
        if tuple(input.shape[-len(own) :]) != own:
            raise ValueError(
                f"{type(self).__name__}: got an input of {tuple(input.shape)}, need {own} as its "
                f"last sizes"
            )

    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        x = x.contiguous()
        return x, list(range(x.dim() - len(self.normalized_shape), x.dim()))

    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        return parameter.view(*[1] * (view.dim() - parameter.dim()), *parameter.shape)


class QLayerNorm(_LastAxes, nn.LayerNorm):
    """nn.LayerNorm under a NormRecipe."""


class QRMSNorm(_LastAxes, nn.RMSNorm):
    """nn.RMSNorm under a NormRecipe: no mean is subtracted, and the statistic is about 0 (range:
    max - min, as ever).

    eps None is torch's: fp32's, for fp64 fp64's.
    """

    centered = False

    @staticmethod
    def refusal(module: nn.Module, recipe: NormRecipe) -> str | None:
        if recipe.deviation == deviations.none():
            return "of an RMSNorm deviation none leaves nothing; kept in full precision"
        return _LastAxes.refusal(module, recipe)


class QGroupNorm(QRowNorm, nn.GroupNorm):
    """nn.GroupNorm under a NormRecipe.  (N, C, *S), a scale and a shift for each channel."""

    @staticmethod
    def slots(module: nn.Module, recipe: NormRecipe) -> Slots:
        channels: Any = module.num_channels  # any number of axes may follow
        return role_slots(recipe, (None, channels), (channels,))

    def _check(self, input: Tensor) -> None:
        super()._check(input)
        if input.dim() < 2 or input.shape[1] != self.num_channels:
            raise ValueError(
                f"QGroupNorm: got an input of {tuple(input.shape)}, need (N, {self.num_channels}, "
                f"...)"
            )
        if 0 < input.numel() == input.shape[0] * self.num_groups:
            raise ValueError(
                f"Expected more than 1 value per group, got input size {tuple(input.shape)} and "
                f"{self.num_groups} groups"
            )

    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        return x.reshape(x.shape[0], self.num_groups, x.shape[1] // self.num_groups, -1), [2, 3]

    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        return parameter.view(1, self.num_groups, -1, 1)
