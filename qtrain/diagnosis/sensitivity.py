"""sensitivity: which layer, product or role is to blame for the error of loss and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from .. import checks
from ..copies import unwrapped
from ..inspection.step import Loss
from ..reports.progress import Progress
from .gradient_error import cosine_and_error, moments
from .paired import Batch, PairedStep, batches_of, paired_steps
from .parts import PRODUCTS, Unit, grouped, own_parameters, owners
from .sensitivity_report import SensitivityReport, SensitivityRow
from .switches import Part, rounded_parts


def sensitivity(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Loss | None = None,
    *,
    by: str = "product",
    more: Iterable[Batch] = (),
) -> SensitivityReport:
    """What each part of a converted model does to loss and gradient, two ways: put back to full
    precision alone, and quantized alone.

    inputs, targets, loss   as `inspect` takes them; a loss there must be
    by      what a part is: "layer", "product" (forward, grad_input, grad_weight of each layer) or
            "role" (each operand of each product, and the output where it is rounded)
    more    further batches, (inputs, targets) each; every number is then the mean over all, of a
            step on each, as in training but with parameters that stay

    Full precision is the converted model with every part off: layers are torch's, norms stay as
    converted.  The gradient is that of all parameters as one vector, those that no part holds
    (biases, norms, embeddings, layers that were left) among them: errors that pass through layers
    reach them too.  All runs of a batch start from one state, with the rounding noise of the next
    step and the same random state (dropout): differences are of the parts alone.

    Runs on copies, in the model's present mode; the model, its gradients, its buffers and all
    random state stay untouched.  Two steps a part; grad_weight products of plain layers, which
    change their own layer's gradient alone, are measured all in two.  Raises ValueError for a model
    that rounds nothing, or where no loss or no gradient can be formed.
    """
    model = unwrapped(model)
    parts = rounded_parts(model)
    if not parts:
        raise ValueError("sensitivity: the model has no quantized layer; quantize(model) first")
    units = grouped(parts, by)
    checks.batch("inputs", inputs)
    alone = _felt_alone(model, units)
    arms = _arms(units, alone)
    batches = batches_of("sensitivity", inputs, targets, more)
    bar = Progress(2 * len(arms) * len(batches), done=0, text=f"sensitivity by {by}")
    try:
        found = [
            _measured(step, units, arms, alone, bar)
            for step in paired_steps("sensitivity", model, batches, loss)
        ]
    finally:
        bar.close()
    modules = owners(model)
    return SensitivityReport(
        by=by,
        batches=len(found),
        **_means([whole for whole, _ in found]),
        rows=tuple(
            SensitivityRow(
                layer, part, modules[layer], **_means([own[layer, part] for _, own in found])
            )
            for layer, part in units
        ),
    )


class _Whole(NamedTuple):
    """The fields of a SensitivityReport that are measured."""

    full_loss: float
    loss: float
    cosine: float
    error: float


class _Part(NamedTuple):
    """Those of a SensitivityRow."""

    gain_cosine: float
    gain_loss: float
    alone_cosine: float
    alone_error: float
    alone_loss: float


def _means(found: Sequence[_Whole] | Sequence[_Part]) -> dict[str, Any]:
    # not fmean, which takes no infinities of both signs
    return {
        name: sum(getattr(one, name) for one in found) / len(found) for name in found[0]._fields
    }


def _felt_alone(model: nn.Module, units: Iterable[Unit]) -> dict[Unit, set[str]]:
    """The units that change gradients of their own layer's parameters alone, and these."""
    own = own_parameters(model)
    return {
        (layer, part): own[layer]
        for layer, part in units
        if PRODUCTS.get(part, part) == "grad_weight" and layer in own
    }


def _arms(units: Iterable[Unit], alone: Mapping[Unit, set[str]]) -> list[list[Unit]]:
    """The units that are switched together: one of each layer where it is felt there alone."""
    arms: dict[Unit, list[Unit]] = {}
    for unit in units:
        arms.setdefault(("", unit[1]) if unit in alone else unit, []).append(unit)
    return list(arms.values())


def _measured(
    step: PairedStep,
    units: Mapping[Unit, tuple[Part, ...]],
    arms: list[list[Unit]],
    alone: Mapping[Unit, set[str]],
    bar: Progress,
) -> tuple[_Whole, dict[Unit, _Part]]:
    """One step with everything quantized, and with each unit put back, and quantized alone."""
    every = [part for parts in units.values() for part in parts]
    full_loss, reference = step.without(every)
    quantized = moments(step.quantized.gradient, reference)
    exact = {name: functional.pad(sums[:1], (0, 2)) for name, sums in quantized.items()}
    whole = _Whole(full_loss, step.quantized.loss, *cosine_and_error(quantized.values()))
    found = {}
    for arm in arms:
        own = [part for unit in arm for part in units[unit]]
        restored = step.without(own)
        bar.step()
        only = step.without([part for part in every if part not in own])
        bar.step()
        with_restored = moments(restored.gradient, reference)
        with_only = moments(only.gradient, reference)
        for unit in arm:
            names = alone.get(unit, quantized.keys())
            cosine, _ = cosine_and_error({**quantized, **_of(with_restored, names)}.values())
            found[unit] = _Part(
                cosine - whole.cosine,
                whole.loss - restored.loss,
                *cosine_and_error({**exact, **_of(with_only, names)}.values()),
                only.loss - full_loss,
            )
    return whole, found


def _of(sums: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: sums[name] for name in names if name in sums}
