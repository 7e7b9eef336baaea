"""Where the runs of a study are done: in this process, or each in one of its own."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from contextlib import redirect_stderr
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from ... import checks
from ..interrupt import Interrupted
from ..nonfinite import NonFiniteError
from ..train import train
from .outcome import folder_of
from .plan import Job


class Running(Protocol):
    """A run that was started."""

    def done(self) -> bool:
        """Whether it has ended, however."""
        ...

    def error(self) -> str:
        """Of one that has: what ended it, in words; "" where its folder tells."""
        ...


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
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        user = not isinstance(error, ValueError | TypeError | OSError)
        where = f" ({place.filename}:{place.lineno})" if user else ""
        return f"{type(error).__name__}: {error}{where}"
    return ""


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


class Processes:
    """Each run in a process of its own: one that is killed takes no other with it.  What a run says
    goes to the file logs/<run>.txt of the study.

    at_once   on CPUs each of them has its share of the threads, where the configuration says none;
              on GPUs they take turns over all that torch sees, several on one where there are fewer
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = checks.integer("jobs", at_once, low=1, high=1024)
        self._running: list[_Process] = []

    def start(self, job: Job) -> Running:
        self._running = [process for process in self._running if not process.done()]
        taken = [process.place for process in self._running]
        place = next(i for i in range(self.at_once + 1) if i not in taken)
        found = _Process(_placed(job, place, self.at_once), place)
        self._running.append(found)
        return found

    def close(self) -> None:
        for process in self._running:
            process.end()


def _placed(job: Job, place: int, at_once: int) -> Job:
    """The run on the device and with the threads that are its own."""
    config, gpus = job.config, torch.cuda.device_count()
    if config.device in ("auto", "cuda") and gpus:
        config = replace(config, device=f"cuda:{place % gpus}")
    if config.threads is None:
        config = replace(config, threads=max(1, _cores() // at_once))
    return replace(job, config=config)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process:
    def __init__(self, job: Job, place: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.place = place
        self._reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(job, writer))
        try:
            self._process.start()
        except (AttributeError, TypeError, ImportError, ValueError) as error:  # of pickling
            raise ValueError(
                f"jobs: {job.text} cannot be handed to another process ({error}); define what "
                f"makes the model and the data at the top of a module, or take jobs=1"
            ) from error
        finally:
            writer.close()

    def done(self) -> bool:
        return not self._process.is_alive()

    def error(self) -> str:
        self._process.join()
        try:
            found: Any = self._reader.recv() if self._reader.poll() else None
        except EOFError:
            found = None
        if isinstance(found, str):
            return found
        code = self._process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        return f"its process ended {how}; the same call goes on where it was"

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _work(job: Job, writer: Connection) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the study, which ends its runs
    log = folder_of(job.config).parent / "logs" / f"{job.config.run_name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file, redirect_stderr(file):
        try:
            writer.send(do(job))
        except Interrupted:
            writer.send("it was interrupted; the same call goes on where it was")
