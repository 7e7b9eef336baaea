"""What a run calls around its epochs: measurements and changes of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Hook:
    """Called around the epochs of a run: override what is needed, the rest does nothing.

    It belongs to the quantized model; the full-precision baseline beside it has none.  torch's
    random numbers are a function of the run's seed and the step when it is called, and the step
    after it draws its own: a hook that draws changes no other number of the run.
    """

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any) -> None:
        """Once a session, before any step, with the model on its device and the run's TrainConfig;
        where a run goes on, before the state of model, optimizer and hook is loaded.  Modules and
        parameters keep their names; recipes are the run's (`switch`), which sets its own at every
        step."""

    def before_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch (from 0); and where a run goes on within one, after
        `load_state_dict`, of that epoch: it sets what is to hold in these steps."""

    def after_epoch(self, epoch: int) -> Mapping[str, float]:
        """After the last step of an epoch (from 0), before the test -> columns of that epoch's line
        of the metrics: names that Python could have, finite numbers."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on as if it had not stopped: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, its tensors on the CPU; ValueError where it is none."""
