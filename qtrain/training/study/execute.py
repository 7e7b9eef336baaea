"""The runs of a study that are not done yet: started in order, within a budget, with a true ETA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ...reports.progress import clock
from ..interrupt import Interrupted, StopRequest
from .executors.executor import Executor, Running
from .outcome import StudyRun, outcome
from .plan import METRICS, Job, Plan

#: seconds between two looks at the runs
_LOOK = 0.2
#: seconds between two lines of progress while no run ends
_LINE = 60.0
#: of a run beside its steps and tests, where none was timed: a process, data, errors and plots
_BESIDE = 10.0


def execute(
    plan: Plan, executor: Executor, *, budget: float | None, say: Callable[[str], None]
) -> list[StudyRun]:
    """Every run of the plan as it is at the end, in order.

    budget   seconds: a run is started only where it is expected to end within them, by the longest
             run of its arm, or of any arm while there is none of its own; None: no limit

    Interrupted after Ctrl-C, once the runs that were going have written their checkpoints.
    """
    return _Execution(plan, executor, budget, say).all()


@dataclass
class _Going:
    job: Job
    running: Running
    since: float


class _Execution:
    def __init__(
        self, plan: Plan, executor: Executor, budget: float | None, say: Callable[[str], None]
    ) -> None:
        self.plan, self.executor, self.budget, self.say = plan, executor, budget, say
        self.found = {(job.arm, job.seed): outcome(job) for job in plan.jobs()}
        for run in self.found.values():
            _check_metric(run, plan.metric)
        self.waiting = [j for j in plan.jobs() if not self.found[j.arm, j.seed].has_ended]
        self.going: list[_Going] = []
        self.times = _Times(self.found.values())
        self.began = self.lined = time.monotonic()

    def all(self) -> list[StudyRun]:
        if self.waiting:
            count = f"{len(self.waiting)} of {len(self.found)} runs to do"
            self._line(f"{count}, in {self.plan.place}")
        try:
            with StopRequest():
                while self.waiting or self.going:
                    self._start()
                    self._look()
        except KeyboardInterrupt:  # a run's own speaks of --resume, which a study has not
            raise Interrupted(
                f"{self.plan.name}: stopped, {self._done()} of {len(self.found)} runs are done; "
                f"the same call goes on"
            ) from None
        finally:
            self.executor.close()
        return [self.found[job.arm, job.seed] for job in self.plan.jobs()]

    def _start(self) -> None:
        while self.waiting and len(self.going) < self.executor.at_once:
            job, now = self.waiting[0], time.monotonic()
            need = self.times.of(job)
            if self.budget is not None and now - self.began + need > self.budget:
                left = len(self.waiting)
                self.waiting.clear()
                self._line(
                    f"budget of {clock(self.budget)}: {job.text} is expected to take {clock(need)},"
                    f" which does not fit; {left} runs are left for another call"
                )
                return
            self.waiting.pop(0)
            self.going.append(_Going(job, self.executor.start(job), now))

    def _look(self) -> None:
        ended = [one for one in self.going if one.running.done()]
        for one in ended:
            self.going.remove(one)
            self._ended(one)
        if not ended and time.monotonic() - self.lined > _LINE:
            runs = [(one.job, outcome(one.job).epochs) for one in self.going]
            self._line(
                "; ".join(f"{job.text}: epoch {n} of {job.config.epochs}" for job, n in runs)
            )
        if self.going and not ended:
            time.sleep(_LOOK)

    def _ended(self, one: _Going) -> None:
        error, run = one.running.error(), outcome(one.job)
        if run.state == "finished":
            _check_metric(run, self.plan.metric)
            self.times.ended(one.job, time.monotonic() - one.since)
        elif error and run.state != "diverged":
            run = replace(run, state="unfinished" if run.epochs else "failed", note=error)
        self.found[run.arm, run.seed] = run
        metric = self.plan.metric
        value = f"{metric} {run.value(metric):.4f}" if run.state == "finished" else run.state
        self._line(f"{one.job.text}: {value}" + (f": {run.note}" if run.note else ""))

    def _done(self) -> int:
        return sum(run.has_ended for run in self.found.values())

    def _line(self, text: str) -> None:
        """A line of progress: how many runs are done, and the time that the others will take."""
        self.lined = time.monotonic()
        text += f"; {self._done()} of {len(self.found)} done"
        seconds = sum(max(0.0, self.times.of(g.job) + g.since - self.lined) for g in self.going)
        seconds += sum(map(self.times.of, self.waiting))
        if seconds:
            text += f", about {clock(seconds / self.executor.at_once)} left"
        self.say(text)


def _check_metric(run: StudyRun, metric: str) -> None:
    """ValueError where a finished run has no such figure."""
    if run.state == "finished" and metric not in (*METRICS, *dict(run.columns)):
        columns = ", ".join(dict(run.columns)) or "none"
        raise ValueError(
            f"metric: got {metric!r}, but run {Path(run.path).name} has accuracy, loss and its "
            f"hooks' columns after the last epoch: {columns}"
        )


class _Times:
    """How long the runs of each arm take: the longest, from start to end where one was timed."""

    def __init__(self, runs: Iterable[StudyRun]) -> None:
        self._stored: dict[str, float] = {}
        self._timed: dict[str, float] = {}
        for run in runs:
            if run.state == "finished":
                known = self._stored.get(run.arm, 0.0)
                self._stored[run.arm] = max(known, run.seconds + _BESIDE)

    def ended(self, job: Job, seconds: float) -> None:
        """A run ended that took so long here."""
        self._timed[job.arm] = max(self._timed.get(job.arm, 0.0), seconds)

    def of(self, job: Job) -> float:
        """The seconds that a run is expected to take, 0 while nothing is known."""
        times = self._stored | self._timed
        return times.get(job.arm, max(times.values(), default=0.0))
