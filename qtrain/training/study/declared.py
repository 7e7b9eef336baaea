"""What a study has stated, and after how many runs: kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...files.plain_json import read
from ...files.whole import there, write_atomically
from ...reports.rows import typed
from ..folder import folder_of, make_folder
from .outcome import has_ended
from .plan import Plan

FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """How a study is to be judged.

    after   how many of its runs had ended when it was stated so
    """

    baseline: str
    metric: str
    margin: float
    primary: tuple[str, ...]
    after: int

    def terms(self) -> tuple[object, ...]:
        """All but when it was stated."""
        return self.baseline, self.metric, self.margin, self.primary


def check_rates(plan: Plan, factors: Sequence[float]) -> None:
    """ValueError where runs are there whose rates were chosen among others than these factors."""
    path = plan.place / FILE
    runs = [folder_of(job.config) for job in plan.jobs()]
    begun = next((run for run in runs if there(run / "config.json")), None)
    if begun is None or not there(path):
        return
    then = read(path, dict).get("rates", list(factors))
    if then != list(factors):
        told = [tuple(rates) if rates else None for rates in (then, factors)]
        raise ValueError(
            f"rates: got {told[1]}, but the runs that are there, {begun} the first of them, had "
            f"rates={told[0]}; say these, or give the study another name"
        )


def declare(plan: Plan, factors: Sequence[float] = ()) -> tuple[Declaration, ...]:
    """Write down how the plan is to be judged, unless it is as before -> all that was stated so
    far, the oldest first; factors: of the rates that it chooses among.  ValueError for a damaged
    file, and where no folder can be made."""
    path = plan.place / FILE
    stated = list(_read(path)) if there(path) else []
    ended = sum(has_ended(job.config) for job in plan.jobs())
    now = Declaration(
        baseline=plan.baseline, metric=plan.metric, margin=plan.margin, primary=plan.primary,
        after=ended,
    )  # fmt: skip
    if not stated or stated[-1].terms() != now.terms():
        stated.append(now)
    arms = {arm.name: arm.config.to_dict() for arm in plan.arms}
    content = {
        "stated": [asdict(one) for one in stated], "seeds": list(plan.seeds),
        "rates": list(factors), "arms": arms,
    }  # fmt: skip
    make_folder(path.parent, "runs_dir or name")
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return tuple(stated)


def _read(path: Path) -> Sequence[Declaration]:
    kinds = {
        "baseline": str, "metric": str, "margin": float, "primary": tuple[str, ...], "after": int,
    }  # fmt: skip
    try:
        rows = read(path, dict)["stated"]
        return [
            Declaration(**{name: typed(name, row[name], kind) for name, kind in kinds.items()})
            for row in rows
        ]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: holds no study ({error}); restore or delete it") from error
