"""Runs in processes of their own, on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import torch

from .... import checks
from ..plan import Job
from .executor import GOES_ON, Running
from .handed import Handed


class Processes:
    """Each run in a process of its own: one that is killed takes no other with it.  What a run says
    goes to the file logs/<run>.txt of the study.  They end, with checkpoints, when the study's
    process does, however it ends.

    at_once   on CPUs each of them has its share of the threads, where the configuration says none;
              on GPUs they take turns over all that torch sees, several on one where there are fewer
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = checks.integer("jobs", at_once, low=1, high=1024)
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(1)  # the process of a run imports a script that guards nothing
        self._running: list[_Process] = []

    def start(self, job: Job) -> Running:
        self._running = [process for process in self._running if not process.done()]
        taken = [process.place for process in self._running]
        place = next(i for i in range(self.at_once + 1) if i not in taken)
        found = _Process(Handed(_placed(job, place, self.at_once)), place)
        self._running.append(found)  # before it begins: a signal may come in between
        found.begin()
        return found

    def close(self) -> None:
        for process in self._running:
            process.end()
        for process in self._running:
            process.wait()


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
    def __init__(self, handed: Handed, place: int) -> None:
        self.place = place
        context = multiprocessing.get_context("spawn")
        self._reader, self._writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(handed, self._writer))

    def begin(self) -> None:
        with _deaf(), _importable_main():
            self._process.start()
        self._writer.close()

    def done(self) -> bool:
        return not self._process.is_alive()

    def error(self) -> str:
        self._process.join()
        told: list[str] = []
        try:
            while self._reader.poll():
                told.append(self._reader.recv())
        except (EOFError, OSError):
            pass
        if len(told) > 1:
            return told[1]
        code = self._process.exitcode
        if not told and code is not None and code >= 0:  # as that of every run will
            raise ValueError(
                f"jobs: the process of a run ended with status {code} while it imported the "
                f'script; let that do what it does under if __name__ == "__main__": (or take '
                f"jobs=1)"
            )
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        return f"its process ended {how}; {GOES_ON}"

    def end(self) -> None:
        if self._process.pid is not None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process.pid is not None:
            self._process.join()


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started within hears no Ctrl-C until it says so: that is for the study, which ends
    its runs."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _importable_main() -> Iterator[None]:
    """Without the "<stdin>" of a script that is piped into Python: no process can import it."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or Path(file).exists():
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


def _work(handed: Handed, writer: Connection) -> None:
    writer.send("it began")
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that waits is dropped
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(BrokenPipeError):  # of a parent that is gone
        writer.send(handed())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
