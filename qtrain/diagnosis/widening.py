"""What to widen for some error to stay, and how much may stay so that a cosine is reached."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import NamedTuple

#: No further set is measured from this many on, once one reaches the goal.
TRIALS = 12

#: Names of layers.
Layers = tuple[str, ...]


class Trial(NamedTuple):
    """A set of parts that are wider, and the cosine of the gradient: predicted, measured."""

    widened: Layers
    predicted: float
    measured: float


def error_of(cosine: float) -> float:
    """1/cosine^2 - 1; inf where that is beyond fp64."""
    return (1 / cosine) * (1 / cosine) - 1


def cosine_of(error: float) -> float:
    """The cosine whose 1/cos^2 - 1 this is."""
    return 1 / math.sqrt(1 + error)


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


def tried(
    errors: Mapping[str, float],
    costs: Mapping[str, float],
    allowed: float,
    measure: Callable[[Layers], float],
    goal: float,
) -> list[Trial]:
    """Greedy sets and what they reach, for errors that stay `allowed` at first: half as much until
    the goal is reached, then twice as much until it is missed, then between the two."""
    trials: dict[Layers, Trial] = {}
    does, misses, fewest = 0.0, math.inf, greedy(errors, costs, sys.float_info.max)
    while len(trials) < TRIALS or not does:
        widened = greedy(errors, costs, allowed)
        stays = sum(error for name, error in errors.items() if name not in widened)
        if widened and widened not in trials:
            trials[widened] = Trial(widened, cosine_of(stays), measure(widened))
        if widened and trials[widened].measured >= goal:
            does, ends = allowed, widened == fewest
        else:  # with nothing widened the goal is missed: that is why we are here
            misses, ends = allowed, not stays
        if ends or misses <= 1.05 * does:
            break
        if does and misses < math.inf:
            allowed = math.sqrt(does * misses)
        else:
            allowed *= 2 if does else 0.5
    return list(trials.values())


def cheapest(
    errors: Mapping[str, float],
    costs: Mapping[str, float],
    measure: Callable[[Layers], float],
    goal: float,
) -> list[Trial]:
    """Of few parts: all of them wider and, where that reaches the goal, every set in the order of
    its cost, and of equal ones of the error that stays, up to the first that does."""
    sets = [s for n in range(1, len(errors) + 1) for s in combinations(errors, n)]

    def stays(widened: Layers) -> float:
        return sum(error for name, error in errors.items() if name not in widened)

    sets.sort(key=lambda s: (sum(costs[name] for name in s), stays(s)))
    trials: list[Trial] = []
    for widened in (tuple(errors), *(s for s in sets if len(s) < len(errors))):
        trials.append(Trial(widened, cosine_of(stays(widened)), measure(widened)))
        if (trials[-1].measured >= goal) == (len(trials) > 1):
            break
    return trials
