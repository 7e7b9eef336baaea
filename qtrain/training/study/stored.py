"""Whether the runs that are there are those of a plan."""

from __future__ import annotations

from ...data.given import is_data
from ...files.plain_json import read
from ..folder import folder_of
from ..train import load_data
from .outcome import end_of, outcome
from .plan import Plan


def check_stored(plan: Plan) -> None:
    """ValueError where a run lies in the folder of another: of other settings, or that ended on
    other data (by its fingerprint; looked at where data is a value of Python, or where `data_dir`
    is not what it was)."""
    found: dict[int | None, str] = {}  # a function may draw data by the seed
    for job in plan.jobs():
        path, given = folder_of(job.config), is_data(job.data)
        if not outcome(job).has_ended:
            continue
        then = end_of(path).get("data")
        where = read(path / "config.json", dict).get("data_dir")
        if then is None or not (given or where != job.config.data_dir):
            continue
        key = None if given else job.seed
        if key not in found:
            found[key] = load_data(job.config, job.data).fingerprint()
        if found[key] != then:
            raise ValueError(
                f"{path}: holds a run on other data (data_dir was {where!r}, now "
                f"{job.config.data_dir!r}): its samples or labels differ; give the study another "
                f"name, or remove that folder"
            )
