"""Ranges with a memory: what they share, and Ema, the moving average of another rule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import checks, tensor_checks
from ..devices.numbers import constant
from .rules import MinMax, Range, RangeRule, State, check_rule, minmax


class Remembering:
    """A rule whose range depends on tensors before: what `Ema` and `History` share.

    rule     the rule whose ranges are remembered
    memory   what the state holds: low, high and share among it, of which low / share, high / share
             is the range for the next tensor
    """

    rule: RangeRule
    memory: ClassVar[tuple[str, ...]]

    @property
    def settled(self) -> bool:
        """Whether evaluation with a state uses the range that training had used as it made it."""
        return False

    def _check_rule(self) -> None:
        check_rule("rule", self.rule)
        if isinstance(self.rule, Remembering):
            checks.refuse("rule", self.rule, "a range rule without memory, such as minmax")

    def _start(self, compact: tuple[int, ...]) -> State:
        """A state without a range."""
        return {
            "low": torch.zeros(compact, dtype=torch.float32),
            "high": torch.zeros(compact, dtype=torch.float32),
            "share": torch.zeros((), dtype=torch.float32),
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def _own(
        self, x: Tensor, block: Sequence[int], state: State | None
    ) -> tuple[State, Tensor, Tensor]:
        """The state, checked, and x's own range."""
        if state is None:
            raise ValueError(
                "a range with memory needs state: pass state=quantizer.init_state(shape)"
            )
        tensor_checks.state(state, self.memory)
        low, high = self.rule(x, block)
        if not low.numel() == state["low"].numel() == state["high"].numel():
            raise ValueError(
                f"state: got ranges of shape {tuple(state['low'].shape)}, need "
                f"{tuple(low.shape)}, as init_state({tuple(x.shape)}) makes them"
            )
        return state, low, high


def kept(state: State) -> Tensor:
    """(2, ...): low / share and high / share, or zeros."""
    share = state["share"]
    return torch.stack([state["low"], state["high"]]) / torch.where(share == 0, 1.0, share)


def before(kept: Tensor, low: Tensor, high: Tensor) -> Range:
    """The range that was kept; (low, high), the tensor's own, where that is none, or of zeros."""
    kept = kept.view(2, *low.shape)
    none = (kept == 0).all(0)
    return torch.where(none, low, kept[0]), torch.where(none, high, kept[1])


def seen(found: Range, finite: Tensor) -> Range:
    """A range that was found without the tensor's elements: a non-finite one must still be seen."""
    bad = float("nan")
    return torch.where(finite, found[0], bad), torch.where(finite, found[1], bad)


@dataclass(frozen=True)
class Ema(Remembering):
    """An exponential moving average of another rule's range, kept in the state.

    rule       the rule that is averaged
    momentum   torch's convention: running <- (1 - momentum) * running + momentum * new, as
               2 * ((new / 2 - running / 2) * momentum + running / 2) in fp32
    train_on   "running": training uses the average;
               "batch": training uses the batch's own range; the average serves evaluation
    use        "current": the newest batch is counted in;
               "previous": it counts from the next batch on, so that a tensor's range is known
               before the tensor is: in-hindsight ranges (Fournarakis and Nagel 2021, arXiv
               2105.04246, whose eta is 1 - momentum)

    The first range initialises the average; until then evaluation uses the batch's own range, and
    so does training with "previous", where an average of 0, of zeros alone, counts as none.  What
    lies beyond a range from before saturates, or follows the stated overflow.  A non-finite range
    is not averaged in, and still makes this tensor's scale non-finite.

    State: low, high, the share of them that ranges have given, 0 or 1, and how many have.  The
    range is low / share, high / share: so a moving average of states that begins with an empty
    one, as averages of models do, is a range too, as Adam's moments are (Kingma and Ba 2015,
    section 3).  The count decides nothing: averages truncate it.
    """

    rule: RangeRule = field(default_factory=MinMax)
    momentum: float = 0.1
    train_on: Literal["running", "batch"] = "running"
    use: Literal["current", "previous"] = "current"
    memory: ClassVar[tuple[str, ...]] = ("low", "high", "share", "steps")

    def __post_init__(self) -> None:
        self._check_rule()
        checks.share("momentum", self.momentum, above=0)
        checks.choice("train_on", self.train_on, ("running", "batch"))
        checks.choice("use", self.use, ("current", "previous"))
        if self.use == "previous" and self.train_on == "batch":
            raise ValueError(
                "use: got 'previous' with train_on='batch', which trains on the batch's own range; "
                "leave one of them out"
            )

    @property
    def settled(self) -> bool:
        return self.train_on == "running" and self.use == "current"

    def init_state(self, compact: tuple[int, ...]) -> State:
        return self._start(compact)

    def __call__(
        self, x: Tensor, block: Sequence[int], *, state: State | None = None, training: bool = True
    ) -> Range:
        state, low, high = self._own(x, block, state)
        finite = torch.isfinite(low) & torch.isfinite(high)
        used: Range | None = None
        if self.use == "previous":
            used = before(kept(state), low, high)
        if training:
            if x.numel() == 0:
                return low, high
            share, every, old = state["share"], finite.all(), kept(state)
            weight = torch.where(share == 0, 1.0, constant(self.momentum, share))
            if self.use == "previous":
                weight = torch.where((old == 0).all(0), 1.0, weight)
            new = torch.stack([low, high]).view(old.shape)
            half = old * 0.5  # in halves, whose difference passes no end of fp32
            moved = ((new * 0.5 - half) * weight + half) * 2.0
            moved = torch.where(finite.view(old.shape[1:]), moved, old)
            state["low"].copy_(moved[0])
            state["high"].copy_(moved[1])
            share.copy_((share > 0) | every)
            state["steps"].add_(every)
            if self.train_on == "batch":
                return low, high
        if used is None:
            share = state["share"]
            used = (
                torch.where(share > 0, state["low"].view(low.shape) / share, low),
                torch.where(share > 0, state["high"].view(high.shape) / share, high),
            )
        return seen(used, finite)


def with_share(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Ema`'s state as it was kept before it had a share, completed; any other as it is."""
    if set(state) != {"low", "high", "steps"}:
        return dict(state)
    return {**state, "share": (state["steps"] > 0).to(torch.float32)}


def ema(
    rule: RangeRule = minmax,
    momentum: float = 0.1,
    train_on: Literal["running", "batch"] = "running",
    use: Literal["current", "previous"] = "current",
) -> Ema:
    """The moving average of `rule`'s range, with the current tensor's or of those before it."""
    return Ema(rule, momentum, train_on, use)
