"""The norms that a run's weights had, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..files.tensor_file import read_tensors
from ..files.whole import write_atomically
from .channels import channel_norms, chosen


class NormHistory:
    """Channel norms of a model, recorded once an epoch: `history.record(model)`.

    only, skip   patterns of the layers that are recorded: see `channel_norms`
    """

    def __init__(self, *, only: Iterable[str] = ("*",), skip: Iterable[str] = ()) -> None:
        self.only, self.skip = chosen(only, skip).values()
        self.epochs: list[dict[str, Tensor]] = []

    def record(self, model: nn.Module) -> None:
        """Append the norms of now."""
        norms = channel_norms(model, only=self.only, skip=self.skip)
        self.epochs.append({name: norm.cpu() for name, norm in norms.items()})

    def at(self, epoch: int) -> dict[str, Tensor]:
        """What was recorded `epoch`-th, from 0; beyond the last, the last."""
        if not self.epochs:
            raise ValueError("history: it is empty; record(model) or load a saved one")
        checks.integer("epoch", epoch, low=0)
        return self.epochs[min(epoch, len(self.epochs) - 1)]

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain data, for a checkpoint."""
        return {"only": self.only, "skip": self.skip, "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError, with nothing restored, for anything else."""
        needed = {"only", "skip", "epochs"}
        if not isinstance(state, Mapping) or set(state) != needed:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"history: got {got}, need what state_dict() gave, {sorted(needed)}")
        try:
            only, skip = chosen(state["only"], state["skip"]).values()
        except TypeError as error:
            raise ValueError(f"history: {error}") from error
        if not isinstance(state["epochs"], list) or not all(map(_are_norms, state["epochs"])):
            raise ValueError("history: its epochs are no list of norms by name, each (channels)")
        self.only, self.skip = only, skip
        self.epochs = [dict(epoch) for epoch in state["epochs"]]

    def save(self, path: str | Path) -> None:
        """Write the history to a file, whole or not at all."""
        path = checks.path("path", path)
        if not path.name:
            raise ValueError(f"path: got {str(path)!r}, need that of a file")
        write_atomically(path, lambda file: torch.save(self.state_dict(), file))

    @staticmethod
    def load(path: str | Path) -> NormHistory:
        """The history that `save` wrote; OSError for a file that cannot be opened, ValueError for
        another or a damaged one."""
        history = NormHistory()
        path = checks.path("path", path)
        try:
            history.load_state_dict(read_tensors(path))
        except OSError:
            raise
        except Exception as error:  # damaged files fail in many ways, all before any use
            what = error if isinstance(error, ValueError) else type(error).__name__
            raise ValueError(
                f"{path}: not a history that save() wrote, or damaged ({what}); record a new one"
            ) from error
        return history


def _are_norms(epoch: object) -> bool:
    """Whether these are the norms of one epoch."""
    return isinstance(epoch, Mapping) and all(
        isinstance(name, str) and isinstance(norms, Tensor) and norms.dim() == 1
        for name, norms in epoch.items()
    )
