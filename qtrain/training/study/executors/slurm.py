"""Runs as jobs of Slurm, by submitit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from .... import checks
from ..plan import Job
from .executor import GOES_ON, Running
from .handed import Handed, logs_of

#: where jobs go: a cluster's queue, or processes of this machine, to try a study out
_CLUSTERS = ("slurm", "local")
#: seconds between two looks at jobs that are ending
_LOOK = 0.2


class Slurm:
    """Each run as a job of its own of Slurm: pip install "qtrain[slurm]".  One that is killed takes
    no other with it.  A run ends with a checkpoint when its time is nearly over, and when the study
    is stopped; where the study's process is killed (SIGKILL), its jobs stay in the queue: scancel.

    The study's folder and data lie on a disk that all machines share, under the same path.

    at_once      how many jobs are in the queue at a time
    cluster      "slurm", or "local": processes of this machine
    folder       where submitit's files go; default: logs in the study's folder
    parameters   of submitit's AutoExecutor: timeout_min (minutes of a run; default a day), mem_gb,
                 cpus_per_task (its threads are the configuration's), gpus_per_node,
                 slurm_partition, slurm_account, ...
    """

    def __init__(
        self,
        at_once: int,
        *,
        cluster: str = "slurm",
        folder: str | os.PathLike[str] | None = None,
        **parameters: Any,
    ) -> None:
        self.at_once = checks.integer("jobs", at_once, low=1, high=1024)
        self._cluster = checks.choice("cluster", cluster, _CLUSTERS)
        self._folder = None if folder is None else checks.path("folder", folder)
        self._parameters = {"timeout_min": 24 * 60, **parameters}
        self._package = _package()
        self._going: list[_Queued] = []

    def start(self, job: Job) -> Running:
        folder = (self._folder or logs_of(job)).expanduser().absolute()
        handed = Handed(job, self._package.core.utils.cloudpickle.dumps)
        task = self._queue(folder, job.config.run_name).submit(_Work(handed))
        self._going = [one for one in self._going if not one.done()]
        self._going.append(_Queued(task, folder))
        return self._going[-1]

    def _queue(self, folder: Path, name: str) -> Any:
        ours = {"name": name, **self._parameters}
        try:
            queue = self._package.AutoExecutor(folder=folder, cluster=self._cluster)
            queue.update_parameters(**ours)
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(f"Slurm: {error}") from error
        return queue

    def close(self) -> None:
        for one in self._going:
            one.end()
        while any(not one.done() for one in self._going):
            time.sleep(_LOOK)
        self._going.clear()


def _package() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            'Slurm: submitit is not installed; pip install "qtrain[slurm]"'
        ) from error
    return submitit


class _Work:
    def __init__(self, handed: Handed) -> None:
        self._handed = handed

    def __call__(self) -> str:
        nearly_over = signal.Signals[f"SIG{_package().JobEnvironment.USR_SIG}"]
        signal.signal(nearly_over, lambda number, frame: signal.raise_signal(signal.SIGTERM))
        return self._handed()


class _Queued:
    def __init__(self, task: Any, folder: Path) -> None:
        self._task, self._folder = task, folder

    def done(self) -> bool:
        return bool(self._task.done())

    def error(self) -> str:
        utils = _package().core.utils
        try:
            return str(self._task.result())
        except (utils.UncompletedJobError, utils.FailedJobError) as error:
            last = str(error).strip().rpartition("\n")[2]
            why = last if isinstance(error, utils.FailedJobError) else "killed, or never begun"
            where = f"{self._folder}/{self._task.job_id}_0_log.err"
            return f"its job {self._task.job_id} ended without a result, {why} ({where}); {GOES_ON}"

    def end(self) -> None:
        if self.done():
            return
        if hasattr(self._task, "_process"):  # cancel() leaves it a second, of which it makes no use
            self._task._process.send_signal(signal.SIGTERM)
        else:
            self._task.cancel(check=False)
