"""An optimizer's state in a checkpoint: kept as plain data, and restored where it fits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..files.tensor_file import is_plain
from ..weights.updates.kept import STATE
from .checkpoint import CheckpointError, misfit

_STATES: dict[type, set[str]] = {
    torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}  # fmt: skip
#: settings of a group that every step sets, and what it sets them from
_RATES = ("lr", "initial_lr")


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state_dict; TypeError for what no checkpoint gives back."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:  # the optimizer's own are others
        for name, value in group.items():
            if isinstance(value, float):
                group[name] = float(value)  # of a NumPy float64, too
            elif not is_plain(value):
                checks.refuse(f"optimizer: {name}", value, "Python's numbers, text or tensors")
    for entries in state["state"].values():
        if not is_plain(entries):
            checks.refuse("optimizer: state", entries, "tensors and plain data")
    return state


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: object, *, where: str, changing: bool = False
) -> None:
    """Load the state of an optimizer's parameters.

    changing   whether it is of the user's own, or has hooks that may change it: its settings are
               then those that are stored, else those of the run

    CheckpointError, with nothing loaded, where the state belongs to other parameters or settings.
    """
    own = optimizer.state_dict()["param_groups"]
    try:
        if not isinstance(state, dict):
            raise TypeError(f"got {type(state).__name__}")
        pairs = list(zip(own, state["param_groups"], strict=True))
        if not all(_fits(*pair, changing) for pair in pairs):
            raise ValueError("its settings are not those of this run")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, entries in state["state"].items():
            if index == STATE:  # whose optimizer checks it
                continue
            names = None if changing else _STATES.get(type(optimizer))
            problems = _misfits(names, entries, parameters[index])
            if problems:
                raise ValueError(f"parameter {index}: {problems[0]}")
        groups = [{**mine, **stored} if changing else dict(mine) for mine, stored in pairs]
        for group, (mine, stored) in zip(groups, pairs, strict=True):
            constant = group.get("constant", False)  # of which no schedule makes the rate
            group["lr"] = _rate(stored["lr"]) if constant else mine["lr"]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for index, entries in state["state"].items():
            if index != STATE:
                _keep_dtypes(optimizer.state[parameters[index]], entries)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{where}: not this optimizer's state: {error}") from error


def _fits(own: dict[str, Any], stored: dict[str, Any], changing: bool) -> bool:
    if changing:
        known = own.keys() - {*_RATES} <= stored.keys() and own["params"] == stored["params"]
        return known and is_plain(stored)
    mine, theirs = ({n: v for n, v in g.items() if n not in _RATES} for g in (own, stored))
    return mine == theirs


def _rate(value: Any) -> Any:
    kinds = (int, float) if not isinstance(value, Tensor) else (Tensor,)
    if type(value) not in kinds or not 0 <= value < math.inf:
        raise ValueError(f"a group's constant rate is {value!r:.60}")
    return value


def _misfits(names: set[str] | None, entries: Any, parameter: Tensor) -> list[str]:
    """names: of the entries that the optimizer has; None where only their class knows them."""
    if names is None:
        return [f"{n} is no plain data" for n, v in entries.items() if not is_plain(v)]
    if entries and set(entries) != names:
        return [f"got {sorted(map(str, entries))}, need {sorted(names)}"]
    problems = []
    for name, value in entries.items():
        need = torch.zeros((), device="cpu") if name == "step" else parameter
        problems += misfit(name, value, need)
        if name == "step" and not problems and not 0 <= value.item() < math.inf:
            problems.append(f"step is {value.item()}")
    return problems


def _keep_dtypes(loaded: dict[str, Any], stored: dict[str, Any]) -> None:
    """torch gives every state its parameter's dtype."""
    for name, value in stored.items():
        found = loaded.get(name)
        if isinstance(value, Tensor) and isinstance(found, Tensor) and found.dtype != value.dtype:
            loaded[name] = value.to(found.device)
