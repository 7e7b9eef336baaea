"""The time that is left, and a device's own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from timing import Spread, interleaved, spread

Shape = TypeVar("Shape", bound=tuple[int, ...])


class Budget:
    """Seconds to spend, from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def each(
    shapes: Iterable[Shape],
    timed: Callable[[Shape, int], dict[str, Any]],
    budget: Budget,
    rounds: int,
) -> list[dict[str, Any]]:
    """What `timed` finds of as many shapes as there is time for."""
    found = []
    for shape in shapes:
        if budget.left < 0:
            break
        found.append(timed(shape, rounds))
    return found


def milliseconds(
    subjects: Mapping[str, Callable[[], object]], rounds: int, least: float
) -> dict[str, Spread]:
    """Of a call, in interleaved rounds whose visits take `least` ms or more."""
    times = interleaved(subjects, rounds=rounds, least_seconds=least / 1e3)
    return {name: spread([1e3 * value for value in values]) for name, values in times.items()}


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """What `run` launches as a CUDA graph: without the time of Python and of launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay
