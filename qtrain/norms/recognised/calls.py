"""Whether a subclass of a torch norm calls torch's function of it, once and as torch does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .form import Called
from .probe import alone, axes, brief, layouts, replica

Function = Callable[..., Tensor]
#: torch's norms by what they call
FUNCTIONS: dict[type[nn.Module], Function] = {
    nn.modules.batchnorm._BatchNorm: F.batch_norm,
    nn.modules.instancenorm._InstanceNorm: F.instance_norm,
    nn.LayerNorm: F.layer_norm,
    nn.RMSNorm: F.rms_norm,
    nn.GroupNorm: F.group_norm,
}


def function_of(module: nn.Module) -> Function | None:
    """The function of torch that a norm of its kind calls; None: of no kind."""
    found = (function for kind, function in FUNCTIONS.items() if isinstance(module, kind))
    return next(found, None)


class Recorded(TorchFunctionMode):
    """Within it, the calls of torch's functions of norms are kept: function and arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Function, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FUNCTIONS.values():
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append((func, dict(bound.arguments)))
        return func(*args, **kwargs)


def calls(module: nn.Module) -> Called | str:
    """Called, or why a subclass of a torch norm is not; raises nothing."""
    try:
        with alone():
            return _calls(module)
    except Exception as error:
        return f"its forward could not be tried ({brief(error)})"


def _calls(module: nn.Module) -> Called | str:
    function = function_of(module)
    assert function is not None
    sync = isinstance(module, nn.SyncBatchNorm)  # which in training would wait for other ranks
    taken, error = 0, None
    name = function.__name__
    for input in _inputs(module):
        for training in (False,) if sync else (False, True):
            own = replica(module).train(training)
            with Recorded() as recorded:
                try:
                    type(own).forward(own, input)
                except Exception as raised:
                    if training:  # in evaluation it ran
                        raise
                    error = raised
                    break
            if [called for called, _ in recorded.calls] != [function]:
                return f"its forward calls {name} {len(recorded.calls)} times where torch's once"
            unlike = [
                k for k, v in recorded.calls[0][1].items() if not _is_own(own, k, v, training)
            ]
            if unlike:
                return f"its forward calls {name} with another {' and '.join(unlike)} than its own"
            taken += 1
    if not taken:
        return f"its forward could not be tried ({brief(error)})" if error else "no input"
    return Called()


def _inputs(module: Any) -> Iterator[Tensor]:
    """One of each shape that a norm of its kind, or one with an axis elsewhere, may take, in each
    layout."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        sizes = tuple(module.normalized_shape)
        shapes = [(*axes(2, *sizes), *sizes), (*axes(3, *sizes), *sizes)]
        channels = math.prod(sizes)
    else:
        channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        shapes = []
    space = axes(3, channels)
    shapes += [(4, channels, *space[:count]) for count in range(4)]
    for shape in shapes:
        for input in layouts(torch.randn(shape, dtype=torch.float64)):
            yield input.requires_grad_()


def _is_own(own: Any, name: str, value: Any, training: bool) -> bool:
    """Whether an argument of torch's function is what torch's class would give."""
    if name in ("input", "momentum", "cudnn_enabled"):
        return True
    if name in ("training", "use_input_stats"):
        tracked = own.running_mean is not None or own.running_var is not None
        return bool(value) == (training or not tracked)
    if name in ("running_mean", "running_var") and value is None:
        return (training and not own.track_running_stats) or getattr(own, name) is None
    mine = getattr(own, name, None)
    if isinstance(value, Tensor) and isinstance(mine, Tensor):
        return value.shape == mine.shape and torch.allclose(value.double(), mine.double())
    if isinstance(value, list | tuple):
        return tuple(value) == tuple(mine or ())
    return bool(value == mine) and type(value) is type(mine)
