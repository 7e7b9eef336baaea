"""Functions of a user's own: gradients are off while one's forward runs, and flow by its own
backward."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

_APPLY: Any = torch.autograd.Function.apply.__code__
#: a checkpoint's, whose backward runs the same forward again with gradients
_CHECKPOINT = CheckpointFunction.forward.__code__


def in_function(within: Any = None) -> bool:
    """Whether the caller runs inside of a torch.autograd.Function's forward, but a checkpoint's.

    within   a frame that the caller runs in: of Functions that began inside of it
    """
    frame: Any = sys._getframe(1)
    while frame is not None and frame is not within:
        around = frame.f_back
        if around is not None and around.f_code is _APPLY and frame.f_code is not _CHECKPOINT:
            return True
        frame = around
    return False
