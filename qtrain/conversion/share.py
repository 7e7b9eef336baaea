"""The operations of torch that multiply, and the share of a forward's multiply-adds that follow the
recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..products.product import multiply_adds
from .registered import class_of, function_of

_PRODUCT_OPS = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear",
    "_addmm_activation", "convolution", "convolution_overrideable", "mkldnn_linear",
    "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "lstm", "gru", "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd", "_grouped_mm", "_scaled_mm", "_int_mm", "_trilinear",
    "conv_tbc", "_euclidean_dist",
    # under inference_mode the following are not taken apart before they are seen
    "matmul", "einsum", "tensordot", "inner", "bilinear", "_convolution", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "rnn_tanh", "rnn_relu",
    "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell",
)  # fmt: skip


def multiplies(name: str) -> bool:
    """Whether an operation of torch of this name computes products."""
    return name in _PRODUCT_OPS or "scaled_dot_product" in name


def inside_function(module: nn.Module) -> str:
    """What to say of products in a torch.autograd.Function that a module's forward applies."""
    said = " inside of a torch.autograd.Function"
    if function_of(module) is None:
        name = class_of(module).__name__
        said += f"; qtrain.register({name}) says how torch's functions compute the same"
    return said


@dataclass
class Share:
    """Multiply-adds of one forward pass, as dense hardware computes them.  The two backward
    products of each have as many again.

    simulated   of products that follow the recipe
    left        module path -> of those that do not: by an override, because no gradient flows
                through them, or because they are of functions that are not taken
    constant    of the former those that no gradient flows through, which have no backward products
    uncounted   operations among the latter whose multiply-adds are not known
    """

    simulated: int = 0
    left: Counter[str] = field(default_factory=Counter)
    constant: int = 0
    uncounted: set[str] = field(default_factory=set)

    @property
    def value(self) -> float:
        """From 0 to 1; 1 where there is nothing to multiply."""
        total = self.simulated + self.left.total()
        return self.simulated / total if total else 1.0

    def __str__(self) -> str:
        if not (self.simulated or self.left.total()):
            said = "no multiply-adds seen"
        else:
            said = f"{100 * self.value:.1f} % of the forward's multiply-adds follow the recipe"
        if self.uncounted:
            said += f"; not counted: {', '.join(sorted(self.uncounted))}"
        return said

    def note(self, args: Any, output: Tensor, left: str | None) -> None:
        """A product of a layer: the arguments of its QProduct, and its output; left: the path where
        it is off, None where it follows the recipe."""
        operation, input, weight, *_ = args
        canonical = operation.canonical(weight).shape
        macs = multiply_adds(operation, input.shape, canonical, output.shape)
        if left is None:
            self.simulated += macs
        else:
            self.left[left] += macs

    def note_left(
        self, path: str, func: Any, args: Any, kwargs: Any, output: Any, *, graded: bool
    ) -> None:
        """An operation of torch that does not."""
        from torch.utils.flop_counter import flop_registry  # imports much

        packet, macs = func._overloadpacket, 0
        if packet in flop_registry:
            macs = int(flop_registry[packet](*args, **kwargs, out_val=output)) // 2
        elif packet.__name__ in _WHOLE:
            macs = _WHOLE[packet.__name__](output, args)
        else:
            self.uncounted.add(packet.__name__)
        self.left[path] += macs
        self.constant += 0 if graded else macs


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
    "_scaled_dot_product_flash_attention_for_cpu": _attention, "_euclidean_dist": _matrix,
}  # fmt: skip
