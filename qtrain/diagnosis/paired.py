"""Steps of a model aside, each several times from one state, with other parts in full precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import checks
from ..conversion.watch import twin
from ..copies import copied, random_state_kept
from ..inspection.step import Loss, chosen_loss, step
from .gradient_error import gradients
from .switches import Part, switched_off

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


def paired_steps(
    caller: str, model: nn.Module, batches: Iterable[Batch], loss: Loss | None
) -> Iterator[PairedStep]:
    """One step for each batch, on copies of the model, whose parameters stay as they are; buffers,
    such as noise counters and running statistics, go on from batch to batch.

    ValueError, in the caller's name, where no loss or no gradient can be formed.
    """
    model = twin(model)
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
    return Outcome(value.item(), gradients(model))
