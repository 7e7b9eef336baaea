"""Which cases run: the first, then values and their pairs alike."""

from __future__ import annotations

from collections import Counter
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from sampling import FEW, SHARE, sample


class Case:
    """What a sample asks of pytest's items."""

    def __init__(self, name: str, own: pytest.Mark | None = None, **places: int) -> None:
        self.nodeid, self.callspec = f"{name}[{places}]", SimpleNamespace(indices=places)
        self.places, self._own = places, own

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self._own if self._own is not None and self._own.name == name else None


def kept(cases: list[Any]) -> list[dict[str, int]]:
    found = sample(cases)
    return [case.places for case in cases if case in found]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QTRAIN_CASES", raising=False)


def test_a_sample_begins_with_the_first_and_meets_values_and_pairs_alike() -> None:
    found = kept([Case("many", a=a, b=b, c=c) for a, b, c in product(range(6), range(6), range(4))])
    assert len(found) == FEW + (144 - FEW) // SHARE and found[0] == {"a": 0, "b": 0, "c": 0}
    for name, size in {"a": 6, "b": 6, "c": 4}.items():
        counts = Counter(case[name] for case in found)
        assert len(counts) == size and max(counts.values()) - min(counts.values()) <= 1
    pairs = Counter((case["a"], case["b"]) for case in found)
    assert max(pairs.values()) == 1


def test_one_parameter_is_met_all_over() -> None:
    found = [case["a"] for case in kept([Case("long", a=a) for a in range(400)])]
    gaps = [after - before for before, after in zip(found, [*found[1:], 400], strict=True)]
    assert found[0] == 0 and len(found) == FEW + (400 - FEW) // SHARE
    assert max(gaps) <= 3 * SHARE and len(set(gaps)) > 1


def test_few_cases_run_all_and_markers_and_processes_have_their_own_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = [Case("few", a=a) for a in range(FEW)]
    own = [Case("own", pytest.mark.cases(1, 5).mark, a=a) for a in range(11)]
    assert (len(kept(few)), len(kept(own)), len(kept(few + own))) == (FEW, 3, FEW + 3)
    monkeypatch.setenv("QTRAIN_CASES", "1 36")
    assert [case["a"] for case in kept(few + own)] == [0, 0]
    assert len(kept([Case("many", a=a) for a in range(73)])) == 3


def test_costly_tests_run_where_the_processor_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    costly = [Case("costly", pytest.mark.costly.mark, a=0)]
    for capability, count in (("AVX2", 0), ("AVX512", 1)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda own=capability: own)
        assert len(kept(costly)) == count
