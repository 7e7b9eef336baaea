"""Checkpoints: written atomically, read without ever running code from the file."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files.tensor_file import Damaged, read_tensors
from ..files.whole import write_atomically
from ..layer_state import LayerState

FORMAT = "qtrain-checkpoint-1"
#: entries that the file of a run without them has not
_OPTIONAL: dict[str, type] = {"monitor": dict, "hooks": list}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, hostile, or of another run."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run between two steps.

    config, environment   as `TrainConfig.to_dict` and `environment` give them
    step                  steps done; the place in the data order, the learning rate and the
                          random numbers of dropout and rounding all follow from it
    metrics_bytes         length of the metrics file at that step
    branches              the state of each model: see `Branch.state_dict`
    data                  `DataSet.fingerprint`; "" in files of versions that kept none
    monitor               see `Monitor.state_dict`; None, and no entry in the file, for a run
                          without one
    hooks                 each hook's state, in order; None likewise
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    step: int
    metrics_bytes: int
    branches: dict[str, Any]
    data: str = ""
    monitor: dict[str, Any] | None = None
    hooks: list[Any] | None = None

    def check_data(self, found: str, place: str | None, *, where: str) -> None:
        """CheckpointError where the data of fingerprint `found`, read from `place` (data_dir), is
        not that of the run."""
        if self.data not in ("", found):
            raise CheckpointError(
                f"{where}: of a run on other data: its fingerprint is {self.data[:12]} (data_dir "
                f"was {self.config.get('data_dir')}), but that of {place} is {found[:12]}; give "
                "the run's own data with --data-dir, or train a new run on this"
            )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint`, replacing an older one atomically; OSError where it cannot be."""
    # not dataclasses.asdict: it would deepcopy every tensor
    entries = {name: value for name, value in vars(checkpoint).items() if value is not None}
    content = {"format": FORMAT, **entries}
    buffer = io.BytesIO()  # torch.save to a full disk ends in an error that does not say so
    torch.save(content, buffer)
    try:
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    except OSError as error:
        raise OSError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}); the one before "
            "it, if any, is whole: make room, then continue with --resume"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; CheckpointError where it is none of ours or damaged."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the path of the checkpoint.pt in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give the path of a checkpoint.pt")
    try:
        content = read_tensors(path)
    except Damaged as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or one that holds more than plain data; it was not loaded"
        ) from error
    except Exception as error:  # damaged archives fail in many ways, all before any use
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); "
            "it is truncated or damaged"
        ) from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: holds tensors or data, but no {FORMAT}")
    content.setdefault("data", "")
    kinds: dict[str, Any] = {
        "config": dict, "environment": dict, "step": int, "metrics_bytes": int, "branches": dict,
        "data": str,
    }  # fmt: skip
    kinds |= {name: kind for name, kind in _OPTIONAL.items() if name in content}
    if set(content) != set(kinds):
        raise CheckpointError(f"{path}: got entries {sorted(map(str, content))}, need {[*kinds]}")
    for name, kind in kinds.items():
        value = content[name]
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise CheckpointError(f"{path}: {name} is {value!r:.60}, need a valid {kind.__name__}")
    try:
        json.dumps([content["config"], content["environment"]])
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: config or environment is no plain data") from error
    return Checkpoint(**content)


def load_model(model: nn.Module, state: object, *, where: str) -> None:
    """Load a model's state strictly; CheckpointError naming what does not fit.

    Nothing is loaded unless all names, shapes and dtypes fit.
    """
    own = model.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(f"{where}: got {type(state).__name__}, need a model's state")
    state = dict(state)
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LayerState):
            module.complete_(state, f"{prefix}." if prefix else "")
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    for name, value in own.items():
        if name in state and isinstance(value, torch.Tensor):
            problems += misfit(name, state[name], value)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where}: of another model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)


def unsaved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a model's state_dict leaves out, which training may change all the same."""
    return {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }


def load_buffers(model: nn.Module, state: object, *, where: str) -> None:
    """Load what `unsaved_buffers` gave, None where there were none; CheckpointError for others."""
    own = unsaved_buffers(model)
    given = {} if state is None else state
    if not isinstance(given, dict) or given.keys() != own.keys():
        raise CheckpointError(f"{where}: of another model: its non-persistent buffers differ")
    problems = [why for name, buffer in own.items() for why in misfit(name, given[name], buffer)]
    if problems:
        raise CheckpointError(f"{where}: of another model: {problems[0]}")
    with torch.no_grad():
        for name, buffer in own.items():
            buffer.copy_(given[name])


def misfit(name: str, got: object, need: torch.Tensor) -> list[str]:
    """What hinders a value read onto the CPU from taking a tensor's place, if anything."""
    if not isinstance(got, torch.Tensor):
        return [f"{name} is {type(got).__name__}, need a tensor"]
    if got.shape != need.shape:
        return [f"{name} is {tuple(got.shape)}, need {tuple(need.shape)}"]
    kind = (got.dtype, got.layout, got.device.type)
    wanted = (need.dtype, need.layout, "cpu")
    return [f"{name} is of {kind}, need {wanted}"] if kind != wanted else []
