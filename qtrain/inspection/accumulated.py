"""accumulated: how far every layer of a model, on one batch, is from full precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..conversion.converted import plain_state_dict
from ..copies import copied, random_state_kept, unwrapped
from ..layer_state import LayerState
from ..products.call import Computed
from ..products.module import products_of
from .figures import Sums
from .pair import TensorPair
from .probes import in_full_precision, show, watchable
from .report import Report
from .sampling import sampled
from .step import Loss, called, chosen_loss, step

_ROLES = ("output", "grad_output", "grad_input", "grad_weight")
#: (layer, role, which call of the layer)
_Key = tuple[str, str, int]


def accumulated(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Loss | None = None,
    reference: nn.Module | None = None,
    *,
    samples: int | None = 2**16,
) -> Report:
    """The error that has piled up at each layer on one batch, against the full-precision network.

    Where `inspect` compares each product with that of its own operands, this compares it with what
    the reference computes there: rows "output" (forward), "grad_output" (what arrives at a layer in
    the backward pass), "grad_input" and "grad_weight".

    inputs, targets, loss   as in `inspect`
    reference   None: the model itself with every product in full precision and its norms as
                converted, so that only the rounding of products counts; or the unconverted
                network, into which the model's weights and buffers are loaded: norms count too
    samples     how many elements of each tensor are looked at, evenly spread; None: all

    Products inside attention modules have rows; products of functions and of recurrent layers have
    none (`summary` names them).  Both passes run on copies, in the model's present mode, with the
    same random state: nothing of the model or the reference changes.

    Raises ValueError for a model without a quantized layer, a reference that is quantized or does
    not take the model's state, and where no loss can be formed.
    """
    model = unwrapped(model)
    if all(product.recipe.products_off for product in products_of(model)):
        raise ValueError("accumulated: the model has no quantized layer; quantize(model) first")
    if samples is not None:
        checks.integer("samples", samples, low=1, hint="None looks at every element")
    checks.batch("inputs", inputs)
    if reference is not None:
        checks.module(reference, "reference")
    loss = chosen_loss("accumulated", loss, targets)
    exact = in_full_precision(model if reference is None else _loaded(reference, model))
    kept: dict[_Key, Tensor] = {}
    show(exact, lambda layer, call, product: _keep(kept, layer, call, product, samples))
    _run(exact, inputs, targets, loss)

    sums: dict[tuple[str, str], Sums] = {}
    seen: set[_Key] = set()

    def compare(layer: str, call: int, product: Computed) -> None:
        for role, tensor in _tensors(product):
            key = layer, role, call
            if key in seen:
                continue
            seen.add(key)
            own = sums.setdefault((layer, role), Sums())
            before, now = kept.get(key), _some(tensor, samples)
            if before is None or before.shape != now.shape:
                own.note = "not all compared: the reference ran this layer otherwise"
            else:
                own.add(TensorPair(before, now), quantized=False)

    twin = watchable(model)
    show(twin, compare)
    _run(twin, inputs, targets, loss)
    layers = dict.fromkeys(layer for layer, _ in sums)
    return Report(
        tuple(
            sums[layer, role].row(layer, role)
            for layer in layers
            for role in _ROLES
            if (layer, role) in sums
        )
    )


def _run(twin: nn.Module, inputs: Any, targets: Any, loss: Loss | None) -> None:
    with random_state_kept():
        if loss is not None:
            step("accumulated", twin, inputs, targets, loss)
        else:
            with torch.no_grad():
                called(twin, inputs)


def _tensors(product: Computed) -> Iterator[tuple[str, Tensor]]:
    if product.kind == "forward":
        yield "output", product.result
    else:
        yield "grad_output", product.a
        yield product.kind, product.result


def _keep(
    kept: dict[_Key, Tensor], layer: str, call: int, product: Computed, samples: int | None
) -> None:
    for role, tensor in _tensors(product):
        kept.setdefault((layer, role, call), _some(tensor, samples))


def _some(tensor: Tensor, samples: int | None) -> Tensor:
    """A copy of the tensor's sampled elements, or of all."""
    x = tensor.detach()
    if samples is not None and x.numel() > samples:
        (x,) = sampled(x, limit=samples)  # type: ignore[assignment]
        return x
    return x.clone()


def _loaded(reference: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of the reference with the model's weights, buffers and modes."""
    reference = unwrapped(reference)
    if any(isinstance(module, LayerState) for module in reference.modules()):
        raise ValueError(
            "reference: it is quantized; give the network as it was before quantize(), or none"
        )
    twin = copied(reference)
    try:
        twin.load_state_dict(plain_state_dict(model))
    except RuntimeError as error:
        raise ValueError(
            f"reference: it does not take the model's state ({error}); give the network that was "
            f"quantized"
        ) from error
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in twin.named_modules():
        module.training = modes.get(name, module.training)
    return twin
