"""Time on a device, and the time that is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


class Budget:
    """Seconds to spend, from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The mean time of `repeats` calls, from an idle device to an idle device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


def interleaved(
    subjects: Mapping[str, Callable[[], object]], rounds: int, least: float = 20.0
) -> dict[str, list[float]]:
    """Quartiles of ms a call, A B C A B C; a visit takes about `least` ms at least."""
    for run in subjects.values():
        milliseconds(run, 2)
    once = {name: milliseconds(run, 1) for name, run in subjects.items()}
    repeats = {name: max(1, min(50, int(least / ms))) for name, ms in once.items()}
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, run in subjects.items():
            found[name].append(milliseconds(run, repeats[name]))
    return {name: quartiles(values) for name, values in found.items()}
