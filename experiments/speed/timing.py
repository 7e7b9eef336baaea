"""Interleaved rounds, their medians and quartiles."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from qtrain import environment

Key = TypeVar("Key", bound=Hashable)


class Spread(NamedTuple):
    """Quartiles of repeated measurements."""

    low: float
    median: float
    high: float

    def text(self, factor: float = 1.0, digits: int = 1) -> str:
        low, median, high = (f"{value * factor:.{digits}f}" for value in self)
        return f"{median} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """The quartiles (linearly interpolated) of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratio(times: Sequence[float], base: Sequence[float]) -> Spread:
    """The quartiles of the ratio within each round: what slows a whole round cancels."""
    return spread([a / b for a, b in zip(times, base, strict=True)])


def idle() -> None:
    """Returns when a device, where one is in use, has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], repeats: int) -> float:
    """The mean time of `repeats` steps."""
    gc.collect()
    gc.disable()
    try:
        idle()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        idle()
        return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def cpu_seconds(steps: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """CPU time of each step on one thread, A B C A B C: one value a round, after one that compiles.
    Load of others changes it less than the clock's time."""
    torch.set_num_threads(1)
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for number in tqdm(range(rounds + 1), desc="rounds"):
        for key, step in steps.items():
            start = time.process_time()
            step()
            if number:
                times[key].append(time.process_time() - start)
    return times


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    least_seconds: float,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds a step, A B C A B C: one value per round and subject.

    least_seconds   a visit repeats a short step until it has taken about this long
    """
    repeats = {k: max(1, min(100, int(least_seconds / seconds(s, 1)))) for k, s in steps.items()}
    times: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            times[key].append(seconds(step, repeats[key]))
            tick()
    return times


def run(
    script: str,
    text: str,
    unit: str,
    measured: Callable[[int], Any],
    table: Callable[[Any], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """A script that measures so many rounds on the CPU: writes what it found, under the name of its
    unit, to results/speed.json beside it, and prints the table.  text: its docstring."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds: got {args.rounds}, need 1 or more")
    found = measured(args.rounds)
    made = {"environment": environment(torch.device("cpu")), unit: found}
    path = Path(script).parent / "results/speed.json"
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(table(found))
