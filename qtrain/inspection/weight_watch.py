"""What a quantized weight does: how far a step moves it, which of its codes go to and fro."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantizers import QTensor

from .pair import TensorPair
from .sampling import sampled

#: How many weights of a layer are followed, over how many of its records.
FOLLOWED, HISTORY = 256, 8
#: The fewest records in which a code can be said to go to and fro.
_SHORTEST = 4


class WeightWatch:
    """A parameter as a step's first forward saw it.

    weight   a view of the parameter, or itself
    q        the same, quantized
    limit    how many elements are looked at

    codes    of FOLLOWED of them, always the same ones: see `numbered`
    """

    def __init__(self, weight: Tensor, q: QTensor, limit: int) -> None:
        self._weight, self._limit = weight.detach(), limit
        self._version = weight._version
        self._before = sampled(weight.detach(), limit).clone()
        self._steps = TensorPair(self._before, sampled(q, limit)).step
        self.codes: list[int] = numbered(sampled(q, FOLLOWED)).flatten().tolist()

    def update(self) -> float | None:
        """The mean distance that the weights have moved since, in quantization steps; None where
        they have not been written to."""
        if self._weight._version == self._version:
            return None
        now = sampled(self._weight, self._limit)
        moved = (now.double() - self._before.double()).abs() / self._steps
        moved = moved[torch.isfinite(moved)]
        return moved.mean().item() if moved.numel() else None


def parameter(weight: Tensor) -> bool:
    """Whether a weight is a parameter or a view of one, which an optimizer writes to."""
    return isinstance(weight, nn.Parameter) or isinstance(weight._base, nn.Parameter)


def numbered(q: QTensor) -> Tensor:
    """Elements, less their zero point, as integers of which neighbours on the format's grid differ
    by 1: int64.  What is not finite counts as 0."""
    if q.format is None or q.zero_point is not None:
        return q.unshifted().long()
    return q.format.ordinals(q.elements)


def oscillation(history: Sequence[Sequence[int]]) -> float | None:
    """Which fraction of weights went to and fro between two neighbouring codes, and took no other.

    history: the codes of the same weights at the last records, oldest first.  None for fewer than
    four records.
    """
    if len(history) < _SHORTEST or not history[0]:
        return None
    codes = torch.tensor(history, device="cpu")
    two = codes.amax(0) - codes.amin(0) == 1
    changes = (codes.diff(dim=0) != 0).sum(0)
    return (two & (changes >= 2)).double().mean().item()
