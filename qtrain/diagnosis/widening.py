"""What to widen for some error to stay, and how much may stay so that a cosine is reached."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: No further set is measured from this many on, once one reaches the goal.
TRIALS = 12

#: Names of layers.
Layers = tuple[str, ...]


class Trial(NamedTuple):
    """A set of layers in full precision, and the cosine of the gradient: predicted, measured."""

    widened: Layers
    predicted: float
    measured: float


def error_of(cosine: float) -> float:
    """1/cosine^2 - 1; inf where that is beyond fp64."""
    return (1 / cosine) * (1 / cosine) - 1


def cosine_of(error: float) -> float:
    """The cosine whose 1/cos^2 - 1 this is."""
    return 1 / math.sqrt(1 + error)


def unreachable(goal: float) -> ValueError:
    """What to raise where no set but that of all layers will do."""
    return ValueError(
        f"cosine: got {goal!r}, which only full precision in every layer reaches; ask for less, or "
        f"give the recipe more bits"
    )


def greedy(errors: Mapping[str, float], costs: Mapping[str, float], allowed: float) -> Layers:
    """The layers to widen, in the order of `errors`, so that those of the others, which may be inf,
    sum to at most `allowed`: layers stay in the order of their error per cost, wherever it fits."""

    def rate(name: str) -> float:
        error, cost = errors[name], costs[name]
        return math.inf if error and not cost else error / (cost or 1)

    stay: set[str] = set()
    for name in sorted(errors, key=rate):
        if sum(errors[other] for other in errors if other in stay or other == name) <= allowed:
            stay.add(name)
    return tuple(name for name in errors if name not in stay)


def lowered(budget: float, measured: float) -> float:
    """What to multiply the error that may stay by, where a measured cosine misses the goal, whose
    error is `budget`: in proportion, within 0.5 and 0.95."""
    error = error_of(measured) if measured > 0 else math.inf
    return min(max(budget / error, 0.5), 0.95)


def searched(
    widened_for: Callable[[float], Layers],
    left: Callable[[Layers], float],
    measure: Callable[[Layers], float],
    goal: float,
    start: float,
) -> list[Trial]:
    """Trials, of which one at least reaches the goal.

    widened_for   of the error that may stay: the layers to widen, fewer for more
    left           of widened layers: the error that stays;  measure: the cosine
    start          the error that may stay at first: one for which something is widened

    Less may stay until the goal is reached, then the most that reaches it is bracketed, within 5 %,
    by `TRIALS` trials at most, or is all that may ever stay: what has an infinite error may not.
    ValueError where nothing more can be widened.
    """
    trials: dict[Layers, Trial] = {}
    does, misses, allowed = 0.0, math.inf, start
    fewest = widened_for(sys.float_info.max)
    while len(trials) < TRIALS or not does:
        widened = widened_for(allowed)
        measured = -math.inf  # with nothing widened the goal is missed: that is why we are here
        if widened:
            if widened not in trials:
                trials[widened] = Trial(widened, cosine_of(left(widened)), measure(widened))
            measured = trials[widened].measured
        if measured >= goal:
            does = allowed
        else:
            misses = allowed
        if does:
            if misses <= 1.05 * does or widened == fewest:
                break
            allowed = math.sqrt(does * misses) if misses < math.inf else 2 * does
        elif not left(widened):
            raise unreachable(goal)
        else:
            allowed *= lowered(error_of(goal), measured)
    return list(trials.values())
