"""Which cases of a test run: a sample where there are many, of all parameters' values alike.

Of a test's cases the first `FEW` are as many as run, and of the others one in `SHARE`; the marker
`cases(few, share)` says other numbers for tests whose cases take seconds, and QTRAIN_CASES="1 36"
for all tests of a process.  All cases, which take three quarters of an hour: `--every-case`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import pytest
import torch

FEW, SHARE = 2, 16
_GOLDEN = (5**0.5 - 1) / 2


def sample(items: list[pytest.Item]) -> set[pytest.Item]:
    """The cases to run; without AVX-512 no `costly` tests."""
    slow = torch.backends.cpu.get_cpu_capability() != "AVX512"
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not (slow and item.get_closest_marker("costly")):
            tests[item.nodeid.partition("[")[0]].append(item)
    return {item for cases in tests.values() for item in _spread(cases, _count(cases))}


def _count(cases: list[pytest.Item]) -> int:
    own, process = cases[0].get_closest_marker("cases"), os.getenv("QTRAIN_CASES")
    few, share = own.args if own else (FEW, SHARE)
    if process:
        few, share = map(int, process.split())
    return min(len(cases), few) + max(len(cases) - few, 0) // share


def _spread(cases: list[pytest.Item], count: int) -> list[pytest.Item]:
    """The first case, and then one by one that whose parameters' values, and pairs of them, have
    run least often; of several the first in steps of the golden ratio, which keep no step with
    a parameter's period."""
    order = sorted(range(len(cases)), key=lambda place: place * _GOLDEN % 1)
    left = {cases[place]: _values(cases[place]) for place in order}
    met, kept = Counter[Any](), []
    while len(kept) < count:
        own = min(left, key=lambda case: sum(met[value] for value in left[case]))
        met.update(left.pop(own))
        kept.append(own)
    return kept


def _values(case: pytest.Item) -> list[Any]:
    """(parameter, the place of its value among all of its values), and pairs of these."""
    spec = getattr(case, "callspec", None)
    values = sorted(spec.indices.items()) if spec else []
    return [*values, *combinations(values, 2)]
