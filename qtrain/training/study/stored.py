"""Whether the runs that are there are those of a plan."""

from __future__ import annotations

from collections.abc import Callable

from ...data.given import is_data
from ...files.plain_json import read
from ...hardware.environment import sessions
from ..folder import code, folder_of
from ..train import load_data
from .outcome import end_of, outcome
from .plan import Plan


def check_stored(plan: Plan, say: Callable[[str], None]) -> None:
    """Says of which runs the source of a function that they name has changed since.

    ValueError where a run lies in the folder of another: of other settings, or that ended on
    other data (by its fingerprint; looked at where data is a value of Python, or where `data_dir`
    is not what it was)."""
    found: dict[int | None, str] = {}  # a function may draw data by the seed
    edited: dict[str, list[str]] = {}
    for job in plan.jobs():
        path, given = folder_of(job.config), is_data(job.data)
        if not outcome(job).has_ended:
            continue
        source = code(job.config).get("code", "")
        ran = [one.get("code", source).split(", ") for one in sessions(path / "environment.json")]
        new = [own for own in source.split(", ") if own and not all(own in one for one in ran)]
        if new:
            edited.setdefault(", ".join(new), []).append(job.text)
        then = end_of(path).get("data")
        where = read(path / "config.json", dict).get("data_dir")
        if then is None or not (given or where != job.config.data_dir):
            continue
        key = None if given else job.seed
        if key not in found:
            found[key] = load_data(job.config, job.data).fingerprint()
        if found[key] != then:
            now = job.config.data_dir
            moved = "" if where == now else f" (data_dir was {where!r}, now {now!r})"
            raise ValueError(
                f"{path}: holds a run on other data{moved}: its samples or labels differ; give "
                f"the study another name, or remove that folder"
            )
    for now, runs in edited.items():
        more = f" and {len(runs) - 1} others" if len(runs) > 1 else ""
        say(
            f"{runs[0]}{more} ran with another source of what is now {now}; they are kept: remove "
            f"their folders in {plan.place}, or give another name, to run them again"
        )
