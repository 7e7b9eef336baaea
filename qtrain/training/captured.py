"""Passes of a training step as a CUDA graph: the same bits without the time of Python."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

Passes = Callable[[Tensor, Tensor], Tensor]
#: steps that run one by one first: kernels are compiled, engines tried, memory is found
WARM = 3


class Captured:
    """`passes(inputs, targets)`, forward and backward, run by Python for a few steps and then
    replayed: every launch and its memory stay, and none of Python's decisions is made again.

    model   whose parameters the passes give gradients
    passes  -> what the caller wants to know, one tensor
    wanted  False: Python runs every step

    Python also runs the steps on a device without CUDA graphs, those of inputs that are of another
    shape than the captured ones, and, after a warning, all where a capture fails.
    """

    def __init__(self, model: nn.Module, passes: Passes, *, wanted: bool = True) -> None:
        self._model, self._passes, self._wanted = model, passes, wanted
        self._aside: torch.cuda.Stream | None = None
        self.restart()

    def restart(self) -> None:
        """What the passes compute has changed: run them anew before they are captured again."""
        self._replay: Callable[[], None] | None = None
        self._given: tuple[Tensor, ...] = ()
        self._grads: list[tuple[nn.Parameter, Tensor]] = []
        self._run = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the passes give."""
        if not (self._wanted and capturable(inputs.device)):
            return self._anew(inputs, targets)
        if self._replay is None:
            if self._run < WARM:
                self._run += 1
                return self._first(inputs, targets)
            self._capture(inputs, targets)
        if self._replay is None or not all(map(_alike, self._given, (inputs, targets))):
            return self._anew(inputs, targets)
        for own, x in zip(self._given, (inputs, targets), strict=True):
            own.copy_(x)
        self._replay()
        for parameter, grad in self._grads:
            parameter.grad = grad
        return self._found

    def _anew(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """With gradients of their own: a graph's stay where it writes them."""
        self._model.zero_grad(set_to_none=True)
        return self._passes(inputs, targets)

    def _first(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """On a stream of its own: a capture would wait for what a backward pass leaves of torch's
        default stream."""
        here = torch.cuda.current_stream(inputs.device)
        self._aside = self._aside or torch.cuda.Stream(inputs.device)
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            found = self._anew(inputs, targets)
        here.wait_stream(self._aside)
        return found

    def _capture(self, *given: Tensor) -> None:
        self._given = tuple(x.clone() for x in given)
        try:
            self._replay, self._found = graph(lambda: self._anew(*self._given))
        except (RuntimeError, ValueError) as error:  # a pass that reads a tensor's value, say
            self._wanted = False
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"steps are not captured as a CUDA graph: {reason}", stacklevel=4)
        parameters = self._model.parameters()
        self._grads = [(p, p.grad) for p in parameters if p.grad is not None]


def capturable(device: torch.device) -> bool:
    return device.type == "cuda"


def graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What runs it again, and where its result is then; it has not run yet."""
    gc.collect()  # what is left of a backward pass belongs to another stream
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        found = run()
    return made.replay, found


def _alike(own: Tensor, x: Tensor) -> bool:
    return own.shape == x.shape and own.dtype == x.dtype and own.stride() == x.stride()
