"""inspect: the numeric error of every layer, forward and backward, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .aside import detached, random_state_kept, unwrapped
from .conversion import forget_watch
from .copies import copied
from .layers import QProduct
from .losses import cross_entropy
from .recorder import Recorder
from .report import Report


def inspect(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Callable[..., Tensor] | None = None,
) -> Report:
    """The error of each layer's operands and products on one batch, against full precision.

    Local error: each product is compared with the fp64 product of the same unquantized operands,
    so a row shows what its layer adds, not what earlier layers passed on.

    inputs    what the model is called with: a tensor, a tuple (positional) or a mapping (by name)
    targets   what the loss is given besides the output; None: forward roles only, unless `loss`
    loss      loss(output, targets) -> scalar (loss(output) without targets); default: the
              cross-entropy for integer targets

    Runs on a copy, in the model's present mode, with the noise of the next step; the model, its
    gradients, its buffers and all random state stay untouched.  Norms have no rows: another
    deviation is another function, not an error.

    Raises ValueError for a model without a quantized layer, or where no loss can be formed.
    """
    model = unwrapped(model)
    products = [m for m in model.modules() if isinstance(m, QProduct)]
    if not any(not p.recipe.products_off for p in products):
        raise ValueError("inspect: the model has no quantized layer; quantize(model) first")
    if loss is None and targets is not None:
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(
                f"inspect: targets are {kind}; the default loss is the cross-entropy of integer "
                f"class targets, so pass loss=, a function of (output, targets)"
            )
        loss = cross_entropy
    twin = copied(model)
    forget_watch(twin)
    recorders: dict[str, Recorder] = {}
    for product in twin.modules():
        if isinstance(product, QProduct):
            product.probe = recorders.setdefault(product.name, Recorder())
    with random_state_kept(), torch.set_grad_enabled(loss is not None):
        output = _call(twin, detached(inputs))
        if loss is not None:
            pairs: list[tuple[Tensor, Tensor]] = []
            output = detached(output, pairs)
            value = loss(output, targets) if targets is not None else loss(output)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"inspect: the loss must be one number, got {value!r}")
            _differentiate(twin, value.reshape(()), pairs)
    rows = [
        sums.row(name or "(model)", role)
        for name, recorder in recorders.items()
        for role, sums, _ in recorder.rows()
    ]
    return Report(tuple(rows))


def _differentiate(model: nn.Module, loss: Tensor, outputs: list[tuple[Tensor, Tensor]]) -> None:
    """Backward through the model alone, so that whatever else the loss depends on gets no gradient.

    outputs: the model's, and their cut copies, from which the loss was computed.
    """
    pairs = [(x, cut) for x, cut in outputs if x.grad_fn is not None]
    if not loss.requires_grad or (outputs and not pairs):
        return  # everything is frozen: there is no backward pass
    if not outputs:  # an object of a class unknown to us, whose graph was not cut
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True)
        return
    # not torch.autograd.grad by parameters: reentrant checkpoints do not reach them so
    grads = torch.autograd.grad(loss, [cut for _, cut in pairs], allow_unused=True)
    reached = [(x, g) for (x, _), g in zip(pairs, grads, strict=True) if g is not None]
    torch.autograd.backward([x for x, _ in reached], [g for _, g in reached])


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | Tensor):
        return model(*inputs)
    return model(inputs)
