"""Checkpoints: written atomically, read without ever running code from the file."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .files import write_atomically

FORMAT = "qtrain-checkpoint-1"


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
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    step: int
    metrics_bytes: int
    branches: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint`, replacing an older one atomically."""
    # not dataclasses.asdict: it would deepcopy every tensor
    content = {"format": FORMAT, **vars(checkpoint)}
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; CheckpointError where it is none of ours or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give the path of a checkpoint.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    kinds = {
        "config": dict,
        "environment": dict,
        "step": int,
        "metrics_bytes": int,
        "branches": dict,
    }
    if set(content) != set(kinds):
        raise CheckpointError(f"{path}: got entries {sorted(map(str, content))}, need {[*kinds]}")
    for name, kind in kinds.items():
        value = content[name]
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise CheckpointError(f"{path}: {name} is {value!r:.60}, need a valid {kind.__name__}")
    return Checkpoint(**content)


def load_model(model: nn.Module, state: object, *, where: str) -> None:
    """Load a model's state strictly; CheckpointError naming what does not fit.

    Nothing is loaded unless all names and shapes fit.
    """
    own = model.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(f"{where}: got {type(state).__name__}, need a model's state")
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    for name in own.keys() & state.keys():
        given = state[name]
        if isinstance(own[name], torch.Tensor) and (
            not isinstance(given, torch.Tensor) or given.shape != own[name].shape
        ):
            got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            problems.append(f"{name} is {got}, need {tuple(own[name].shape)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where}: of another model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, *, where: str) -> None:
    """Load an optimizer's state; CheckpointError where it belongs to other parameters."""
    try:
        if not isinstance(state, dict):
            raise TypeError(f"got {type(state).__name__}")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, entries in state["state"].items():
            for name, value in entries.items():
                scalar = not isinstance(value, torch.Tensor) or value.ndim == 0
                if not scalar and value.shape != parameters[index].shape:
                    raise ValueError(f"{name} of parameter {index} is {tuple(value.shape)}")
        optimizer.load_state_dict(state)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{where}: not this optimizer's state: {error}") from error
