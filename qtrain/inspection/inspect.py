"""The numeric error of every layer on one batch: inspect, each product against that of its own
operands; accumulated, against the full-precision network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .. import checks
from ..conversion.converted import plain_state_dict
from ..conversion.watch import arguments, twin
from ..copies import copied, unwrapped
from ..layer_state import LayerState
from ..products.probe import Computed
from ..products.watched import watched_of
from .figures import Sums
from .pair import TensorPair
from .probes import in_full_precision, show, watchable
from .recorder import Recorder
from .report import Report
from .sampling import sampled
from .step import Loss, chosen_loss, rehearse


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
    args, kwargs = arguments(inputs)
    model = twin(model, *args, **kwargs)
    if all(own.is_off for own in watched_of(model)):
        checks.no_quantized_layer("inspect")
    loss = chosen_loss("inspect", loss, targets)
    recorders: dict[str, Recorder] = {}
    for own in watched_of(model):
        own.probe = recorders.setdefault(own.name, Recorder())
    rehearse("inspect", model, inputs, targets, loss)
    rows = [
        sums.row(name, role)
        for name, recorder in recorders.items()
        for role, sums, _ in recorder.rows()
    ]
    return Report(tuple(rows))


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
    reference   None: the model itself with products and lookups in full precision and its norms as
                converted, so that only the rounding of products counts; or the unconverted
                network, into which the model's weights and buffers are loaded: norms count too
    samples     how many elements of each tensor are looked at, evenly spread; None: all

    Products inside attention modules and recurrent layers have rows (of all time steps together);
    products of functions have none (`summary` names them).  Both passes run on copies, in the
    model's present mode, with the same random state: nothing of the model or the reference changes.

    Raises ValueError for a model without a quantized layer, a reference that is quantized or does
    not take the model's state, and where no loss can be formed.
    """
    args, kwargs = arguments(inputs)
    model = twin(model, *args, **kwargs)
    if all(own.is_off for own in watched_of(model)):
        checks.no_quantized_layer("accumulated")
    if samples is not None:
        checks.integer("samples", samples, low=1, hint="None looks at every element")
    if reference is not None:
        checks.module(reference, "reference")
    loss = chosen_loss("accumulated", loss, targets)
    exact = in_full_precision(
        model if reference is None else _loaded(reference, model), *args, **kwargs
    )
    kept: dict[_Key, Tensor] = {}

    def keep(layer: str, call: int, product: Computed) -> None:
        for role, tensor in _tensors(product):
            kept.setdefault((layer, role, call), _some(tensor, samples))

    show(exact, keep)
    rehearse("accumulated", exact, inputs, targets, loss)

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

    own = watchable(model, *args, **kwargs)
    show(own, compare)
    rehearse("accumulated", own, inputs, targets, loss)
    layers = dict.fromkeys(layer for layer, _ in sums)
    return Report(
        tuple(
            sums[layer, role].row(layer, role)
            for layer in layers
            for role in _ROLES
            if (layer, role) in sums
        )
    )


def _tensors(product: Computed) -> Iterator[tuple[str, Tensor]]:
    if product.kind == "forward":
        yield "output", product.result
    else:
        yield "grad_output", product.a
        yield product.kind, product.result


def _some(tensor: Tensor, samples: int | None) -> Tensor:
    """A copy of the tensor's sampled elements, or of all."""
    x = tensor.detach()
    return x.clone() if samples is None or x.numel() <= samples else sampled(x, samples)


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
