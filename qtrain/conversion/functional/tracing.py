"""What the compiler is told while it traces calls of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")


def written(function: Callable[..., Found], *args: Any) -> Found:
    """function(*args), which writes to what is outside of the checkpointed segment it may run in:
    what it writes is undone, or begun anew, with each forward."""
    if not torch.compiler.is_compiling():
        return function(*args)
    from torch._dynamo.utils import _disable_side_effect_safety_checks_for_current_subtracer as run

    found: Found = run(function, *args)
    return found


def run_by_tracing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run while the compiler traces, which takes what it gives as a constant; its arguments must be
    constants."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def never_alone(*functions: Any) -> None:
    """Have the compiler trace these where they are called, and not as frames of their own: they
    leave torch's stack of modes another than it was."""
    eval_frame: Any = torch._C._dynamo.eval_frame
    action = eval_frame._FrameAction
    for function in functions:
        strategy = eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
