"""The cheapest items to take so that what is left stays within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Costs are rounded to this part of their sum.
GRID = 50_000


def cheapest(errors: Sequence[float], costs: Sequence[float], budget: float) -> list[int]:
    """The items to take, at least cost, so that the errors of the others sum to at most `budget`.

    errors may be inf; costs, not all 0, are rounded to 1 / GRID of their sum, so the set costs at
    most len(costs) / GRID of that more than the cheapest.  Of equally cheap ones it leaves the
    least error.  By dynamic programming over the cost: least[j] is the least error left at cost j.
    """
    unit = sum(costs) / GRID
    prices = [round(cost / unit) for cost in costs]
    least = np.full(sum(prices) + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(prices), len(least)), dtype=bool)
    for i, (error, price) in enumerate(zip(errors, prices, strict=True)):
        left = least + error
        least = np.concatenate([np.full(price, np.inf), least[: len(least) - price]])
        taken[i] = least < left
        least = np.minimum(least, left)
    j = int(np.argmax(least <= budget))  # the last takes everything and leaves 0
    found = []
    for i in reversed(range(len(prices))):
        if taken[i, j]:
            found.append(i)
            j -= prices[i]
    return found[::-1]
