"""One training step: zero_grad, forward, loss, backward, SGD with momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Step:
    """A model with its data and optimizer; calling it trains one step.

    autocast   the dtype of torch.autocast around the forward, or None
    model      what is called: compiled or not; `plain` is the module behind it
    """

    #: weights stay in place: every round computes the same numbers
    learning_rate = 1e-9

    def __init__(
        self,
        plain: nn.Module,
        data: tuple[Tensor, Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.plain, self.autocast, self._loss = plain.train(), autocast, loss
        # an error where the compiler would give up silently, and run eagerly
        self.model: Any = torch.compile(plain, fullgraph=True) if compiled else plain
        self.inputs, self._targets = data
        self._optimizer = torch.optim.SGD(plain.parameters(), lr=self.learning_rate, momentum=0.9)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def clear(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)
        self.inputs.grad = None

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(self.inputs)
        return self._loss(output, self._targets)

    def __call__(self) -> None:
        self.clear()
        self.forward().backward()
        self.update()

    def update(self) -> None:
        """The optimizer's, by the gradients that are there."""
        self._optimizer.step()

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
