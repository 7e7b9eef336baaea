"""Triton's kernels in its interpreter, which must be asked for before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="pip install triton: its interpreter needs no GPU")
ROOT = Path(__file__).parents[1]
#: of a test's cases the first and one in 36 of the others (tests/sampling.py); all by
#: TRITON_INTERPRET=1 python -m pytest -o addopts= tests/kernels --every-case
CASES = "1 36"
#: test_ahead_of_time*: they compile, and are tested beside this
FILES = [
    path
    for path in sorted((ROOT / "tests/kernels").glob("test_*.py"))
    if "ahead_of_time" not in path.stem
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", [0, 1])
def test_kernels(half: int) -> None:
    """In two processes, one for each worker of a small machine."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, FILES[half::2])],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "QTRAIN_CASES": CASES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
