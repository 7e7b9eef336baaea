"""What is known of one call of a layer beside its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from quantizers import Off, QTensor, Quantizer, fold
from quantizers.accumulators import Accumulator
from quantizers.protocol import quantized
from quantizers.ranges.rules import State
from quantizers.steps import quantize

from ..layer_state import rank
from ..norms.deferred import DEFERRED, Deferred
from ..recipe import OPERANDS, SLOTS, Recipe
from ..recipe.units import Unit
from .blocks import multiply
from .blockwise.matrices import Matrices, matrices_of, restored
from .blockwise.product import in_blocks
from .centering import centered, corrected
from .engines.engine import Engine
from .gradients import of_error, passed
from .held import Held, repeats
from .learning import Learning
from .operations import Kind, Operation
from .probe import Probe
from .product import Product

#: what numbers the signs of a product's transform, beside the noise of its operands
_SIGNS = {kind: -1 - number for number, kind in enumerate(OPERANDS)}


#: devices where grad_weight's elements of fp16 and bf16 are kept in these
CASTING = {"cuda"}


@dataclass
class Call:
    """Everything about one call of a layer that is not a tensor.

    name       the layer's, for errors
    learning   whose parameters its quantizers have, where any learns
    autocast   the dtype autocast asks for, or None: operands that are not quantized take it
    held       what other calls of the same forward made of the weight, where it has several
    """

    operation: Operation
    recipe: Recipe
    states: dict[tuple[str, str], State]
    training: bool
    autocast: torch.dtype | None = None
    engines: tuple[Engine, ...] | None = None
    probe: Probe | None = None
    name: str = ""
    learning: Learning | None = None
    held: Held | None = None

    def quantize(
        self,
        kind: Kind,
        operand: str,
        x: Tensor,
        key: Tensor | None,
        factor: Tensor | None = None,
        by: Matrices | None = None,
    ) -> QTensor:
        """An operand, times the other operand's scale where that is its factor, through its slot's
        quantizer, with the slot's own state and noise; by: what cuts it, where it is cut."""
        held = self.held if operand == "weight" else None
        if held is not None and kind in held and self.probe is None:
            return held[kind]
        slot = self.recipe.slots[kind, operand]
        quantizer = slot.quantizer
        ours = type(quantizer) is Quantizer
        if slot.centered:
            x = centered(self.operation, operand, x)
        if factor is not None and (not ours or slot.cut):
            x, ours = x * factor, False
        if slot.cut:
            assert by is not None
            x = by.cut("b" if operand == OPERANDS[kind][1] else "a", x).contiguous()
            if slot.transform is not None:  # the same signs for both operands, on every rank
                x = slot.transform(x, None if key is None else fold(key, _SIGNS[kind]))
        if self.autocast is not None and isinstance(quantizer, Off):
            x = x.to(self.autocast)
        if slot.noisy:
            key = self._noise(kind, operand, key)
        state = self.states.get((kind, operand), {})
        try:
            if self.learning is not None and (kind, operand) in self.learning.unfitted:
                self.states[kind, operand] = state = self.learning.fit((kind, operand), x, state)
            norm: Deferred | None = None
            if operand == "input" and not torch.compiler.is_compiling():
                norm = getattr(x, DEFERRED, None)
            if type(quantizer) is not Quantizer:
                q = quantized(quantizer, x, state=state, key=key, training=self.training)
            elif norm is not None:
                q = norm.quantized(quantizer, state, self.training)
            elif (
                kind == "grad_weight"
                and x.device.type in CASTING
                and self.probe is None
                and factor is None
                and _is_cast(x, quantizer)
            ):
                q = QTensor(x.to(quantizer.half), None, None, quantizer.format, tuple(x.shape))
            else:
                q = quantize(x, quantizer, state, key, self.training, factor if ours else None)
        except (TypeError, ValueError) as error:
            raise located(error, f"{operand} of {kind}") from error
        if q.outer is not None and not slot.cut:
            q = q.one_level()
        if self.probe is not None:
            seen = x * factor if factor is not None and ours else x
            backward = operand == "grad_output" or slot.late
            self.probe.operand(kind, operand, seen, q, factor is not None, backward)
        if held is not None and repeats(slot, state):
            q = held.setdefault(kind, q)  # a probe sees every call, and what is kept is one
        return q

    def _noise(self, kind: str, operand: str, key: Tensor | None) -> Tensor | None:
        """An operand's key, of the forward's."""
        slot = self.recipe.slots[kind, operand]
        if key is None or not slot.noisy:
            return key
        # the same weights get the same noise on every rank, data their own
        common = operand == "weight" and not self.operation.weight_is_data
        return fold(key, slot.number if common else slot.number + len(SLOTS) * (rank() + 1))

    def matrices(
        self, kind: Kind, a: Sequence[int], b: Sequence[int], like: Sequence[int]
    ) -> Matrices | None:
        """Of a product in which blocks along the sum are cut; None of another.  a, b: the operands'
        shapes, weights canonical; like: see `Operation.product`."""
        if kind not in self.recipe.cut:
            return None
        return matrices_of(Product(self.operation, kind), a, b, like)

    def value(self, operand: str, q: QTensor, shape: Sequence[int]) -> Tensor:
        """What the forward made of an operand, as a number, in the shape that the operation takes
        it in (weights canonical)."""
        found = q.dequantize()
        if not self.recipe.slots["forward", operand].cut:
            return found
        return restored(self.operation, operand, found, shape)

    def multiply(
        self,
        kind: Kind,
        a: QTensor,
        b: QTensor,
        like: Tensor,
        by: Matrices | None,
        key: Tensor | None,
        unit: Unit | Literal["recipe"] = "recipe",
        bias: Tensor | None = None,
    ) -> Tensor:
        """A product of operands as `quantize` made them; key: the forward's; unit: what sums it in
        place of what the recipe says, for a probe."""
        product, probe = Product(self.operation, kind), self.probe
        if asked := unit == "recipe":
            unit = self.recipe.units[kind]
        own, noise = (unit if isinstance(unit, Accumulator) else None), None
        if own is not None and own.noisy and key is not None:  # each rank's, as data is
            noise = fold(fold(key, _SIGNS[kind]), rank() + 1)
        note = probe.engine if probe is not None and asked else None
        if by is None:
            found = multiply(
                product, a, b, like, self.engines, bias=bias, note=note, unit=unit, key=noise
            )  # fmt: skip
        else:
            first, second = (self.recipe.slots[kind, operand].cut for operand in OPERANDS[kind])
            found = in_blocks(
                product, by, a, b, like, cut=(first, second), bias=bias, note=note,
                accumulator=own, key=noise,
            )  # fmt: skip
        if probe is not None and asked:
            again = partial(self.multiply, kind, a, b, like, by, key, bias=bias)
            probe.summed(kind, unit, found, again)
        return found

    def is_off(self, kind: Kind, a: QTensor, b: QTensor, by: Matrices | None) -> bool:
        """Whether a product of these operands is torch's own."""
        plain = by is None and a.format is None and b.format is None
        return plain and a.scale is None and b.scale is None and self.recipe.units[kind] is None

    def corrected(self, kind: Kind, result: Tensor, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        """A product with the part of the means that were taken off its operands; a, b: these, as
        they were before."""
        product = Product(self.operation, kind)
        return corrected(product, self.recipe.centered[kind], a, b, like, result)

    def snapshot(self, operand: str) -> State:
        """The state of an operand's forward quantizer as it is now: later forwards move it on."""
        return {
            name: value.clone() for name, value in self.states.get(("forward", operand), {}).items()
        }

    def learned(self, kind: str, operand: str) -> dict[str, Tensor]:
        """The parameters of an operand's quantizer, by name."""
        return {} if self.learning is None else {**self.learning.learned((kind, operand))}

    def own_backward(
        self, operand: str, grad: Tensor, x: Tensor, state: State, key: Tensor | None
    ) -> tuple[Tensor, State]:
        """The gradients through the forward quantizer of an operand, with its state of then: the
        operand's, and by name those of what it learns.  key: the forward's."""
        slot, key = ("forward", operand), self._noise("forward", operand, key)
        quantizer = self.recipe.slots[slot].quantizer
        try:
            return passed(quantizer, grad, x, state, key, self.learned(*slot))
        except (TypeError, ValueError) as error:
            raise located(error, operand) from error

    def taught(self, kind: str, q: QTensor, x: Tensor, key: Tensor | None) -> State:
        """The gradients of what the quantizer of grad_output learns, which made q of x."""
        slot = kind, "grad_output"
        quantizer, state = self.recipe.slots[slot].quantizer, self.states[slot]
        return of_error(quantizer, q, x, state, self._noise(*slot, key), self.learned(*slot))


def _is_cast(x: Tensor, quantizer: Quantizer) -> bool:
    """Whether elements are kept in the 16 bits that hold them, which a GPU's units read as they
    are: half the memory.  A compiled graph might skip the rounding."""
    return (
        x.dtype is torch.float32
        and quantizer.half is not None
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def located(error: Exception, place: str) -> Exception:
    """The same kind of error, saying where."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{place}: {error}")
