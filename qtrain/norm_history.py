"""The norms that a run's weights had, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .channels import channel_norms, listed
from .files import write_atomically

Norms = Mapping[str, Tensor]


class NormHistory:
    """Channel norms of a model, recorded once an epoch: `history.record(model)`.

    only, skip   patterns of the layers that are recorded: see `channel_norms`
    """

    def __init__(self, *, only: Iterable[str] = ("*",), skip: Iterable[str] = ()) -> None:
        self.only, self.skip = listed("only", only), listed("skip", skip)
        self.epochs: list[dict[str, Tensor]] = []

    def record(self, model: nn.Module) -> None:
        """Append the norms of now."""
        norms = channel_norms(model, only=self.only, skip=self.skip)
        self.epochs.append({name: norm.cpu() for name, norm in norms.items()})

    def at(self, epoch: int) -> dict[str, Tensor]:
        """What was recorded `epoch`-th, from 0; beyond the last, the last."""
        if not self.epochs:
            raise ValueError("history: it is empty; record(model) or load a saved one")
        if epoch < 0:
            raise ValueError(f"epoch: got {epoch}, need 0 or more")
        return self.epochs[min(epoch, len(self.epochs) - 1)]

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain data, for a checkpoint."""
        return {"only": self.only, "skip": self.skip, "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.only, self.skip = list(state["only"]), list(state["skip"])
        self.epochs = [dict(epoch) for epoch in state["epochs"]]

    def save(self, path: str | Path) -> None:
        """Write the history to a file, whole or not at all."""
        write_atomically(Path(path), lambda file: torch.save(self.state_dict(), file))

    @staticmethod
    def load(path: str | Path) -> NormHistory:
        """The history that `save` wrote."""
        history = NormHistory()
        history.load_state_dict(torch.load(path, weights_only=True))
        return history
