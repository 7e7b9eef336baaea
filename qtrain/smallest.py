"""A smallest set with a property, by delta debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


class TrialsSpentError(Exception):
    """Raised by a property that may not be tried again."""


def most_trials(count: int) -> int:
    """How often `smallest` asks at most, of `count` items: n^2 + 3 n (Zeller and Hildebrandt)."""
    return count * count + 3 * count


def smallest(
    items: Sequence[T], holds: Callable[[tuple[T, ...]], bool]
) -> tuple[tuple[T, ...], bool]:
    """(a set for which `holds`, whether no item can be taken from it), in the items' order.

    It must hold for all items and not for none.  The set is 1-minimal: without any one of its items
    it does not hold.  Where one item decides, about 2 log2 n questions find it; no subset is asked
    about twice.  A `TrialsSpentError` of `holds` ends the search with what is found so far.

    A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input", 2002: ddmin.
    """
    known: dict[tuple[T, ...], bool] = {}

    def asked(some: tuple[T, ...]) -> bool:
        if some not in known:
            known[some] = holds(some)
        return known[some]

    current, cuts = tuple(items), 2
    try:
        while len(current) > 1:
            edges = [len(current) * i // cuts for i in range(cuts + 1)]
            chunks = [(current[:a], current[a:b], current[b:]) for a, b in pairwise(edges)]
            part = next((own for _, own, _ in chunks if asked(own)), None)
            if part is not None:
                current, cuts = part, 2
                continue
            rest = next((a + b for a, _, b in chunks if asked(a + b)), None)
            if rest is not None:
                current, cuts = rest, max(cuts - 1, 2)
            elif cuts < len(current):
                cuts = min(2 * cuts, len(current))
            else:
                break
    except TrialsSpentError:
        return current, False
    return current, True
