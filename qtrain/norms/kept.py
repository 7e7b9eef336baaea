"""A subclass of a torch norm whose own forward goes on around the norm, which follows a recipe."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .module import QNorm
from .recognised.calls import function_of


class QKeepsForward(QNorm):
    """What stands before a subclass of a torch norm, behind which the quantized norm stands: the
    subclass's own forward, in which torch's function of the norm, and `super().forward`, follow the
    recipe.  Only for a subclass that calls either once, with its own parameters (`calls`)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Followed(self):
            return super().forward(*args, **kwargs)


class _Followed(TorchFunctionMode):
    def __init__(self, norm: QNorm) -> None:
        super().__init__()
        self._norm, self._function = norm, function_of(norm)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is self._function:
            input: Tensor = args[0] if args else kwargs["input"]
            if input.numel():
                momentum = args[6] if len(args) > 6 else kwargs.get("momentum", 0.1)
                return self._norm.followed(input, momentum)
        return func(*args, **kwargs)
