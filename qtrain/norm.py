"""Batch-norm in one, two and three dimensions with a choice of deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quantizers import OFF, FloatFormat, Off, QuantizerLike, bf16, fold, fp16, round_to
from quantizers.protocol import quantized, straight_through
from quantizers.ranges import State

from . import deviations, norm_kernels, norm_passes, norm_traced
from .layer_state import LayerState, Slot, rank
from .norm_computation import Deferred, Form, folded, passes
from .norm_functions import Normalize, QuantizeGradient, StraightThrough
from .norm_passes import wide
from .norm_ranks import Ranks, ranks_of
from .norm_recipe import NormRecipe

ROLES = ("input", "weight", "bias", "grad_output")


def _role_key(key: Tensor | None, role: str) -> Tensor | None:
    """A role's noise key: data differ between ranks, parameters do not."""
    if key is None:
        return None
    data = role in ("input", "grad_output")
    return fold(key, ROLES.index(role) + (len(ROLES) * (rank() + 1) if data else 0))


class QBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A torch batch-norm computed as its `recipe` says, with torch's parameters and buffers.

    Input (N, C, *S), fp16, bf16, fp32 or fp64, any layout; statistics and arithmetic in fp32 (fp64
    for fp64), the output in the input's dtype.  The divisor is sigma + eps, for l2 torch's
    sqrt(sigma^2 + eps).  `running_var` holds a variance: l2's unbiased one as torch's, sigma^2 for
    the other deviations; evaluation divides by its root with the same eps rule as training.  An
    empty batch is torch's.  Second derivatives are not defined.

    Raises ValueError for a wrong shape and for one value per channel in training, TypeError for
    an input that is not floating point.
    """

    recipe: NormRecipe
    state: LayerState

    def _quantized(
        self, role: str, x: Tensor, key: Tensor | None, states: Mapping[Slot, State]
    ) -> Tensor:
        quantizer: QuantizerLike = getattr(self.recipe, role)
        if isinstance(quantizer, Off):
            return x
        state = states["norm", role]
        with torch.no_grad():
            own, training = _role_key(key, role), self.state.training
            q = quantized(quantizer, x, key=own, state=state, training=training)
            value = q.dequantize()
        if not straight_through(quantizer):  # its backward sees the state of now
            state = {name: tensor.clone() for name, tensor in state.items()}
        straight: Tensor = StraightThrough.apply(x, value, quantizer, state)  # type: ignore[no-untyped-call]
        return straight

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
        self._check(input)
        ranks = None if self._group is None else ranks_of(input, self._group)
        if input.numel() == 0 and (ranks is None or ranks.total == 0):
            return nn.modules.batchnorm._BatchNorm.forward(self, input)
        recipe, count = self.recipe, self._count(input, ranks)
        key, states = self.state.begin()
        x = self._quantized("input", input, key, states)
        weight, bias = (
            None if x is None else self._quantized(role, x, key, states)
            for role, x in (("weight", self.weight), ("bias", self.bias))
        )
        # the gradient's quantizer sees the gradient of the output before it is rounded and stored
        plain = isinstance(recipe.grad_output, Off)
        dtype = input.dtype if plain else torch.promote_types(input.dtype, torch.float32)
        activation = recipe.activation if plain else None
        if self._of_batch:
            form = Form(
                recipe.deviation, recipe.statistics_gradient, self.eps, False, activation, dtype,
                spec=recipe.spec(rounded=plain) if ranks is None else None, ranks=ranks,
            )  # fmt: skip
            output, mean, sigma = Normalize.apply(x, weight, bias, form)  # type: ignore[no-untyped-call]
            if self.training and self.track_running_stats:
                self._track(mean, sigma, count)
        else:
            assert self.running_mean is not None and self.running_var is not None
            divisor = recipe.deviation.stabilized(wide(self.running_var).sqrt(), self.eps)
            of = folded(weight, bias, self.running_mean, divisor)
            by = norm_passes if torch.is_grad_enabled() else passes(x)
            output = by.affine(x, of, dtype)
            if activation is not None:
                output = self._rounded(output, activation)
        if not plain:
            output = QuantizeGradient.apply(  # type: ignore[no-untyped-call]
                output,
                recipe.grad_output,
                _role_key(key, "grad_output"),
                states["norm", "grad_output"],
                self.state.training,
            )
            if recipe.activation is not None:
                output = self._rounded(output, recipe.activation)
        result: Tensor = output.to(input.dtype)
        return result

    def relu(self, input: Tensor, deferred: bool) -> Tensor | None:
        """relu(forward(input)), for which x alone is saved; None where that is not to be had.

        deferred: as a tensor without values, which a layer's product turns into codes
        (`Deferred`).
        """
        recipe = self.recipe
        operands = (recipe.input, recipe.weight, recipe.bias, recipe.grad_output)
        if not (self.training and all(isinstance(quantizer, Off) for quantizer in operands)):
            return None
        if self._group is not None:
            return None
        stored = {torch.float16: fp16, torch.bfloat16: bf16}.get(input.dtype)
        activation = stored or recipe.activation
        if activation != (recipe.activation or stored):  # rounded twice, to different formats
            return None
        spec = recipe.spec(rounded=True) if activation == recipe.activation else None
        if torch.compiler.is_compiling():
            if deferred or not norm_traced.serves(input, spec):
                return None
        elif not norm_kernels.serves(input, activation, relu=True):
            return None
        self._check(input)
        count = self._count(input, None)
        self.state.begin()
        form = Form(
            recipe.deviation, recipe.statistics_gradient, self.eps, True, activation,
            input.dtype, deferred, spec,
        )  # fmt: skip
        output, mean, sigma, *where = Normalize.apply(input, self.weight, self.bias, form)  # type: ignore[no-untyped-call]
        if self.track_running_stats:
            self._track(mean, sigma, count)
        if deferred:
            with torch.no_grad():
                affine = form.affine(self.weight, self.bias, mean, sigma)
            ends = where[0] if recipe.deviation.names_extremes else None
            output.deferred = Deferred(input.detach(), affine, ends)
        result: Tensor = output
        return result

    @staticmethod
    def _rounded(output: Tensor, activation: FloatFormat) -> Tensor:
        with torch.no_grad():
            rounded = round_to(output, activation)
        straight: Tensor = StraightThrough.apply(output, rounded, OFF, None)  # type: ignore[no-untyped-call]
        return straight

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        torch_part: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{torch_part}, {self.recipe}"


class QBatchNorm1d(QBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d under a NormRecipe."""


class QBatchNorm2d(QBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d under a NormRecipe."""


class QBatchNorm3d(QBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d under a NormRecipe."""


class QSyncBatchNorm(QBatchNorm):
    """nn.SyncBatchNorm under a NormRecipe, on any device: in training, the batches of all ranks of
    `process_group` (default: all there are), one after the other in rank order, are normalized as
    one.  Their sizes may differ.  The gradients of scale and shift are the rank's own, to be
    averaged as DDP does; a quantizer sees its own rank's tensor alone.

    A ReLU behind it is not fused.  In evaluation, or with no other rank: QBatchNorm.  (No subclass
    of torch's, which DDP refuses on the CPU.)
    """

    process_group: Any

    @property
    def _group(self) -> Any:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self._group is not None:
            output: Tensor = torch.compiler.disable(super().forward)(input)
            return output
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] == 0:
            raise ValueError(
                f"batch-norm: got an input of shape {tuple(input.shape)}, need (N, C, ...) with "
                f"channels"
            )


_CONVERTED: dict[type[nn.Module], type[QBatchNorm]] = {
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
    nn.SyncBatchNorm: QSyncBatchNorm,
}
#: axes behind the channel's; SyncBatchNorm takes any number, and most have images
_SPACE = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 2}


def can_convert(module: nn.Module) -> bool:
    """Whether `convert_norm_` takes the module: torch's BatchNorm1d/2d/3d and
    SyncBatchNorm, not a subclass."""
    return type(module) in _CONVERTED


def norm_slots(
    module: nn.Module, recipe: NormRecipe
) -> dict[Slot, tuple[QuantizerLike, Sequence[int | None]]]:
    """The quantizers of a norm and the shapes they meet, for its LayerState."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    space = (None,) * _SPACE[type(module)]
    data, parameter = (None, module.num_features, *space), (module.num_features,)
    shapes = {"input": data, "weight": parameter, "bias": parameter, "grad_output": data}
    return {("norm", role): (getattr(recipe, role), shapes[role]) for role in ROLES}


def convert_norm_(module: nn.Module, recipe: NormRecipe, state: LayerState | None = None) -> None:
    """Make a torch batch-norm follow `recipe`, in place; parameters and buffers stay the objects
    they were; `state` (default: a fresh one) becomes its child.  Deviation none stops the scale's
    training.  TypeError for another module."""
    if not can_convert(module):
        raise TypeError(
            f"convert_norm_: got {type(module).__name__}, need exactly BatchNorm1d, 2d or 3d, or "
            f"SyncBatchNorm"
        )
    if state is None:
        state = LayerState(norm_slots(module, recipe), name="", seed=0, stream=0)
    module.__class__ = _CONVERTED[type(module)]
    assert isinstance(module, QBatchNorm)
    module.recipe = recipe
    module.state = state.train(module.training)
    if recipe.deviation == deviations.none() and module.weight is not None:
        module.weight.requires_grad_(False)
