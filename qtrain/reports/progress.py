"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from ..files.terminal import draws, printable, say

#: Seconds between lines where stderr is not a terminal: at first, and at most.
LINE_SECONDS = 4.0, 30.0


class Progress:
    """Counts the steps of a whole run, of which `done` were done before.

    The time left is estimated from the steps after this process' first, which may compile kernels.

    rest   seconds of a step -> seconds of what is still to do beside steps; None: nothing
    """

    def __init__(
        self, total: int, *, done: int, text: str, rest: Callable[[float], float] | None = None
    ) -> None:
        self._terminal = draws(sys.stderr)
        self._total, self._done = total, done
        self._began = self._last_line = time.monotonic()
        self._first: int | None = None  # steps done after the first
        self._spent, self._since = 0.0, self._began  # in steps behind the first; in the running one
        self._rest = rest or (lambda _: 0.0)
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=printable(text, keep=""),
            unit="step",
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def step(self) -> None:
        """Count one step."""
        now = time.monotonic()
        self._done += 1
        if self._first is None:
            self._first = self._done
        else:
            self._spent += now - self._since
        self._since = now
        self._bar.set_postfix_str(self._left().strip(), refresh=False)
        self._bar.update()
        shortest, longest = LINE_SECONDS
        due = min(max((now - self._began) / 20, shortest), longest)
        if not self._terminal and now - self._last_line >= due:
            self.line(f"step {self._done}/{self._total}")

    def resume(self) -> None:
        """What was done since the last step was beside the steps."""
        self._since = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line that stays, with the time left where no bar shows it."""
        if self._terminal:
            self._bar.write(printable(text), file=sys.stderr)
            return
        self._last_line = time.monotonic()
        say(text + self._left())

    def _left(self) -> str:
        timed = 0 if self._first is None else self._done - self._first
        if not timed:
            return ""
        one = self._spent / timed
        left = one * (self._total - self._done) + self._rest(one)
        return f"  (about {clock(left)} left)"

    def close(self) -> None:
        """Leave the terminal clean."""
        self._bar.close()


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
