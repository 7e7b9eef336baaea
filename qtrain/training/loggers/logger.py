"""The interface of a logger, and all those of a run, of which none can end it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Logger(Protocol):
    """Is given every line of a run's metrics as it is written: `train(config, loggers=[...])`.

    A subclass needs `log` alone.  What it raises ends its logging, with a warning, not the run.
    """

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        """Before the first line.

        folder   runs/<name>;  config: the settings of `qtrain train`, plain values
        step     how many steps are done: of a resumed run those of its checkpoint.  What a killed
                 run logged `at` that step and later comes again, with the same values
        """

    def log(self, line: Mapping[str, Any]) -> None:
        """A line: plain values, None for a number that is not finite.

        kind     "step" (every tenth: lr, loss, grad_norm), "epoch" (train_loss, test_loss,
                 test_accuracy, seconds, test_seconds), "recipe" (that follows from here), or
                 "monitor": a `MonitorRow`, with its layer and role
        step     steps done before it;  branch: "baseline" or "quantized"
        """
        ...

    def close(self) -> None:
        """After the last line, also of a run that ends early, but for one that is killed."""


class Loggers:
    """Those of one run, started with its first line."""

    def __init__(
        self, loggers: Sequence[Logger], folder: Path, config: Mapping[str, Any], step: int
    ) -> None:
        self._going, self._began = list(loggers), False
        self._start = folder, config, step

    def log(self, line: Mapping[str, Any]) -> None:
        """Give each a line of its own."""
        if not self._began:
            self._began = True
            self._each("start", *self._start)
        self._each("log", line)

    def close(self) -> None:
        """Close those that began."""
        if self._began:
            self._each("close")
        self._going = []

    def _each(self, method: str, *values: Any) -> None:
        for logger in self._going[:]:
            own = [dict(value) if isinstance(value, Mapping) else value for value in values]
            try:
                getattr(logger, method)(*own)
            except Exception as error:
                self._going.remove(logger)
                with suppress(Exception):
                    logger.close()
                warnings.warn(
                    f"log: {type(logger).__name__}.{method} failed ({type(error).__name__}: "
                    f"{error}); the run goes on without it, its metrics.jsonl has every line",
                    stacklevel=2,
                )
