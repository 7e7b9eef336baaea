"""inspect: the numeric error of every layer, forward and backward, on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import checks
from ..conversion.watch import twin
from ..copies import random_state_kept, unwrapped
from ..products.module import products_of
from .recorder import Recorder
from .report import Report
from .step import Loss, called, chosen_loss, step


def inspect(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Loss | None = None,
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
    if all(product.recipe.products_off for product in products_of(model)):
        raise ValueError("inspect: the model has no quantized layer; quantize(model) first")
    checks.batch("inputs", inputs)
    loss = chosen_loss("inspect", loss, targets)
    model = twin(model)
    recorders: dict[str, Recorder] = {}
    for product in products_of(model):
        product.probe = recorders.setdefault(product.name, Recorder())
    with random_state_kept():
        if loss is not None:
            step("inspect", model, inputs, targets, loss)
        else:
            with torch.no_grad():
                called(model, inputs)
    rows = [
        sums.row(name, role)
        for name, recorder in recorders.items()
        for role, sums, _ in recorder.rows()
    ]
    return Report(tuple(rows))
