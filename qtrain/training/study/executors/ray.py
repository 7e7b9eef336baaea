"""Runs on a cluster of Ray, or on one that Ray starts on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .... import checks
from ..plan import Job
from .executor import GOES_ON, Running
from .handed import Handed


class Ray:
    """Each run in a worker of its own of Ray, which waits for its CPUs and GPUs: pip install
    "qtrain[ray]".  One that is killed takes no other with it; at the study's end those that run
    are cancelled, which writes their checkpoints.

    Where the workers are on other machines, the study's folder and data lie on a disk that all
    share, under the same path, and qtrain is installed there.  A cluster that was started here
    stays until the process ends, or ray.shutdown().

    at_once   how many runs Ray is given at a time
    cpus      of each run, its threads too where the configuration says none
    gpus      of each run, 0.5 for two on one; with 0 it runs on a CPU
    address   of a running cluster ("auto": this machine's), or None: where Ray is connected, else
              to what RAY_ADDRESS says, else to a new one
    """

    def __init__(
        self, at_once: int, *, cpus: int = 1, gpus: float = 0, address: str | None = None
    ) -> None:
        self.at_once = checks.integer("jobs", at_once, low=1, high=1024)
        self._cpus = checks.integer("cpus", cpus, low=1)
        self._gpus = checks.number("gpus", gpus, low=0)
        if address is not None:
            checks.text("address", address)
        self._ray = _package()
        if not self._ray.is_initialized():
            self._ray.init(address=address, log_to_driver=False, logging_level="warning")
        elif address is not None:
            raise ValueError(
                f"address: got {address!r}, but Ray is connected; give none, or ray.shutdown()"
            )
        self._check_size()
        # of one run each: a process that has run another has its random state and settings
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(
            _work
        )
        self._going: list[Any] = []

    def start(self, job: Job) -> Running:
        handed = Handed(self._placed(job), self._ray.cloudpickle.dumps)
        self._going = [one for one in self._going if not _ready(self._ray, one)]
        self._going.append(self._remote.remote(handed))
        return _Task(self._ray, self._going[-1])

    def close(self) -> None:
        for one in self._going:
            self._ray.cancel(one)
        if self._going:
            self._ray.wait(self._going, num_returns=len(self._going))
        self._going.clear()

    def _check_size(self) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for field, need, kind in (("cpus", self._cpus, "CPU"), ("gpus", self._gpus, "GPU")):
            most = max((node.get(kind, 0) for node in nodes), default=0)
            if need > most:
                raise ValueError(
                    f"{field}: got {need:g}, but no machine of Ray's cluster has more than "
                    f"{most:g}; a run there would wait for ever"
                )

    def _placed(self, job: Job) -> Job:
        config = job.config
        if config.device == "auto" and not self._gpus:
            config = replace(config, device="cpu")
        if config.device.startswith("cuda") and not self._gpus:
            raise ValueError(
                f"gpus: got 0, but {job.text} is to run on {config.device!r}; give Ray(gpus=1)"
            )
        if config.threads is None:
            config = replace(config, threads=self._cpus)
        return replace(job, config=config)


def _package() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray: the package is not installed; pip install "qtrain[ray]"') from error
    return ray


def _work(handed: Handed) -> str:
    return handed()


def _ready(ray: Any, task: Any) -> bool:
    return bool(ray.wait([task], timeout=0)[0])


class _Task:
    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task

    def done(self) -> bool:
        return _ready(self._ray, self._task)

    def error(self) -> str:
        try:
            return str(self._ray.get(self._task))
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().partition("\n")[0].partition(". ")[0]
            return f"its worker ended ({type(error).__name__}: {why}); {GOES_ON}"
