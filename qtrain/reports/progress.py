"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ..files.terminal import draws, printable, say

#: Seconds between lines where stderr is not a terminal.
LINE_SECONDS = 30.0


class Progress:
    """Counts the steps of a whole run, of which `done` were done before.

    The time left is estimated from the steps after this process' first, which may compile kernels.
    """

    def __init__(self, total: int, *, done: int, text: str) -> None:
        self._terminal = draws(sys.stderr)
        self._total, self._done = total, done
        self._last_line = time.monotonic()
        self._timed: tuple[int, float] | None = None  # steps done, and when, after the first
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=printable(text, keep=""),
            unit="step",
            disable=not self._terminal,
            dynamic_ncols=True,
        )

    def step(self) -> None:
        """Count one step."""
        self._done += 1
        if self._timed is None:
            self._timed = self._done, time.monotonic()
        self._bar.update()
        if not self._terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self.line(f"step {self._done}/{self._total}")

    def line(self, text: str) -> None:
        """Print a line that stays, with the time left where no bar shows it."""
        if self._terminal:
            self._bar.write(printable(text), file=sys.stderr)
            return
        self._last_line = time.monotonic()
        first, start = self._timed or (self._done, 0.0)
        if self._done > first:
            left = (self._last_line - start) / (self._done - first) * (self._total - self._done)
            text += f"  (about {clock(left)} left)"
        say(text)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._bar.close()


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
