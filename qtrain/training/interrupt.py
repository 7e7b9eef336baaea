"""Turns Ctrl-C and SIGTERM into one clear exception, or into a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; the text says how to resume."""


class StopRequest:
    """A context in which SIGINT and SIGTERM raise Interrupted, at once or when it suits.

    Outside the main thread signals cannot be caught, and `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._postponing = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """A part in which the first signal only sets `requested`; the second interrupts."""
        self._postponing = True
        try:
            yield
        finally:
            self._postponing = False
        if self.requested:
            raise self._interruption()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self._postponing:
            raise self._interruption()
        self.requested = True

    @staticmethod
    def _interruption() -> Interrupted:
        return Interrupted(
            "stopped; the same command with --resume continues from the last checkpoint, if any"
        )
