"""What reads a call of a function is given: the call itself, and the layers of its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Calling(Protocol):
    """One call of a function in a module's forward."""

    def plain(self) -> Any:
        """The function itself, of the call's arguments."""

    def layer(self, kind: str, sizes: tuple[int, ...] = (), *operands: Tensor) -> Any:
        """The layer of the module's next product of this kind, or None where it is left or off.

        sizes      of a weight, canonical; () of data
        operands   the first that is one of those that a parameter stacks gives the layer its name
        """

    def left(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), a product of the call whose layer is left."""


def is_weight(x: Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one."""
    return isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter)
