"""Batch-norm in one, two and three dimensions with a choice of deviation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import Off, bf16, fp16
from quantizers.devices.by_device import ByDevice
from quantizers.ranges.rules import State

from ..autograd.selective import unseen
from ..layer_state import Slot
from .deferred import DEFERRED, Deferred
from .kernels.gpu.running import track as launched
from .module import DEVIATION, QNorm, Slots, role_slots
from .normalize import Form, channels, folded
from .operations import Normalize, affine, normalize
from .passes import Channels, others, wide
from .ranks import Ranks, ranks_of
from .recipe import NormRecipe
from .rounded import RoundedNorm


def _track(
    mean: Tensor,
    sigma: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    steps: Tensor | None,
    momentum: float | None,
    unbiased: float | None,
) -> bool:
    variance = sigma.square()
    if unbiased is not None:
        variance = variance * unbiased
    if steps is not None:
        steps.add_(1)
    for running, new in ((running_mean, mean), (running_var, variance)):
        factor: Any = momentum
        if factor is None:  # cumulative average
            assert steps is not None
            factor = steps.to(running.dtype).reciprocal()
        running.lerp_(new.to(running.dtype), factor)
    return True


#: moves running statistics by a batch's mean and sigma, whose square, times `unbiased`, is its
#: variance, and counts the step
track = ByDevice(_track, cuda=launched)


class QBatchNorm(QNorm, nn.modules.batchnorm._BatchNorm):
    """A torch batch-norm computed as its `recipe` says, with torch's parameters and buffers.

    Input (N, C, *S), fp16, bf16, fp32 or fp64, any layout; statistics and arithmetic in fp32 (fp64
    for fp64), the output in the input's dtype.  The divisor is sigma + eps, for l2 torch's
    sqrt(sigma^2 + eps).  `running_var` holds a variance: l2's unbiased one as torch's, sigma^2 for
    the other deviations; evaluation divides by its root with the same eps rule as training.  An
    empty batch is torch's.  Second derivatives are not defined.

    Raises ValueError for a wrong shape and for one value per channel in training, TypeError for
    an input that is not floating point.
    """

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        (axes,) = (count for kind, count in _SPACE.items() if isinstance(module, kind))
        space = (None,) * axes
        return role_slots(recipe, (None, module.num_features, *space), (module.num_features,))

    def _check(self, input: Tensor) -> None:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if not input.is_floating_point():
            raise TypeError(f"batch-norm: got an input of {input.dtype}, need floating point")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"batch-norm: got {input.shape[1]} channels (input {tuple(input.shape)}), "
                f"need {self.num_features}"
            )

    def _count(self, input: Tensor, ranks: Ranks | None) -> int:
        """The elements that each channel has."""
        count = input.numel() // input.shape[1] if ranks is None else ranks.total
        if self._of_batch and count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size "
                f"{tuple(input.shape)}"
            )
        return count

    @property
    def _group(self) -> Any:
        """The process group whose batches are normalized as one; None: this process' alone."""
        return None

    @property
    def _of_batch(self) -> bool:
        return self.training or self.running_mean is None or self.running_var is None

    def forward(self, input: Tensor) -> Tensor:
        return self.followed(input, self.momentum, self.num_batches_tracked)

    @unseen
    def followed(
        self, input: Tensor, momentum: float | None, steps: Tensor | None = None
    ) -> Tensor:
        """steps: the counter of batches to move on, None: the caller has."""
        self._check(input)
        ranks = None if self._group is None else ranks_of(input, self._group)
        if input.numel() == 0 and (ranks is None or ranks.total == 0):
            return nn.modules.batchnorm._BatchNorm.forward(self, input)
        count = self._count(input, ranks)
        x, weight, bias, key, states = self._operands(input)
        dtype = input.dtype if self._plain else torch.promote_types(input.dtype, torch.float32)
        form = self._form(dtype, ranks, states)
        if self.recipe.arithmetic is None:
            output, *moments = self._normalized(x, weight, bias, form)
        else:
            output, *moments = self._in_arithmetic(x, weight, bias, form)
        if self._of_batch:
            mean, sigma = moments
            self._track(mean, sigma, count, states, momentum, steps)
        if not self._plain:
            output = self._with_quantized_gradient(output, key, states)
        result: Tensor = output.to(input.dtype)
        return result

    def _form(self, dtype: torch.dtype, ranks: Ranks | None, states: Mapping[Slot, State]) -> Form:
        recipe, plain = self.recipe, self._plain
        deviation = recipe.deviation.after(states.get(DEVIATION, {}))
        alone = ranks is None and deviation is recipe.deviation
        return Form(
            deviation, recipe.statistics_gradient, self.eps, False,
            recipe.activation if plain else None, dtype,
            spec=recipe.spec(rounded=plain) if alone else None,
            arithmetic=recipe.arithmetic, ranks=ranks,
        )  # fmt: skip

    def _normalized(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
    ) -> tuple[Tensor, ...]:
        """The output and, of a batch, its mean and sigma."""
        if self._of_batch:
            made: tuple[Tensor, ...] = Normalize.apply(x, weight, bias, form)  # type: ignore[no-untyped-call]
            return made
        of = folded(weight, bias, *self._running())
        by = Channels(x) if torch.is_grad_enabled() else channels(x)
        if form.activation is None:
            return (by.affine(of, form.dtype),)
        return (self._rounded(by.affine(of, torch.promote_types(form.dtype, torch.float32))),)

    def _in_arithmetic(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
    ) -> tuple[Tensor, ...]:
        """The same, operation by operation in the recipe's arithmetic."""
        shape = [1, -1, *[1] * (x.dim() - 2)]
        fixed = None if self._of_batch else tuple(one.view(shape) for one in self._running())
        parameters = (None if one is None else one.view(shape) for one in (weight, bias))
        form = form._replace(dtype=torch.promote_types(form.dtype, torch.float32))
        output: Tensor
        output, mean, sigma = RoundedNorm.apply(x, *parameters, fixed, others(x), form)  # type: ignore[no-untyped-call]
        return self._rounded(output) if self._plain else output, mean.flatten(), sigma

    def _running(self) -> tuple[Tensor, Tensor]:
        """Mean and divisor of evaluation."""
        assert self.running_mean is not None and self.running_var is not None
        sigma = wide(self.running_var).sqrt()
        return self.running_mean, self.recipe.deviation.stabilized(sigma, self.eps)

    @unseen
    def fused_relu(self, input: Tensor, deferred: bool) -> Tensor | None:
        """relu(forward(input)), for which x alone is saved; None where that is not to be had.

        deferred: as a tensor without values, which a layer's product turns into codes
        (`Deferred`).
        """
        recipe = self.recipe
        operands = (recipe.input, recipe.weight, recipe.bias, recipe.grad_output)
        if not (self.training and all(isinstance(quantizer, Off) for quantizer in operands)):
            return None
        if recipe.arithmetic is not None or self._group is not None:
            return None
        stored = {torch.float16: fp16, torch.bfloat16: bf16}.get(input.dtype)
        activation = stored or recipe.activation
        if activation != (recipe.activation or stored):  # rounded twice, to different formats
            return None
        spec = recipe.spec(rounded=True) if activation == recipe.activation else None
        if torch.compiler.is_compiling():
            if deferred or spec is None or input.device.type not in normalize.graphs:
                return None
        elif not channels(input, activation, True).fused:
            return None
        self._check(input)
        count = self._count(input, None)
        _, states = self._begin(input)
        form = self._form(input.dtype, None, states)
        form = form._replace(relu=True, activation=activation, deferred=deferred, spec=spec)
        output, mean, sigma, *where = Normalize.apply(input, self.weight, self.bias, form)  # type: ignore[no-untyped-call]
        self._track(mean, sigma, count, states, self.momentum, self.num_batches_tracked)
        if deferred:
            with torch.no_grad():
                of = affine(mean, sigma, self.weight, self.bias, form)
            deviation = recipe.deviation
            extremes = deviation.names_extremes or not deviation.carriers(count)
            ends = where[0] if extremes else None
            setattr(output, DEFERRED, Deferred(input.detach(), of, ends))
        result: Tensor = output
        return result

    @torch.no_grad()
    def _track(
        self, mean: Tensor, sigma: Tensor, count: int, states: Mapping[Slot, State],
        momentum: float | None, steps: Tensor | None,
    ) -> None:  # fmt: skip
        """Update what evaluation uses, and what the deviation remembers; only in training."""
        if self.training and DEVIATION in states:
            states[DEVIATION]["sigma"].copy_(sigma)
        if not (self.training and self.track_running_stats):
            return
        if self.running_mean is None or self.running_var is None:
            return
        unbiased = count / (count - 1) if self.recipe.deviation.name == "l2" else None
        track(mean, sigma, self.running_mean, self.running_var, steps, momentum, unbiased)


class QBatchNorm1d(QBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d under a NormRecipe."""


class QBatchNorm2d(QBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d under a NormRecipe."""


class QBatchNorm3d(QBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d under a NormRecipe."""


_SPACE = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
