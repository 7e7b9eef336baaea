"""How long a run takes beside its steps: for the time left that it shows."""

from __future__ import annotations

from ..data import DataSet

#: How long the errors of all layers take, in steps (their products are fp64), and plots and page,
#: in seconds.
INSPECTION, WRITING = 3.0, 3.0


class Beside:
    """The seconds of tests, errors, plots and page that are still to come, of the seconds of a
    step: a test is timed, the first guessed as a forward pass, a third of a step, of its samples.

    tests      how many are to come;  per_epoch: the steps between them
    """

    def __init__(self, tests: int, per_epoch: int, dataset: DataSet) -> None:
        self._tests, self._inspection = tests, INSPECTION
        self._test: float | None = None
        self._share = per_epoch * len(dataset.test) / len(dataset.train) / 3

    def __call__(self, step: float) -> float:
        test = self._share * step if self._test is None else self._test
        return test * self._tests + self._inspection * step + WRITING

    def tested(self, seconds: float) -> None:
        """A test has taken so long."""
        self._test, self._tests = seconds, self._tests - 1

    def inspected(self) -> None:
        """The errors are measured."""
        self._inspection = 0.0
