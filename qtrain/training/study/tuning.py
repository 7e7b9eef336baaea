"""Learning rates chosen for every arm with the same budget, on samples that no test has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ... import checks
from ..config import TrainConfig
from .outcome import StudyRun
from .plan import METRICS, Arm, Plan

#: of the training samples are held out
HOLDOUT = 0.1
#: of the tuning runs: seeds that no comparison has, unless it asks for them
SEEDS = (1000, 1001)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The rates that were chosen.

    factors   arm -> what its learning rate is multiplied by
    tried     the factors that all of them had
    runs      those that were made for it
    """

    factors: dict[str, float]
    tried: tuple[float, ...]
    runs: tuple[StudyRun, ...]

    @property
    def note(self) -> str:
        """How, and what came out, in words."""
        chosen = ", ".join(
            f"{arm} x{factor:g}{' (the last of those tried)' * self._at_edge(factor)}"
            for arm, factor in self.factors.items()
        )
        return (
            f"Rates chosen for every arm among x{', x'.join(f'{f:g}' for f in self.tried)} by "
            f"{len(SEEDS)} runs of half the epochs on {HOLDOUT:.0%} of the training samples, held "
            f"out: {chosen}."
        )

    def _at_edge(self, factor: float) -> bool:
        return len(self.tried) > 1 and factor in (min(self.tried), max(self.tried))


def factors_of(rates: Iterable[float] | None) -> tuple[float, ...]:
    """The factors that `study` takes as `rates`; TypeError or ValueError for others."""
    if rates is None:
        return ()
    found = tuple(checks.iterable("rates", rates, "factors of the learning rate, (0.5, 1, 2)"))
    for factor in found:
        checks.number("rates", factor, low=0, positive=True, hint="a factor of lr, 0.5 or 2")
    if len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(f"rates: got {found}, need two factors or more, each once: (0.5, 1, 2)")
    return tuple(sorted(map(float, found)))


def tuning(plan: Plan, factors: Sequence[float]) -> Plan:
    """The runs that choose: every arm at every rate, in the folder `tuning` of the study.
    ValueError for a study that is itself tested on held out samples: these would choose."""
    if (own := plan.arms[0].config.holdout) is not None:
        raise ValueError(
            f"rates: got them beside holdout={own}, whose samples would choose the rates and test "
            f"them too; leave one out"
        )
    if plan.metric not in METRICS:
        raise ValueError(
            f"rates: got them beside metric {plan.metric!r}, of which nobody says what is best; "
            f"they are chosen by accuracy or loss"
        )
    arms = [
        Arm(
            name=f"{arm.name} x{factor:g}", recipe=f"{arm.recipe} x{factor:g}", group=arm.group,
            config=_half(arm.config, factor), model=arm.model,
        )
        for arm in plan.arms
        for factor in factors
    ]  # fmt: skip
    return replace(plan, name=f"{plan.name}, tuning", arms=tuple(arms), seeds=SEEDS, primary=())


def _half(config: TrainConfig, factor: float) -> TrainConfig:
    epochs = -(-config.epochs // 2)
    share = epochs / config.epochs
    return replace(
        config, lr=config.lr * factor, epochs=epochs, holdout=HOLDOUT,
        milestones=tuple(dict.fromkeys(max(1, round(m * share)) for m in config.milestones)),
        warmup=None if config.warmup is None else config.warmup * share,
        runs_dir=f"{config.runs_dir}/tuning",
    )  # fmt: skip


def tuned(plan: Plan, factors: Sequence[float], runs: Sequence[StudyRun]) -> Tuned | None:
    """Of each arm the rate with the best mean, the nearest to its own of equal ones; None while
    runs of `tuning` are missing."""
    if not all(run.has_ended for run in runs):
        return None
    found = {}
    for arm in plan.arms:
        means = {
            factor: fmean(
                run.value(plan.metric) * (-1 if plan.metric == "loss" else 1)
                for run in runs
                if run.arm == f"{arm.name} x{factor:g}"
            )
            for factor in sorted(factors, key=lambda f: max(f, 1 / f))
        }
        found[arm.name] = max(means, key=means.__getitem__)
    return Tuned(factors=found, tried=tuple(factors), runs=tuple(runs))


def at_rates(plan: Plan, rates: Tuned) -> Plan:
    """The plan with the rates that were chosen."""
    arms = [
        replace(arm, config=replace(arm.config, lr=arm.config.lr * rates.factors[arm.name]))
        for arm in plan.arms
    ]
    return replace(plan, arms=tuple(arms))
