"""What starts runs, and the one that does them itself, in this process."""

from __future__ import annotations

import traceback
from typing import Protocol, runtime_checkable

from ...nonfinite import NonFiniteError
from ...train import train
from ..plan import Job

#: characters of an error that are kept: a note in a table, and less than a pipe holds
_LONGEST = 4000
#: ends what is said of a run that can go on
GOES_ON = "the same call goes on where it was"


class Running(Protocol):
    """A run that was started."""

    def done(self) -> bool:
        """Whether it has ended, however."""
        ...

    def error(self) -> str:
        """Of one that has: what ended it, in words; "" where its folder tells.  ValueError for what
        would end every other run, too."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts runs; a study asks each whether it is done.

    at_once   how many of its runs may be going
    """

    at_once: int

    def start(self, job: Job) -> Running: ...

    def close(self) -> None:
        """End what is still running, at its next step, with a checkpoint."""
        ...


def do(job: Job) -> str:
    """Do a run, or what is left of it -> what ended it early, "" where its folder tells."""
    try:
        train(job.config, model=job.model, data=job.data, say=lambda text: None)
    except NonFiniteError:
        return ""
    except Exception as error:  # a model and data of the user's raise what they like
        return in_words(error)
    return ""


def in_words(error: Exception) -> str:
    """An error as a note: with the line where it arose, unless its text is made to be read."""
    where = ""
    if not isinstance(error, ValueError | TypeError | OSError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({place.filename}:{place.lineno})"
    return f"{type(error).__name__}: {error}"[:_LONGEST] + where


class Here:
    """One run after the other, in this process: any function may make the model."""

    at_once = 1

    def start(self, job: Job) -> Running:
        return _Done(do(job))

    def close(self) -> None:
        pass


class _Done:
    def __init__(self, error: str) -> None:
        self._error = error

    def done(self) -> bool:
        return True

    def error(self) -> str:
        return self._error
