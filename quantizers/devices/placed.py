"""Numbers that stay, on the device of what is computed with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Placed:
    """A numpy array, as a tensor on any device: copied there once, so that a step after the first
    waits for nothing, and can be captured in a CUDA graph."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self._there: dict[torch.device, Tensor] = {}

    def on(self, x: Tensor) -> Tensor:
        """The numbers, on the device of x."""
        if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
            return torch.from_numpy(self.own).to(x.device)  # of what only looks like a tensor
        if x.device not in self._there:
            with torch.inference_mode(False):
                self._there[x.device] = torch.from_numpy(self.own).to(x.device)
        return self._there[x.device]
