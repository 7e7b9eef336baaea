"""Executors by a word, as files and the shell have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .... import checks
from .executor import Executor, Here
from .processes import Processes
from .ray import Ray
from .slurm import Slurm

NAMES: dict[str, Callable[..., Executor]] = {"processes": Processes, "ray": Ray, "slurm": Slurm}


def named(word: str | Mapping[str, Any], jobs: int = 1) -> Executor:
    """The executor that a word says, for so many runs at a time.

    word   "here" (of which jobs is 1), "processes", "ray" or "slurm"; or one of these with its
           settings, {"slurm": {"slurm_partition": "gpu", "timeout_min": 240}}

    ValueError or TypeError for another, ImportError where its package is not installed.
    """
    allowed = ["here", *NAMES]
    settings: Mapping[str, Any] = {}
    if isinstance(word, Mapping):
        if len(word) != 1:
            raise ValueError(f"executor: got {len(word)} names, need one of {', '.join(allowed)}")
        ((word, settings),) = word.items()
        settings = checks.mapping("executor", settings or {}, "a mapping of its settings")
    checks.choice("executor", word, allowed)
    if word == "here":
        if jobs != 1 or settings:
            raise ValueError("executor: 'here' does one run at a time, need jobs=1, no settings")
        return Here()
    try:
        return NAMES[word](jobs, **settings)
    except TypeError as error:
        raise TypeError(f"executor {word!r}: {error}") from error


def executor_for(executor: Any, jobs: int, runs: int) -> Executor:
    """What a study of so many runs takes for its `executor` and `jobs`."""
    checks.integer("jobs", jobs, low=1, high=1024)
    if executor is None:
        return Here() if jobs == 1 else Processes(min(jobs, runs))
    if isinstance(executor, str | Mapping):
        return named(executor, jobs)
    if not isinstance(executor, Executor):
        checks.refuse("executor", executor, "None, a word, or such as qtrain.executors.Ray(4)")
    if jobs != 1:
        raise ValueError(f"jobs: got {jobs} beside an executor, which has its own number")
    return executor
