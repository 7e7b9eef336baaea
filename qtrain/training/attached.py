"""A run's hooks, called and kept as its steps and checkpoints need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from .. import checks
from ..files.tensor_file import is_plain
from .checkpoint import CheckpointError
from .config import TrainConfig
from .hook import Hook
from .trainee import Branch, seed_step

#: what a line of the metrics and a study have themselves
_TAKEN = (
    "kind", "epoch", "step", "branch", "train_loss", "test_loss", "test_accuracy", "seconds",
    "test_seconds", "crc", "rows", "lr", "loss", "grad_norm", "accuracy", "arm", "seed", "state",
    "epochs", "note", "machine", "path",
)  # fmt: skip


class Attached:
    """The hooks of a configuration on the branch that they belong to; they have begun."""

    def __init__(self, config: TrainConfig, hooks: Sequence[Hook], branch: Branch) -> None:
        self._named = list(zip(config.hooks, hooks, strict=True))
        self._branch, self._seed = branch, config.seed
        for _, hook in self._named:
            hook.begin(branch.model, branch.optimizer, config)
        self.state()  # what cannot be kept is refused before the first step

    def before_epoch(self, epoch: int, step: int) -> None:
        """Before step `step`, the first of the epoch in this session."""
        if self._named:
            self._branch.model.train()
            seed_step(self._seed, step)
            for _, hook in self._named:
                hook.before_epoch(epoch)
            self._branch.passes.restart()  # a captured graph would not see what they changed

    def after_epoch(self, epoch: int, step: int) -> dict[str, float]:
        """The columns of all, `step` steps being done; TypeError or ValueError for others."""
        found: dict[str, float] = {}
        if self._named:
            seed_step(self._seed, step)
        for name, hook in self._named:
            own = checks.mapping(f"hook {name}", hook.after_epoch(epoch), "columns by name")
            for column, value in own.items():
                _check(f"hook {name}", column, value)
                if column in found:
                    raise ValueError(f"hook {name}: its column {column!r} is another hook's too")
                found[column] = float(value)
        return found

    def state(self) -> list[dict[str, Any]] | None:
        """Each hook's, for a checkpoint; None without hooks.  TypeError for what no file holds."""
        found = []
        for name, hook in self._named:
            state = hook.state_dict()
            if not isinstance(state, dict) or not is_plain(state):
                checks.refuse(f"hook {name}: state_dict", state, "a dict of tensors and plain data")
            found.append(state)
        return found or None

    def load(self, states: list[Any] | None, *, where: str) -> None:
        """Restore what `state` gave; CheckpointError where it does not fit."""
        given = [] if states is None else states
        if len(given) != len(self._named):
            got = f"got the state of {len(given)} hooks, need {len(self._named)}"
            raise CheckpointError(f"{where}: {got}")
        for (name, hook), state in zip(self._named, given, strict=True):
            try:
                hook.load_state_dict(state)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise CheckpointError(f"{where}: not the state of hook {name}: {error}") from error


def _check(hook: str, column: Any, value: Any) -> None:
    if not isinstance(column, str) or not column.isidentifier() or column in _TAKEN:
        need = f"a name that Python could have, none of {', '.join(_TAKEN)}"
        checks.refuse(f"{hook}: column", column, need, error=ValueError)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        checks.refuse(f"{hook}: {column}", value, "a finite number", error=ValueError)
