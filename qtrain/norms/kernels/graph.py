"""A norm's forward and backward as one operation each of a graph that torch.compile makes.

For the CPU alone: there the compiled passes are faster than what the compiler makes of their parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import traced

from .. import normalize as norm_computation
from ..normalize import Form, Normalized

_LIBRARY = torch.library.Library("qtrain", "FRAGMENT")
_LIBRARY.define(
    "normalize(Tensor x, Tensor? weight, Tensor? bias, float eps, bool relu, ScalarType dtype,"
    " str spec, bool centered)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define("add_relu(Tensor x, Tensor y) -> (Tensor, Tensor)")
_LIBRARY.define("masked(Tensor grad, Tensor off) -> Tensor")
_LIBRARY.define(
    "normalize_backward(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor sigma,"
    " Tensor index, Tensor slope, Tensor grad_output, float eps, bool relu, str spec,"
    " bool centered)"
    " -> (Tensor, Tensor, Tensor)"
)


def serves(x: Tensor, spec: str | None) -> bool:
    """Whether a graph for the CPU is being made, and the norm can be written into it."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and spec is not None


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form) -> Normalized:
    """norm_computation.normalize, where nothing is deferred."""
    return Normalized(
        *torch.ops.qtrain.normalize(
            x, weight, bias, form.eps, form.relu, form.dtype, form.spec, form.centered
        )
    )


def gradients(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    made: Normalized,
    grad: Tensor,
    form: Form,
) -> tuple[Tensor, Tensor, Tensor]:
    """norm_computation.gradients of the same."""
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.qtrain.normalize_backward(
        x, weight, bias, *made[1:], grad, form.eps, form.relu, form.spec, form.centered
    )
    return grads


def _form(spec: str, eps: float, relu: bool, dtype: torch.dtype, centered: bool) -> Form:
    deviation, carry, activation = traced.restored(spec)
    return Form(deviation, carry, eps, relu, activation, dtype, centered=centered)


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    dtype: torch.dtype,
    spec: str,
    centered: bool,
) -> tuple[Tensor, ...]:
    made = norm_computation.normalize(x, weight, bias, _form(spec, eps, relu, dtype, centered))
    index = x.new_empty(0, dtype=torch.int64) if made.where is None else made.where.contiguous()
    slope = made.mean.new_empty(0) if made.slope is None else made.slope.contiguous()
    return traced.laid_out_like(made.output, x), made.mean, made.sigma, index, slope


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    dtype: torch.dtype,
    spec: str,
    centered: bool,
) -> tuple[Tensor, ...]:
    """Shapes alone: what the deviation computes would tie the graph to one number of elements."""
    form = _form(spec, eps, relu, dtype, centered)
    carriers = form.deviation.carriers(x.numel() // x.shape[1])
    mean = _per_channel(x)
    shape = (x.shape[1], carriers) if carriers else (0,)
    index, slope = x.new_empty(shape, dtype=torch.int64), mean.new_empty(shape)
    return torch.empty_like(x, dtype=dtype), mean, torch.empty_like(mean), index, slope


def _per_channel(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[1], dtype=dtype)


def _normalize_backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    sigma: Tensor,
    index: Tensor,
    slope: Tensor,
    grad_output: Tensor,
    eps: float,
    relu: bool,
    spec: str,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    none = not index.numel()
    made = Normalized(grad_output, mean, sigma, None if none else index, None if none else slope)
    form = _form(spec, eps, relu, x.dtype, centered)
    grad_input, grad_weight, grad_bias = norm_computation.gradients(
        x, weight, bias, made, grad_output, form
    )
    return traced.laid_out_like(grad_input, x), grad_weight, grad_bias


def _fake_backward(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _per_channel(x), _per_channel(x)


def _add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    output, off = norm_computation.add_relu(x, y)
    return traced.laid_out_like(output, x), traced.laid_out_like(off, x)


def _masked(grad: Tensor, off: Tensor) -> Tensor:
    return traced.laid_out_like(norm_computation.masked(grad, off), off)


for _name, _run, _shapes in (
    ("normalize", _normalize, _fake),
    ("normalize_backward", _normalize_backward, _fake_backward),
    ("add_relu", _add_relu, _add_relu),
    ("masked", _masked, _masked),
):
    _LIBRARY.impl(_name, _run, "CPU")
    torch.library.register_fake(f"qtrain::{_name}", _shapes, lib=_LIBRARY)
