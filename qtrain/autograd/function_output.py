"""What an autograd Function may return to every release of torch."""

from __future__ import annotations

import torch
from torch import Tensor

#: compiled, 2.11 hands on all that a forward computed, and a gradient of zero to an output that
#: is among it twice: what an operation wrote in place, or returned as it came
OUTPUTS_ARE_COPIED = torch.__version__ < "2.12"


def function_output(x: Tensor) -> Tensor:
    """A tensor that a Function's forward computed, to be returned from it: no view, which nothing
    behind might change in place."""
    if torch.compiler.is_compiling():
        return x.clone() if OUTPUTS_ARE_COPIED else x
    return x.data if x._is_view() else x
