"""What low precision keeps between steps, in the optimizer's state_dict: checked, and moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .counts import SIZE
from .update import Update

#: under which name, beside the parameters' numbers, in state_dict()["state"]
STATE = "low_precision"
_KINDS = {"update": str, "seed": int, "step": Tensor, "compensation": dict, "counts": dict}


def check_kept(
    state: Mapping[Any, Any], update: Update, seed: int, parameters: Mapping[str, Tensor]
) -> None:
    """ValueError where a loaded state is not of this update, seed and these parameters."""
    found = state.get(STATE)
    if found is None:
        if state:
            raise ValueError(
                "state: of an optimizer without low precision; load it before low_precision_ is "
                "called, which then begins anew"
            )
        return
    for problem in _problems(found, update, seed, parameters):
        raise ValueError(f"state[{STATE!r}]: {problem}")


def _problems(
    found: Any, update: Update, seed: int, parameters: Mapping[str, Tensor]
) -> Iterator[str]:
    if not isinstance(found, dict) or found.keys() != _KINDS.keys():
        yield f"need entries {', '.join(_KINDS)}"
        return
    for name, kind in _KINDS.items():
        if not isinstance(found[name], kind):
            yield f"{name} is {type(found[name]).__name__}, need {kind.__name__}"
            return
    if found["update"] != update.identity:
        yield f"of another update ({found['update']}), not this ({update.identity})"
    if found["seed"] != seed:
        yield f"of seed {found['seed']}, not {seed}"
    yield from _unlike("step", found["step"], (), torch.int64)
    for name, own in found["compensation"].items():
        if name not in parameters:
            yield f"compensation of {name!r}, which is no parameter"
            return
        yield from _unlike(f"compensation of {name}", own, parameters[name].shape, torch.float32)
    for name, parts in found["counts"].items():
        if name not in parameters or not isinstance(parts, dict):
            yield f"counts of {name!r}, which is no parameter"
            return
        for part, own in parts.items():
            yield from _unlike(f"counts of {name} {part}", own, (SIZE,), torch.int64)


def _unlike(what: str, got: Any, shape: Any, dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(got, Tensor) or got.shape != torch.Size(shape) or got.dtype != dtype:
        yield f"{what} is no tensor of {dtype} and shape {tuple(shape)}"


def moved(found: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Copies on the parameters' devices: what was loaded stays as it is."""
    first = next(iter(parameters.values())).device
    return {
        "update": found["update"],
        "seed": found["seed"],
        "step": found["step"].to(first, copy=True),
        "compensation": {
            name: own.to(parameters[name].device, copy=True)
            for name, own in found["compensation"].items()
        },
        "counts": {
            name: {part: own.to(parameters[name].device, copy=True) for part, own in parts.items()}
            for name, parts in found["counts"].items()
        },
    }
