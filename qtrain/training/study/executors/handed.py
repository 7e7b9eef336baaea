"""A run on its way to another process, and how it is done there."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...folder import folder_of
from ...given.reference import is_given
from ...interrupt import Interrupted, StopRequest
from ..plan import Job
from .executor import GOES_ON, do, in_words


class Handed:
    """A run as it travels; call it where it is to be done -> what ended it early, as `do` does.

    It is done in the folder of the study's process, with its sys.path, and what it says goes to the
    file logs/<run>.txt of the study.  A model or data that the configuration refers to is found by
    that reference; ValueError where another value cannot travel.

    dumps   makes bytes of a value; the default is for values of modules, by reference
    """

    def __init__(self, job: Job, dumps: Callable[[Any], bytes] = pickle.dumps) -> None:
        config = job.config
        self._folder, self._path = os.getcwd(), list(sys.path)
        self._log = logs_of(job) / f"{config.run_name}.txt"
        model = job.model if is_given(config.model) else None
        data = job.data if is_given(config.data) else None
        self._content = b""
        try:
            self._content = dumps(replace(job, model=model, data=data))
        except Exception as error:  # of pickling: of any kind
            raise ValueError(f"jobs: {job.text} {_help(error)}") from error

    def __call__(self) -> str:
        try:
            with StopRequest():
                os.chdir(self._folder)
                sys.path += [place for place in self._path if place not in sys.path]
                self._log.parent.mkdir(parents=True, exist_ok=True)
                with open(self._log, "a", encoding="utf-8") as file:
                    with redirect_stderr(file), redirect_stdout(file):
                        return self._done()
        except Interrupted:
            return f"it was interrupted; {GOES_ON}"
        except OSError as error:
            return f"{in_words(error)}: its process needs the disk of the study's"

    def _done(self) -> str:
        try:
            job = pickle.loads(self._content)
        except Exception as error:
            return f"it {_help(error)}"
        return do(job)


def logs_of(job: Job) -> Path:
    """Where the logs of its study lie."""
    return (folder_of(job.config).parent / "logs").absolute()


def _help(error: Exception) -> str:
    return (
        f"cannot be handed to another process ({in_words(error)}); define what makes the model and "
        f"the data at the top of a module, or take jobs=1"
    )
