"""Weights & Biases (an optional package, wandb) while a run goes on."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ...files.plain_json import read
from ...inspection.tensorboard import at
from .logger import Logger


class WeightsAndBiases(Logger):
    """Logs "<branch>/<figure>", of a monitor "sqnr_db/<layer>/<role>", to a run of wandb: of the
    project in WANDB_PROJECT (default: qtrain), online or offline as WANDB_MODE says; its files lie
    in runs/<name>/wandb.

    A resumed run goes on under the same id.  runs/<name>/wandb.json holds it, and the step below
    which everything is logged: what a resumed run computes anew is left out till there.
    """

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        wandb: Any = import_module("wandb")
        self._path = folder / "wandb.json"
        self._id, self._known = secrets.token_hex(4), 0
        with suppress(ValueError, LookupError, OSError):  # none yet
            stored = read(self._path, dict)
            self._id, self._known = str(stored["id"]), int(stored["step"])
        self._row = self._known
        self._mark()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "qtrain"),
            name=folder.name,
            id=self._id,
            resume="allow",
            config=dict(config),
            dir=str(folder),
            reinit="create_new",  # beside one that the caller has
            settings=wandb.Settings(console="off"),
        )

    def log(self, line: Mapping[str, Any]) -> None:
        row = at(line)
        if row < self._known:
            return
        if row > self._row:  # so that before is whole
            self._row = row
            self._mark()
        self._run.log(_values(line), step=row)

    def close(self) -> None:
        self._run.finish()
        self._row += 1
        self._mark()

    def _mark(self) -> None:
        """Write where the log stands, in one call and always as long: no kill cuts it."""
        text = f'{{"id": {json.dumps(self._id)}, "step": {self._row:>16}}}\n'
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _values(line: Mapping[str, Any]) -> dict[str, Any]:
    if line["kind"] == "monitor":
        return {f"sqnr_db/{line['layer']}/{line['role']}": line["sqnr_db"]}
    skipped = ("kind", "step", "branch", "epoch")
    own = {
        f"{line['branch']}/{name}": float("nan") if value is None else value
        for name, value in line.items()
        if name not in skipped
    }
    return {**own, "epoch": line["epoch"]} if line["kind"] == "epoch" else own
