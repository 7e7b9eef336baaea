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

    @property
    def _widened(self) -> bool:
        """Whether autocast has torch's own compute in fp32, on CUDA alone."""
        return True

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """A view of x, and the axes of it along which each row runs: its last ones."""

    @abstractmethod
    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        """The scale or the shift with the view's axes."""

    @classmethod
    def refusal(cls, module: nn.Module, recipe: NormRecipe) -> str | None:
        if recipe.deviation.init_state((1,)):
            return f"{recipe.deviation} remembers channels, its rows have none; full precision"
        return None

    def _check(self, input: Tensor) -> None:
        kind = type(self).__name__
        if input.is_nested:
            raise TypeError(f"{kind}: got a nested tensor; pad it (torch.nested.to_padded_tensor)")
        if not input.is_floating_point():
            raise TypeError(f"{kind}: got an input of {input.dtype}, need floating point")

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == 0:
            self._check(input)
            empty: Tensor = super().forward(input)
            return empty
        return self.followed(input)

    @unseen
    def followed(self, input: Tensor, momentum: float | None = None) -> Tensor:
        self._check(input)
        if self._widened and input.is_cuda and autocast_dtype(input) is not None:
            input = input.float()
        x, weight, bias, key, states = self._operands(input)
        view, over = self._split(x)
        parameters = [None if p is None else self._lifted(p, view) for p in (weight, bias)]
        output = self._normalized(view, over, *parameters).view(input.shape)
        if self._plain:
            output = self._rounded(output)
        else:
            output = self._with_quantized_gradient(output, key, states)
        return output.to(self._output_dtype(input))

    def _output_dtype(self, input: Tensor) -> torch.dtype:
        return input.dtype

    def _eps(self) -> float | None:
        own: float | None = self.eps  # type: ignore[assignment]
        return own

    def _normalized(
        self, x: Tensor, over: list[int], weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        recipe = self.recipe
        wide = torch.promote_types(x.dtype, torch.float32)
        own = self._eps()
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


class QLastAxes(QRowNorm):
    """Rows are the last axes, of these sizes; each element has its own scale and shift."""

    @classmethod
    def sizes(cls, module: nn.Module) -> tuple[int, ...]:
        """The sizes of a row of a norm of this kind."""
        shape: Any = module.normalized_shape
        return tuple(shape)

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
        sizes = cls.sizes(module)
        return role_slots(recipe, (None, *sizes), sizes)

    @classmethod
    def refusal(cls, module: nn.Module, recipe: NormRecipe) -> str | None:
        if not cls.centered and recipe.deviation == deviations.none():
            return "of an RMSNorm deviation none leaves nothing; kept in full precision"
        if math.prod(cls.sizes(module)) == 1:
            return "its rows have one element, which has no deviation; kept in full precision"
        return super().refusal(module, recipe)

    def _check(self, input: Tensor) -> None:
        super()._check(input)
        own = self.sizes(self)
        if tuple(input.shape[-len(own) :]) != own:
            raise ValueError(
                f"{type(self).__name__}: got an input of {tuple(input.shape)}, need {own} as its "
                f"last sizes"
            )

    def _split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        x = x.contiguous()
        return x, list(range(x.dim() - len(self.sizes(self)), x.dim()))

    def _lifted(self, parameter: Tensor, view: Tensor) -> Tensor:
        return parameter.view(*[1] * (view.dim() - parameter.dim()), *parameter.shape)


class QLayerNorm(QLastAxes, nn.LayerNorm):
    """nn.LayerNorm under a NormRecipe."""


class QRMSNorm(QLastAxes, nn.RMSNorm):
    """nn.RMSNorm under a NormRecipe: no mean is subtracted, and the statistic is about 0 (range:
    max - min, as ever).

    eps None is torch's: fp32's, for fp64 fp64's.
    """

    centered = False


class QGroupNorm(QRowNorm, nn.GroupNorm):
    """nn.GroupNorm under a NormRecipe.  (N, C, *S), a scale and a shift for each channel."""

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
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
