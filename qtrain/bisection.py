"""bisect: the smallest set of parts that, in full precision, takes a divergence away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import fill
from typing import Literal, NamedTuple

from torch import nn

from . import checks, terminal
from .aside import random_state_kept, unwrapped
from .conversion import forget_watch
from .copies import copied
from .smallest import TrialsSpentError, most_trials, smallest
from .switches import Part, rounded_parts, switched_off
from .text_table import WIDTH
from .units import Unit, grouped


class BisectTrial(NamedTuple):
    """One run: what was in full precision, whether it diverged, how long it took in seconds."""

    off: tuple[Unit, ...]
    diverged: bool
    seconds: float


@dataclass(frozen=True)
class Bisection:
    """What `bisect` found.  `print(found)`, `found.units`, `found.trials`.

    outcome   "found": with `units` in full precision it does not diverge; "none needed": it does
              not diverge as it is; "none helps": it does with every candidate in full precision,
              so it is not these parts' rounding
    units     (layer, part) of the smallest set;  parts: its (layer, role)s
    minimal   whether it diverges again with any one of `units` quantized; False where the trials
              ran out before that was known
    trials    every run, in order;  candidates: how many units there were to choose from
    """

    outcome: Literal["found", "none needed", "none helps"]
    units: tuple[Unit, ...]
    parts: tuple[Part, ...]
    minimal: bool
    trials: tuple[BisectTrial, ...]
    candidates: int

    def __str__(self) -> str:
        many = "1 trial" if len(self.trials) == 1 else f"{len(self.trials)} trials"
        count = f"{many}, {sum(t.seconds for t in self.trials):.1f} s"
        if self.outcome == "none needed":
            return f"it does not diverge as it is ({count})"
        if self.outcome == "none helps":
            text = (
                f"it diverges with all {self.candidates} candidates in full precision too: it is "
                f"not their rounding ({count})"
            )
            return fill(text, WIDTH)
        why = (
            "and does with any one of them quantized"
            if self.minimal
            else "the trials ran out: a part of them may do"
        )
        text = (
            f"it does not diverge with {len(self.units)} of {self.candidates} in full precision, "
            f"{why} ({count}):"
        )
        return "\n".join([fill(text, WIDTH), *(f"  {_named(unit)}" for unit in self.units)])


def bisect(
    model: nn.Module,
    diverges: Callable[[nn.Module], bool],
    parts: Iterable[Part] | None = None,
    *,
    by: str = "product",
    trials: int | None = None,
    say: Callable[[str], object] | None = None,
) -> Bisection:
    """Which parts of a converted model make a run diverge: a smallest set that, in full precision,
    takes the divergence away.

    diverges   a function of the model that runs the steps in question and says whether they
               diverge; `replay` makes one of an optimizer, a step function and batches.  Each trial
               gives it a new copy of the model as it is now, with some parts in full precision, and
               the same random state: so it may train it.  Whatever else it changes it must restore,
               and optimizers must be made anew, of the copy's parameters
    parts      (layer, role) of the candidates; None: everything the model rounds
    by         what is switched as one: "layer", "product" or "role"
    trials     how many runs may be made, 2 at least; None: as many as it takes
    say        is told of each trial; None: lines on stderr

    Of n candidates one culprit takes about 2 log2 n trials; the most it can take is n^2 + 3 n + 2.
    The set is 1-minimal: with any one of its units quantized again the run diverges; another set,
    of fewer units even, may do as well.  Model, gradients, buffers and random state stay untouched.
    ValueError for parts that the model does not round.
    """
    model = unwrapped(model)
    checks.function("diverges", diverges, "a function of a copy of the model", None)
    if say is not None:
        checks.function("say", say, "a function of a line of text, or None", "")
    known = rounded_parts(model)
    candidates = known if parts is None else _given(parts)
    with switched_off(copied(model), candidates):
        pass  # an unknown part is an error, also where no trial would meet it
    units = grouped(candidates, by)
    if not units:
        raise ValueError("bisect: there is nothing to switch; quantize(model) first, or give parts")
    limit = most_trials(len(units)) + 2
    if trials is not None:
        limit = checks.integer("trials", trials, low=2)
    tell = say or terminal.say
    done: list[BisectTrial] = []

    def diverged(off: tuple[Unit, ...]) -> bool:
        if len(done) == limit:
            raise TrialsSpentError
        twin = copied(model)
        forget_watch(twin)
        own = [part for unit in off for part in units[unit]]
        start = time.monotonic()
        with random_state_kept(), switched_off(twin, own):
            found = checks.boolean("diverges: its result", diverges(twin))
        done.append(BisectTrial(off, found, time.monotonic() - start))
        names = ", ".join(map(_named, off[:3])) + (", ..." if len(off) > 3 else "")
        tell(
            f"bisect: trial {len(done)}: {len(off)} of {len(units)} in full precision "
            f"({names or 'none'}): {'diverges' if found else 'does not diverge'}"
        )
        return found

    def result(
        outcome: Literal["found", "none needed", "none helps"],
        found: tuple[Unit, ...],
        minimal: bool,
    ) -> Bisection:
        own = tuple(part for unit in found for part in units[unit])
        return Bisection(outcome, found, own, minimal, tuple(done), len(units))

    every = tuple(units)
    if not diverged(()):
        return result("none needed", (), True)
    if diverged(every):
        return result("none helps", (), True)
    return result("found", *smallest(every, lambda off: not diverged(off)))


def _given(parts: Iterable[Part]) -> list[Part]:
    """Each once; ValueError for what is no pair."""
    need = "(layer, role) each, as rounded_parts has it"
    found: dict[Part, None] = {}
    for part in checks.iterable("parts", parts, need):
        pair = tuple(part) if isinstance(part, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise ValueError(f"parts: got {checks.shown(part)}, need {need}")
        found[pair] = None
    return list(found)


def _named(unit: Unit) -> str:
    layer, part = unit
    return layer if part == "all" else f"{layer} {part}"
