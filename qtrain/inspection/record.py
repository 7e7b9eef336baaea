"""What a Monitor has recorded: rows of many steps, of bounded number, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import checks
from ..reports.heat import Heat
from .detail import Detail
from .figures import MONITORED, computed
from .recorder import Recorder
from .row import ROLES, layers_of
from .rows import MonitorRow, dumped, heats, parsed
from .weight_watch import HISTORY, oscillation


def thinned_out(steps: set[int], every: int, turns: int) -> set[int]:
    """The steps to drop.  Layers take turns: of each turn's steps every second one of the older
    half, so that every layer loses alike; the first stays."""
    out: set[int] = set()
    for turn in range(turns):
        own = sorted(step for step in steps if step // every % turns == turn)
        out.update(own[1 : len(own) // 2 : 2])
    return out


class Record:
    """The rows of at most `keep` steps, multiples of `every`.

    turns     how many records it takes to measure every layer
    thinned   how many steps were dropped
    """

    def __init__(self, *, every: int, turns: int, keep: int) -> None:
        self._every, self._turns, self._keep = every, turns, keep
        self.rows: list[MonitorRow] = []
        self.thinned = 0
        self._medians: dict[tuple[str, str], float] = {}
        #: of each layer: the codes of some weights, at its last records
        self._codes: dict[str, list[list[int]]] = {}

    @property
    def steps(self) -> list[int]:
        """The steps that are kept, in order."""
        return list(dict.fromkeys(row.step for row in self.rows))

    def add(self, step: int, recorders: Mapping[str, Recorder]) -> None:
        """The rows of a step that is done; older ones make room."""
        for name, recorder in recorders.items():
            for role, sums, detail in recorder.rows():
                assert detail is not None
                self.rows.append(
                    MonitorRow(
                        step=step,
                        **vars(sums.row(name, role)),
                        values=_counts(detail.values),
                        codes=_counts(detail.codes),
                        drift=self._drift((name, role), detail),
                        oscillation=self._oscillation(name, detail),
                        **computed(MONITORED, detail),
                    )
                )
        if len(self.steps) > self._keep:
            out = thinned_out(set(self.steps), self._every, self._turns)
            self.rows = [row for row in self.rows if row.step not in out]
            self.thinned += len(out)

    def state_dict(self) -> dict[str, Any]:
        medians = [[layer, role, value] for (layer, role), value in self._medians.items()]
        return {
            "thinned": self.thinned, "medians": medians,
            "codes": {layer: list(history) for layer, history in self._codes.items()},
            "rows": dumped(self.rows),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError, with nothing changed, where it is damaged."""
        try:
            thinned = checks.integer("thinned", state["thinned"], low=0)
            rows = parsed(state["rows"])
            medians = {(str(layer), str(role)): float(m) for layer, role, m in state["medians"]}
            codes = {str(layer): _history(own) for layer, own in state["codes"].items()}
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"Monitor: the state is damaged: {error}") from error
        self.thinned, self.rows, self._medians = thinned, rows, medians
        self._codes = codes

    def heats(self, layers: Iterable[str] | None, roles: Iterable[str] | None) -> list[Heat]:
        """SQNR by step, a map a role and a line a layer: of those named, None of all."""
        if not self.rows:
            raise ValueError("monitor: nothing to plot; no step is recorded")
        layers = _chosen("layers", layers, layers_of(self.rows))
        found = {row.role for row in self.rows}
        roles = _chosen("roles", roles, [role for role in ROLES if role in found])
        return heats(self.rows, layers, roles)

    def _drift(self, key: tuple[str, str], detail: Detail) -> float | None:
        if detail.scale is None:
            return None
        before, now = self._medians.get(key), detail.scale[1]
        self._medians[key] = now
        if before is None:
            return None
        if before == 0:
            return 1.0 if now == 0 else math.inf * now
        return now / before

    def _oscillation(self, layer: str, detail: Detail) -> float | None:
        if detail.weight is None:
            return None
        history = self._codes.setdefault(layer, [])
        history.append(detail.weight.codes)
        del history[:-HISTORY]
        return oscillation(history)


def _chosen(field: str, asked: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """What was asked for, in the order of what is known; ValueError for what is not."""
    names = list(dict.fromkeys(known))
    wanted = [] if isinstance(asked, str) else names if asked is None else list(asked)
    for name in wanted:
        checks.choice(field, name, names)
    if not wanted:
        raise ValueError(f"{field}: got {asked!r}, need a list of some of {', '.join(names)}")
    return [name for name in names if name in wanted]


def _history(stored: Any) -> list[list[int]]:
    """ValueError or TypeError for other than HISTORY equally long lists of integers at most."""
    history = [[int(code) for code in codes] for codes in stored]
    if len(history) > HISTORY or len({len(codes) for codes in history}) > 1:
        raise ValueError(f"codes of {len(history)} records")
    return history


def _counts(counts: torch.Tensor | None) -> tuple[int, ...]:
    return () if counts is None else tuple(counts.tolist())
