"""Whether the arms of a study can run at all: each one's network is made once, before any run."""

from __future__ import annotations

from typing import Any

import torch

from ...data import DataSet
from ..batches import total_steps
from ..given.reference import resolved
from ..loggers.named import made
from ..train import build_branches, load_data
from .executors.executor import in_words
from .outcome import has_ended
from .plan import Job, Plan

#: what of a configuration decides its data; a function's may be drawn by the seed, too
_DATA = ("data_dir", "image_size", "context", "cache_dir", "holdout", "batch_size", "workers")


def check_arms(plan: Plan) -> None:
    """ValueError, naming the arm, where data, network, optimizer, loggers or hooks of its next
    run cannot be made: what all its runs would fail by, one after the other.

    Arms without a run to do are left out; data that arms share is loaded once.  torch's random
    state is left as it was.
    """
    waiting: dict[str, Job] = {}
    for job in plan.jobs():
        if not has_ended(job.config):
            waiting.setdefault(job.arm, job)
    loaded: dict[tuple[Any, ...], DataSet] = {}
    for job in waiting.values():
        key = tuple(getattr(job.config, name) for name in _DATA)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                if key not in loaded:
                    loaded = {key: load_data(job.config, job.data)}
                _check(job, loaded[key])
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a model and data of the user's raise what they like
            ours = isinstance(error, ValueError | TypeError | OSError)
            text = str(error) if ours else in_words(error)
            raise ValueError(f"arm {job.arm!r}: {text}") from error


def _check(job: Job, dataset: DataSet) -> None:
    made(job.config.log)
    for name in job.config.hooks:
        resolved("hooks", name)
    job.config.quantizations().begins(total_steps(job.config, dataset))
    build_branches(job.config, dataset, torch.device("cpu"), job.model)
