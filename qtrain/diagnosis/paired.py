"""Steps of a model aside, each several times from one state, with other parts in full precision:
how far their gradients are from one another, in direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from ..conversion.overrides import Override
from ..conversion.set_recipe import set_recipe
from ..conversion.watch import twin
from ..copies import copied, random_state_kept
from ..inspection.step import Loss, chosen_loss, step
from ..recipe import Recipe
from .parts import Part, switched_off

#: Inputs and targets.
Batch = tuple[Any, Any]


def batches_of(caller: str, inputs: Any, targets: Any, more: Iterable[Batch]) -> list[Batch]:
    """A batch and more of them; ValueError, in the caller's name, for what is no pair."""
    found = [(inputs, targets)]
    for batch in checks.iterable("more", more, "a list of (inputs, targets)"):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"{caller}: more: got a batch of type {type(batch).__name__}, need (inputs, "
                f"targets), with None for targets that there are not"
            )
        found.append((batch[0], batch[1]))
    return found


class Outcome(NamedTuple):
    """Of a step: the loss, and each parameter's gradient."""

    loss: float
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class PairedStep:
    """One batch, and a model before it.

    quantized   what the step gives with every part as it was converted
    """

    caller: str
    model: nn.Module
    batch: Batch
    loss: Loss
    quantized: Outcome

    def without(self, off: Iterable[Part]) -> Outcome:
        """What the step gives with these parts off: same state, same noise, same random state."""
        return _run(self.caller, copied(self.model), self.batch, self.loss, off)

    def under(self, recipe: Recipe, overrides: Mapping[str, Override]) -> Outcome:
        """What it gives under another recipe: same state, same noise, same random state."""
        model = set_recipe(copied(self.model), recipe, overrides)
        return _run(self.caller, model, self.batch, self.loss, ())


def paired_steps(
    caller: str, model: nn.Module, batches: Iterable[Batch], loss: Loss | None
) -> Iterator[PairedStep]:
    """One step for each batch, on copies of the model, whose parameters stay as they are; buffers,
    such as noise counters and running statistics, go on from batch to batch.

    ValueError, in the caller's name, where no loss or no gradient can be formed.
    """
    model = twin(model)  # its calls have layers by now
    model.zero_grad(set_to_none=True)
    for inputs, targets in batches:
        own = chosen_loss(caller, loss, targets)
        if own is None:
            raise ValueError(f"{caller}: give targets or loss=; a gradient needs a loss")
        after = copied(model)
        quantized = _run(caller, after, (inputs, targets), own, ())
        if not quantized.gradient:
            raise ValueError(
                f"{caller}: no parameter of the model gets a gradient from this loss; set "
                f"requires_grad of what is trained, and use the model's output in the loss"
            )
        yield PairedStep(caller, model, (inputs, targets), own, quantized)
        after.zero_grad(set_to_none=True)
        model = after


def _run(caller: str, model: nn.Module, batch: Batch, loss: Loss, off: Iterable[Part]) -> Outcome:
    with random_state_kept(), switched_off(model, off):
        value = step(caller, model, *batch, loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Outcome(
        value.item(),
        {n: (g.to_dense() if g.is_sparse else g).detach() for n, g in gradients.items()},
    )


def moments(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """parameter -> (|r|^2, (g - r).r, |g - r|^2), fp64 on the CPU: g of `found`, r of `reference`.

    A parameter that has no gradient in one of the two counts as zeros there.
    """
    sums = {}
    for name in dict.fromkeys((*reference, *found)):
        like = reference[name] if name in reference else found[name]
        g, r = (
            each[name].double().flatten() if name in each else like.new_zeros(like.numel()).double()
            for each in (found, reference)
        )
        error = g - r
        sums[name] = torch.stack([r @ r, error @ r, error @ error]).cpu()
    return sums


def cosine_and_error(parts: Iterable[Tensor]) -> tuple[float, float]:
    """(cosine of a gradient and its reference, tan^2 of their angle), from values of `moments`.

    tan^2 = 1 / cos^2 - 1, without the cancellation near a cosine of 1; inf from a right angle on.
    A gradient of zeros is at a right angle; a reference of zeros gives NaN.
    """
    whole, along, square = torch.stack(list(parts)).sum(0).tolist()
    if whole == 0:
        return math.nan, math.nan
    projection = whole + along  # of the gradient on the reference, times the latter's length
    if projection == 0:
        return 0.0, math.inf
    across = max(square - along * (along / whole), 0.0)
    error = (across / projection) * (whole / projection)
    cosine = math.copysign(1 / math.sqrt(1 + error), projection)
    return cosine, math.inf if cosine < 0 else error
