"""What can be asked of a converted model: its plain state, new noise, ranges without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..copies import aside
from ..layer_state import LayerState
from ..names import some
from ..products.module import products_of


def reseed(model: nn.Module, seed: int) -> nn.Module:
    """Give every layer another stream of noise, in place: for an independent copy of a model."""
    checks.module(model)
    checks.integer("seed", seed)
    states = [module for module in model.modules() if isinstance(module, LayerState)]
    if not states:
        raise ValueError("reseed: the model has no quantized layer; quantize it first")
    for stream, state in enumerate(states):
        state.reseed(seed, stream)
    return model


def plain_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state_dict without qtrain's buffers: it loads strictly into the original model."""
    checks.module(model)
    ours = tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LayerState)
    )
    return {key: value for key, value in model.state_dict().items() if not key.startswith(ours)}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Fill the running ranges, and set what quantizers of inputs and weights learn where no tensor
    has, from `batches` of inputs, without training; returns the model.

    batches: an iterable of tensors, or of tuples whose first entry is the model's input.  Batch
    statistics of norms, noise counters, modes and gradients are left as they were, and so are the
    ranges where anything is raised.
    """
    checks.module(model)
    need = "a list of batches: tensors, or tuples whose first entry is the model's input"
    batches = checks.iterable("batches", batches, need)
    states = [module for module in model.modules() if isinstance(module, LayerState)]
    if not states:
        raise ValueError("calibrate: the model has no quantized layer; quantize it first")
    modes = {module: module.training for module in model.modules()}
    kept = [(each, each.clone()) for state in states for each in state.own().values()]
    counts = [(state.noise_count, state.noise_count.clone()) for state in states]
    model.eval()
    seen = False
    try:
        for state in states:
            state.train()
        for batch in batches:
            model(aside(_input(batch)))
            seen = True
        if not seen:
            raise ValueError("batches: got no batch; pass at least one")
        idle = _idle(states)
    except BaseException:  # Ctrl-C too
        _restore(kept)
        for product in products_of(model):
            product.look()
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        _restore(counts)
    if idle:
        warnings.warn(idle, stacklevel=2)
    return model


def _restore(kept: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in kept:
        buffer.copy_(value)


def _input(batch: Any) -> Any:
    """What the model is called with."""
    if isinstance(batch, tuple | list):
        if not batch:
            raise ValueError("batches: got an empty tuple among them, need the input first")
        batch = batch[0]
    checks.batch("batches: an input", batch)
    return batch


def _idle(states: Iterable[LayerState]) -> str:
    """What to say of running ranges that saw nothing, or ""; ValueError where none saw anything."""
    ranged = [state for state in states if state.range_steps()]
    idle = [state.name for state in ranged if not all(state.range_steps())]
    if idle:
        text = (
            f"calibrate: the running ranges of {some(idle, 8)} saw no finite, non-empty "
            f"input; pass batches that reach these layers"
        )
        if len(idle) == len(ranged):
            raise ValueError(text)
        return text
    return ""
