"""A user's step function: what it may return, and what it must leave as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

#: What is called with a model, its optimizer, a batch; it returns the loss.
StepFunction = Callable[[nn.Module, Any, Any], Tensor | float]


class Watch:
    """Of a model, its optimizer and a batch: whether a step on copies has changed the originals."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, batch: Any) -> None:
        self._model, self._optimizer, self._batch = model, optimizer, batch
        self._before = self._now()

    def check(self) -> None:
        """ValueError where model, settings of the optimizer or batch have changed since."""
        model, optimizer, batch = (
            now != before for now, before in zip(self._now(), self._before, strict=True)
        )
        if model or optimizer:
            raise ValueError(
                f"step: it changed the {'model' if model else 'optimizer'} that was given; it must "
                f"train the model and use the optimizer that it is called with, and a learning "
                f"rate that moves must come with the batch"
            )
        if batch:
            raise ValueError(
                "step: it changed its batch in place, which every run is given; change a copy"
            )

    def _now(self) -> tuple[object, object, object]:
        settings = [
            (name, value._version if isinstance(value, Tensor) else value)
            for group in self._optimizer.param_groups
            for name, value in group.items()
            if name != "params"
        ]
        tensors = (*self._model.parameters(), *self._model.buffers())
        return _versions(tensors), settings, _versions(_tensors(self._batch))


def loss_of(returned: object) -> float:
    """The loss that a step returned; ValueError for what is not one number."""
    if isinstance(returned, Tensor) and returned.numel() == 1 and not returned.is_complex():
        return float(returned.detach())
    if isinstance(returned, Real) and not isinstance(returned, bool):
        return float(returned)
    many = isinstance(returned, Tensor)
    got = f"a tensor of {tuple(returned.shape)}" if many else repr(returned)[:60]  # type: ignore[attr-defined]
    raise ValueError(f"step: it returned {got}, need the loss, one number")


def _versions(tensors: Any) -> list[int]:
    return [tensor._version for tensor in tensors]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Of nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)
