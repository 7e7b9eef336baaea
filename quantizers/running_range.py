"""Ema: a range with memory, the moving average of another rule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from . import checks, tensor_checks
from .numbers import constant
from .ranges import MinMax, Range, RangeRule, State, check_rule, minmax


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of another rule's range, kept in the state.

    rule       the rule that is averaged
    momentum   torch's convention: running <- (1 - momentum) * running + momentum * new, as
               2 * ((new / 2 - running / 2) * momentum + running / 2) in fp32
    train_on   "running": training uses the average (the newest batch counted in);
               "batch": training uses the batch's own range; the average serves evaluation

    The first range initialises the average; until then evaluation uses the batch's own range.  A
    non-finite range is not averaged in, and still makes this tensor's scale non-finite.

    State: low, high, the share of them that ranges have given, 0 or 1, and how many have.  The
    range is low / share, high / share: so a moving average of states that begins with an empty
    one, as averages of models do, is a range too, as Adam's moments are (Kingma and Ba 2015,
    section 3).  The count decides nothing: averages truncate it.
    """

    rule: RangeRule = field(default_factory=MinMax)
    momentum: float = 0.1
    train_on: Literal["running", "batch"] = "running"
    #: what the state holds
    memory: ClassVar[tuple[str, ...]] = ("low", "high", "share", "steps")

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)
        if isinstance(self.rule, Ema):
            checks.refuse("rule", self.rule, "a range rule without memory, such as minmax")
        checks.share("momentum", self.momentum, above=0)
        checks.choice("train_on", self.train_on, ("running", "batch"))

    def init_state(self, compact: tuple[int, ...]) -> State:
        return {
            "low": torch.zeros(compact, dtype=torch.float32),
            "high": torch.zeros(compact, dtype=torch.float32),
            "share": torch.zeros((), dtype=torch.float32),
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def __call__(
        self, x: Tensor, block: Sequence[int], *, state: State | None = None, training: bool = True
    ) -> Range:
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
        finite = torch.isfinite(low) & torch.isfinite(high)
        if training:
            if x.numel() == 0:
                return low, high
            share, every = state["share"], finite.all()
            one = torch.ones_like(share)
            weight = torch.where(share == 0, one, constant(self.momentum, share))
            old = torch.stack([state["low"], state["high"]]) / torch.where(share == 0, one, share)
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
        share = state["share"]
        running_low = torch.where(share > 0, state["low"].view(low.shape) / share, low)
        running_high = torch.where(share > 0, state["high"].view(high.shape) / share, high)
        # the average has not seen these elements: a non-finite one must still be seen
        bad = float("nan")
        return torch.where(finite, running_low, bad), torch.where(finite, running_high, bad)


def with_share(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Ema`'s state as it was kept before it had a share, completed; any other as it is."""
    if set(state) != {"low", "high", "steps"}:
        return dict(state)
    return {**state, "share": (state["steps"] > 0).to(torch.float32)}


def ema(
    rule: RangeRule = minmax,
    momentum: float = 0.1,
    train_on: Literal["running", "batch"] = "running",
) -> Ema:
    """The moving average of `rule`'s range."""
    return Ema(rule, momentum, train_on)
