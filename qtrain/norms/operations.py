"""What a norm computes, on any device, in autograd and in compiled graphs.

Graphs keep these whole where there are kernels: they are faster than what the compiler makes of
their parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantizers.devices.by_device import ByDevice, laid_out_like, restored

from ..autograd.function_output import function_output
from . import normalize as computation
from .kernels import residual
from .kernels.gpu import residual as launched
from .kernels.gpu import whole
from .normalize import Form, Normalized, channels
from .passes import Affine

normalize = ByDevice(computation.normalize, cuda=whole.normalize)
gradients = ByDevice(computation.gradients, cuda=whole.gradients)


def _affine(
    mean: Tensor, sigma: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
) -> Affine:
    return form.affine(weight, bias, mean, sigma)


#: the output as a function of x: Form.affine
affine = ByDevice(_affine, cuda=whole.affine)


class Normalize(torch.autograd.Function):
    """`normalize` -> output, mean, sigma and, of a deferred one, where; differentiable in the
    output.

    Saved: x itself and tensors of its channels; a ReLU's mask is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
    ) -> tuple[Tensor | None, ...]:
        made = normalize(input, weight, bias, form)
        ctx.save_for_backward(input, weight, bias, *made[1:])
        ctx.form = form
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)  # those of mean and sigma would be zeros
        ctx.mark_non_differentiable(made.mean, made.sigma)
        output = function_output(made.output)
        return (output, *made[1 : 4 if form.deferred else 3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if grad_output is None:  # nothing came of the output
            return None, None, None, None
        x, weight, bias, *made = ctx.saved_tensors
        form: Form = ctx.form
        grads = gradients(x, weight, bias, Normalized(grad_output, *made), form)
        wanted = ctx.needs_input_grad
        return (
            grads[0] if wanted[0] else None,
            grads[1].to(weight.dtype) if wanted[1] else None,
            grads[2].to(bias.dtype) if wanted[2] else None,
            None,
        )


def _add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(relu(x + y), where it was off)."""
    output = (x + y).relu_()
    return output, output <= 0


def _masked(grad: Tensor, off: Tensor) -> Tensor:
    """The gradient, 0 where off, in the layout of `off`: the residual of a sum would carry another
    one down the whole network."""
    return torch.where(off, grad.new_zeros(()), grad, out=torch.empty_like(off, dtype=grad.dtype))


add_relu = ByDevice(_add_relu, cpu=residual.add_relu, cuda=launched.add_relu)
masked = ByDevice(_masked, cpu=residual.masked, cuda=launched.masked)


# As operations of a graph: a form as numbers and a string, nothing as an empty tensor -------------

_SETTINGS = "float eps, bool relu, bool centered, ScalarType dtype, str spec"


def _settings(form: Form) -> tuple[Any, ...]:
    return form.eps, form.relu, form.centered, form.dtype, form.spec


def _form(eps: float, relu: bool, centered: bool, dtype: torch.dtype, spec: str) -> Form:
    deviation, carry, activation = restored(spec)
    return Form(deviation, carry, eps, relu, activation, dtype, centered=centered)


def _normalize_whole(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form
) -> Normalized | None:
    if form.spec is None:
        return None
    return Normalized(*torch.ops.qtrain.normalize(x, weight, bias, *_settings(form)))


def _run(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, ...]:
    made = normalize.computed(x, weight, bias, _form(*settings))
    index = x.new_empty(0, dtype=torch.int64) if made.where is None else made.where.contiguous()
    slope = made.mean.new_empty(0) if made.slope is None else made.slope.contiguous()
    return laid_out_like(made.output, x), made.mean, made.sigma, index, slope


def _shapes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, ...]:
    """What the deviation computes would tie the graph to one number of elements."""
    form = _form(*settings)
    carriers = form.deviation.carriers(x.numel() // x.shape[1])
    mean = _per_channel(x)
    shape = (x.shape[1], carriers) if carriers else (0,)
    index, slope = x.new_empty(shape, dtype=torch.int64), mean.new_empty(shape)
    return torch.empty_like(x, dtype=form.dtype), mean, torch.empty_like(mean), index, slope


def _per_channel(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[1], dtype=dtype)


def _gradients_whole(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, made: Normalized, form: Form
) -> tuple[Tensor, Tensor, Tensor] | None:
    if form.spec is None:
        return None
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.qtrain.normalize_backward(
        x, weight, bias, *made, *_settings(form)
    )
    return grads


def _run_gradients(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_output, mean, sigma, index, slope, *settings = others
    few = (index, slope) if index.numel() else (None, None)
    made = Normalized(grad_output, mean, sigma, *few)
    grads = gradients.computed(x, weight, bias, made, _form(*settings))
    return laid_out_like(grads[0], x), *grads[1:]


def _gradient_shapes(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _per_channel(x), _per_channel(x)


normalize.in_graphs(
    f"qtrain::normalize(Tensor x, Tensor? weight, Tensor? bias, {_SETTINGS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run, _shapes, _normalize_whole, channels.forms,
)  # fmt: skip
gradients.in_graphs(
    "qtrain::normalize_backward(Tensor x, Tensor? weight, Tensor? bias, Tensor grad_output,"
    f" Tensor mean, Tensor sigma, Tensor index, Tensor slope, {_SETTINGS})"
    " -> (Tensor, Tensor, Tensor)",
    _run_gradients, _gradient_shapes, _gradients_whole, channels.forms,
)  # fmt: skip


def _run_add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    output, off = add_relu.computed(x, y)
    return laid_out_like(output, x), laid_out_like(off, x)


add_relu.in_graphs("qtrain::add_relu(Tensor x, Tensor y) -> (Tensor, Tensor)", _run_add_relu)
masked.in_graphs("qtrain::masked(Tensor grad, Tensor off) -> Tensor", masked.computed)
