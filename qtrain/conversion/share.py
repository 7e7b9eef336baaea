"""The share of a forward's multiply-adds that follow the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..products.product import multiply_adds


@dataclass
class Share:
    """Multiply-adds of one forward pass, as dense hardware computes them.  The two backward
    products of each have as many again.

    simulated   of products that follow the recipe
    left        module path -> of those that do not: by an override, because no gradient flows
                through them, or because they are of functions that are not taken
    uncounted   operations among the latter whose multiply-adds are not known
    """

    simulated: int = 0
    left: Counter[str] = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)

    @property
    def value(self) -> float:
        """From 0 to 1; 1 where there is nothing to multiply."""
        total = self.simulated + self.left.total()
        return self.simulated / total if total else 1.0

    def __str__(self) -> str:
        said = f"{100 * self.value:.1f} % of the forward's multiply-adds follow the recipe"
        if self.uncounted:
            said += f"; not counted: {', '.join(sorted(self.uncounted))}"
        return said

    def note(self, args: Any, output: Tensor) -> None:
        """A product that follows the recipe: the arguments of its QProduct, and its output."""
        operation, input, weight, *_ = args
        canonical = operation.canonical(weight).shape
        self.simulated += multiply_adds(operation, input.shape, canonical, output.shape)

    def note_left(self, path: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """An operation of torch that does not."""
        from torch.utils.flop_counter import flop_registry  # imports much

        packet = func._overloadpacket
        if packet in flop_registry:
            self.left[path] += int(flop_registry[packet](*args, **kwargs, out_val=output)) // 2
        elif packet.__name__ in _WHOLE:
            self.left[path] += _WHOLE[packet.__name__](output, args)
        else:
            self.uncounted.add(packet.__name__)


def _matrix(output: Tensor, args: Any) -> int:
    return output.numel() * int(args[0].shape[-1])


def _convolution(output: Tensor, args: Any) -> int:
    return output.numel() * int(args[1][0].numel())


def _attention(output: Any, args: Any) -> int:
    query, key, value = (x.shape for x in args[:3])
    return int(query[:-1].numel() * key[-2] * (query[-1] + value[-1]))


#: operations that inference mode does not take apart, and attention on a CPU
_WHOLE: dict[str, Callable[[Any, Any], int]] = {
    "linear": _matrix, "matmul": _matrix, "mv": _matrix, "dot": _matrix,
    "conv1d": _convolution, "conv2d": _convolution, "conv3d": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
}  # fmt: skip
