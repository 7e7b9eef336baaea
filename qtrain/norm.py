"""Batch-norm in one, two and three dimensions with a choice of deviation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantizers import Off, QuantizerLike, round_to
from quantizers.quantizer import init_state, needs_key

from .norm_functions import Normalize, QuantizeGradient, StraightThrough, lift, wide
from .norm_recipe import NormRecipe


class _QBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A torch batch-norm computed as its `recipe` says, with torch's parameters and buffers.

    Input (N, C, *S), fp16, bf16, fp32 or fp64, any layout; statistics and arithmetic in fp32 (fp64
    for fp64), the output in the input's dtype.  The divisor is sigma + eps, for l2 torch's
    sqrt(sigma^2 + eps).  `running_var` holds a variance: l2's unbiased one as torch's, sigma^2 for
    the other deviations; evaluation divides by its root with the same eps rule as training.  An
    empty batch is torch's.  Second derivatives are not defined.

    Raises ValueError for a wrong shape and for one value per channel in training, TypeError for
    an input that is not floating point.
    """

    recipe: NormRecipe = NormRecipe()

    def _key(self, role: str) -> Tensor | None:
        """The noise key of a role's stochastic rounding."""
        return None

    def _quantized(self, role: str, x: Tensor) -> Tensor:
        quantizer: QuantizerLike = getattr(self.recipe, role)
        if isinstance(quantizer, Off):
            return x
        key = self._key(role) if needs_key(quantizer) else None
        with torch.no_grad():
            value = quantizer(x, key=key, training=self.training).dequantize()
        straight: Tensor = StraightThrough.apply(x, value, quantizer)  # type: ignore[no-untyped-call]
        return straight

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if not input.is_floating_point():
            raise TypeError(f"batch-norm: got an input of {input.dtype}, need floating point")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"batch-norm: got {input.shape[1]} channels (input {tuple(input.shape)}), "
                f"need {self.num_features}"
            )
        if input.numel() == 0:
            return super().forward(input)
        recipe = self.recipe
        x = self._quantized("input", input)
        weight = None if self.weight is None else self._quantized("weight", self.weight)
        bias = None if self.bias is None else self._quantized("bias", self.bias)
        if self.training or self.running_mean is None or self.running_var is None:
            if input.numel() == input.shape[1]:
                raise ValueError(
                    f"Expected more than 1 value per channel when training, got input size "
                    f"{tuple(input.shape)}"
                )
            output, mean, sigma = Normalize.apply(  # type: ignore[no-untyped-call]
                x, weight, bias, recipe.deviation, recipe.statistics_gradient, self.eps
            )
            if self.training and self.track_running_stats:
                self._track(mean, sigma, input.numel() // input.shape[1])
        else:
            x = wide(x)
            divisor = recipe.deviation.stabilized(wide(self.running_var).sqrt(), self.eps)
            output = (x - lift(self.running_mean, x)) / lift(divisor, x)
            output = output if weight is None else output * lift(weight, x)
            output = output if bias is None else output + lift(bias, x)
        if not isinstance(recipe.grad_output, Off):
            key = self._key("grad_output") if needs_key(recipe.grad_output) else None
            output = QuantizeGradient.apply(output, recipe.grad_output, key)  # type: ignore[no-untyped-call]
        if recipe.activation is not None:
            with torch.no_grad():
                rounded = round_to(output, recipe.activation)
            output = StraightThrough.apply(output, rounded, None)  # type: ignore[no-untyped-call]
        result: Tensor = output.to(input.dtype)
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, sigma: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        variance = sigma.square()
        if self.recipe.deviation.name == "l2":
            variance = variance * (count / (count - 1))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            factor: Any = self.momentum
            if factor is None:  # cumulative average
                assert self.num_batches_tracked is not None
                factor = self.num_batches_tracked.to(running.dtype).reciprocal()
            running.lerp_(new.to(running.dtype), factor)

    def extra_repr(self) -> str:
        torch_part: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{torch_part}, {self.recipe}"


class QBatchNorm1d(_QBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d under a NormRecipe."""


class QBatchNorm2d(_QBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d under a NormRecipe."""


class QBatchNorm3d(_QBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d under a NormRecipe."""


_CONVERTED: dict[type[nn.Module], type[_QBatchNorm]] = {
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
}


def can_convert(module: nn.Module) -> bool:
    """Whether `convert_norm_` takes the module: torch's BatchNorm1d/2d/3d, not a subclass."""
    return type(module) in _CONVERTED


def convert_norm_(module: nn.Module, recipe: NormRecipe) -> None:
    """Make a torch batch-norm follow `recipe`, in place; parameters and buffers stay the objects
    they were.  Raises TypeError for another module, ValueError for a quantizer with state."""
    if not can_convert(module):
        raise TypeError(
            f"convert_norm_: got {type(module).__name__}, need exactly BatchNorm1d, 2d or 3d"
        )
    for role in ("input", "weight", "bias", "grad_output"):
        if init_state(getattr(recipe, role), (None,)):
            raise ValueError(f"norm.{role}: a norm's quantizer cannot keep state yet")
    module.__class__ = _CONVERTED[type(module)]
    assert isinstance(module, _QBatchNorm)
    module.recipe = recipe
