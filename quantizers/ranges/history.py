"""History: a range with memory, from the ranges of the last tensors, as in delayed scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import checks
from .rules import MinMax, Range, RangeRule, State, minmax
from .running import Remembering, before, kept, seen


@dataclass(frozen=True)
class History(Remembering):
    """The range of the last tensors, the current one not among them: delayed scaling, as
    TransformerEngine's DelayedScaling(amax_history_len=window, amax_compute_algo=use), 16 or 1024
    long (Micikevicius et al. 2022, arXiv 2209.05433; Scale(headroom=2**margin) is its margin).

    window   how many tensors are remembered, 1 to 65536
    use      "max": the smallest low and the largest high among them (a place still empty counts as
             0, which no scale's range leaves out); "last": the last one's
    rule     the rule whose ranges are remembered

    A tensor's own range enters the history once the tensor is quantized, in training; evaluation
    leaves the history alone, and uses the range that the next tensor in training would.  What lies
    beyond that saturates, or follows the stated overflow.

    A range of zeros alone, which says nothing of the next, leaves the range in use as it was, and
    so long as there is none, at the first step, a tensor's own is used (TransformerEngine begins
    with scale 1, that is with the format's own range).  A non-finite range does not enter, and
    still makes this tensor's scale non-finite: the range in use is that of finite tensors alone
    (TransformerEngine's stands still until the non-finite one has left the window).

    State: low, high, the range in use, and share and steps, as Ema's; lows, highs: (window,
    blocks), the newest first, zeros where there is none yet.
    """

    window: int
    use: Literal["max", "last"] = "max"
    rule: RangeRule = field(default_factory=MinMax)
    memory: ClassVar[tuple[str, ...]] = ("low", "high", "share", "steps", "lows", "highs")

    def __post_init__(self) -> None:
        checks.integer("window", self.window, low=1, high=2**16)
        checks.choice("use", self.use, ("max", "last"))
        self._check_rule()

    def init_state(self, compact: tuple[int, ...]) -> State:
        state = self._start(compact)
        ends = torch.zeros(self.window, state["low"].numel(), dtype=torch.float32)
        return {**state, "lows": ends, "highs": ends.clone()}

    def __call__(
        self, x: Tensor, block: Sequence[int], *, state: State | None = None, training: bool = True
    ) -> Range:
        state, low, high = self._own(x, block, state)
        old = kept(state)
        finite = torch.isfinite(low) & torch.isfinite(high)
        if training and x.numel():
            self._move(state, old, torch.stack([low, high]), finite)
        return seen(before(old, low, high), finite)

    def _move(self, state: State, old: Tensor, new: Tensor, finite: Tensor) -> None:
        """Push the range new, where it is finite, and find the one to use next.

        old, new: (2, ...), lows and highs; old: the range in use.
        """
        lows, highs = state["lows"], state["highs"]
        places = self.window, old[0].numel()
        if not lows.numel() == highs.numel() == places[0] * places[1]:
            raise ValueError(
                f"state: got lows of shape {tuple(lows.shape)}, need {places}, (window, blocks)"
            )
        past = torch.stack([lows.view(places), highs.view(places)])
        pushed = torch.cat([new.view(2, 1, -1), past[:, :-1]], 1)
        past = torch.where(finite.view(-1), pushed, past)
        lows.copy_(past[0].view_as(lows))
        highs.copy_(past[1].view_as(highs))
        found = past[:, 0]
        if self.use == "max":
            found = torch.stack([past[0].amin(0), past[1].amax(0)])
        found = found.view(old.shape)
        found = torch.where((found == 0).all(0), old, found)
        state["low"].copy_(found[0])
        state["high"].copy_(found[1])
        state["share"].copy_((found != 0).any())
        state["steps"].add_(finite.all())


def history(window: int, use: Literal["max", "last"] = "max", rule: RangeRule = minmax) -> History:
    """The range of the last `window` tensors, before the current one."""
    return History(window, use, rule)
