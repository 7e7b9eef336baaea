"""Runs one after the other, or several at a time, each in a process of its own with one thread."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from experiments.harness.experiment import Job
from experiments.harness.loop import Curve

Run = Callable[[Job], Curve]


def curves(
    run: Run, jobs: Sequence[Job], *, at_once: int, tick: Callable[[], None]
) -> Iterator[tuple[Job, Curve]]:
    """Each job with its curve, as it ends.

    jobs   those that others need before these
    tick   called after every epoch of any of them

    A job whose needed file is not there when its turn comes has failed: the run that should have
    written it did.  SystemExit with the traceback where a process breaks.
    """
    if at_once == 1:
        for job in jobs:
            yield job, _curve(run, replace(job, tick=tick))
        return
    waiting, running = list(jobs), dict[Any, _Process]()
    try:
        while waiting or running:
            to_come = {job.kept for job in [*waiting, *(p.job for p in running.values())]}
            ready = [job for job in waiting if job.needed not in to_come]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                process = _Process(run, job)
                running[process.connection] = process
            for connection in wait(list(running)):
                curve = running[connection].message()
                if curve is None:
                    tick()
                else:
                    yield running.pop(connection).job, curve
    finally:
        for process in running.values():
            process.end()


def _curve(run: Run, job: Job) -> Curve:
    if job.needed is not None and not job.needed.exists():
        return Curve(epochs=[], failed=f"needs {job.needed.stem}, which failed")
    return run(job)


class _Process:
    """A run in a process of its own."""

    def __init__(self, run: Run, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.job = job
        self.connection, other = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(run, job, other))
        self._process.start()
        other.close()

    def message(self) -> Curve | None:
        """The run's curve; None: an epoch ended.  SystemExit where the run broke."""
        try:
            found: Curve | str | None = self.connection.recv()
        except EOFError:
            self._process.join()
            found = f"its process ended with code {self._process.exitcode}"
        if isinstance(found, str):
            sys.exit(f"{self.job.arm}, seed {self.job.seed}: {found}")
        if found is not None:
            self._process.join()
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _work(run: Run, job: Job, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        connection.send(_curve(run, replace(job, tick=lambda: connection.send(None))))
    except Exception:
        connection.send(traceback.format_exc())
