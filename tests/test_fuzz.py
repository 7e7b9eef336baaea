"""A few hundred cases of each fuzzer; `python -m tests.fuzz --minutes 30` takes more."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import SUBJECTS, case

CASES = 300


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("subject", SUBJECTS)
def test_random_cases_are_right(subject: str, part: int) -> None:
    each = CASES // 3
    found = {seed: case(subject, seed) for seed in range(part * each, (part + 1) * each)}
    wrong = [f"--seed {seed}: {what}" for seed, what in found.items() if what is not None]
    assert not wrong, f"python -m tests.fuzz {subject} " + "; ".join(wrong[:5])
