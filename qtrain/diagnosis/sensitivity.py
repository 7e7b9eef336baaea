"""sensitivity: which layer, product or role is to blame for the error of loss and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from .. import checks
from ..conversion.watch import arguments, twin
from ..inspection.step import Loss
from ..reports.progress import Progress
from .paired import Batch, PairedStep, batches_of, cosine_and_error, moments, paired_steps
from .parts import PRODUCTS, Unit, grouped, own_parameters, owners, rounded_parts
from .sensitivity_report import SensitivityReport, SensitivityRow

_Numbers = TypeVar("_Numbers", SensitivityReport, SensitivityRow)


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

    Full precision is the converted model with every part off: layers are torch's, norms and lookups
    stay as converted.  The gradient is that of all parameters as one vector, those that no part
    holds (biases, norms, embeddings, layers that were left) among them: errors that pass through
    layers reach them too.  All runs of a batch start from one state, with the rounding noise of
    the next step and the same random state (dropout): differences are of the parts alone.

    Runs on copies, in the model's present mode; the model, its gradients, its buffers and all
    random state stay untouched.  Two steps a part; grad_weight products of plain layers, which
    change their own layer's gradient alone, are measured all in two.  Raises ValueError for a model
    that rounds nothing, or where no loss or no gradient can be formed.
    """
    args, kwargs = arguments(inputs)
    model = twin(model, *args, **kwargs)
    parts = rounded_parts(model)
    if not parts:
        checks.no_quantized_layer("sensitivity")
    units = grouped(parts, by)
    own = own_parameters(model)
    alone = {  # the units that change gradients of their own layer's parameters alone, and these
        (layer, part): own[layer]
        for layer, part in units
        if PRODUCTS.get(part, part) == "grad_weight" and layer in own
    }
    arms: dict[Unit, list[Unit]] = {}  # those are switched together, one of each layer
    for unit in units:
        arms.setdefault(("", unit[1]) if unit in alone else unit, []).append(unit)
    batches = batches_of("sensitivity", inputs, targets, more)
    bar = Progress(2 * len(arms) * len(batches), done=0, text=f"sensitivity by {by}")
    modules = owners(model)

    def measured(step: PairedStep) -> SensitivityReport:
        """One step with everything quantized, and with each unit put back, and quantized alone."""
        full_loss, reference = step.without(parts)
        quantized = moments(step.quantized.gradient, reference)
        exact = {name: functional.pad(sums[:1], (0, 2)) for name, sums in quantized.items()}
        loss, (cosine, error) = step.quantized.loss, cosine_and_error(quantized.values())
        rows = {}
        for arm in arms.values():
            off = [part for unit in arm for part in units[unit]]
            restored = step.without(off)
            bar.step()
            only = step.without([part for part in parts if part not in off])
            bar.step()
            with_restored = moments(restored.gradient, reference)
            with_only = moments(only.gradient, reference)
            for unit in arm:
                names = alone.get(unit, quantized.keys())
                closer, _ = cosine_and_error({**quantized, **_of(with_restored, names)}.values())
                rows[unit] = SensitivityRow(
                    *unit,
                    modules[unit[0]],
                    closer - cosine,
                    loss - restored.loss,
                    *cosine_and_error({**exact, **_of(with_only, names)}.values()),
                    only.loss - full_loss,
                )
        found = tuple(rows[unit] for unit in units)
        return SensitivityReport(by, 1, full_loss, loss, cosine, error, found)

    try:
        found = [measured(step) for step in paired_steps("sensitivity", model, batches, loss)]
    finally:
        bar.close()
    rows = tuple(_mean(own) for own in zip(*(one.rows for one in found), strict=True))
    return replace(_mean(found), batches=len(found), rows=rows)


def _mean(found: Sequence[_Numbers]) -> _Numbers:
    """Reports, or rows, of several batches as one: the means of their numbers."""
    # not fmean, which takes no infinities of both signs
    names = [field.name for field in fields(found[0]) if field.type == "float"]
    return replace(
        found[0], **{name: sum(getattr(one, name) for one in found) / len(found) for name in names}
    )


def _of(sums: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: sums[name] for name in names if name in sums}
