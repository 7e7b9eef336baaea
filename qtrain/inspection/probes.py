"""What every product of a model computes, shown in the order in which it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from quantizers import QTensor

from ..autograd.recomputation import in_backward
from ..conversion.functional.discover import discover_
from ..conversion.opened import convert_left_, see_calls_
from ..conversion.watch import forget_watch, twin
from ..products.module import products_of
from ..products.operations import Kind
from ..products.probe import Computed, Probe
from ..products.watched import watched_of
from ..recipe import Recipe


class _Shown(Recipe):
    """Full precision, but computed by our own products, which a probe sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "products_off", False)


#: Of layers in full precision that are watched.  Linear layers, convolutions and matrix products
#: keep torch's bits; attention and recurrent layers are computed in their parts, whose last bits
#: differ from torch's.
FULL = _Shown(name="fp32")

#: (layer, which of its calls in this pass, from 0, the product)
See = Callable[[str, int, Computed], None]
#: (layer, which of its calls, the product, which operand of it, before and after its quantizer)
SeeOperand = Callable[[str, int, Kind, str, Tensor, QTensor], None]


def watchable(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A copy, to run on these inputs, of which every product can be seen: of layers that are off or
    were not converted too.

    Seen are linear layers, convolutions, `Matmul`, the products within attention modules (q_proj,
    k_proj, v_proj, scores, context, out_proj) and recurrent layers (ih_l0, hh_l0, ...; of a cell
    ih, hh), and calls of functions.
    """
    model = twin(model)
    convert_left_(model, FULL)
    see_calls_(model, FULL)
    discover_(model, args, kwargs, forget_watch)
    for product in products_of(model):
        if product.recipe.products_off:
            product.recipe = FULL
    return model


def in_full_precision(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`watchable`, with every product and lookup in full precision; norms as they are."""
    model = watchable(model, *args, **kwargs)
    for own in watched_of(model):
        own.recipe = FULL
    return model


def show(model: nn.Module, see: See, operand: SeeOperand | None = None) -> None:
    """Have every product of a `watchable` model handed to `see` once it is computed, and every
    operand to `operand` once it is quantized, times the other operand's scale where that is folded
    into it.

    Forwards that activation checkpointing repeats are left out.  Tensors that are handed on must
    not be kept, but samples of them may (`sampling.sampled`).  The probes stay on the model and
    change no bit of what it computes; calls are counted from when they were put there.
    """
    probes: dict[str, _Probe] = {}
    for product in products_of(model):
        name = product.name
        product.probe = probes.setdefault(name, _Probe(name, see, operand))


@dataclass
class _Probe(Probe):
    """The probe of one layer, or of all that share its name."""

    name: str
    see: See
    see_operand: SeeOperand | None
    calls: dict[Kind, int] = field(default_factory=dict)

    def operand(
        self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool, backward: bool
    ) -> None:
        if self.see_operand is None or (not backward and in_backward()):
            return
        # operands of a backward product are quantized in the forward, before that is counted
        of: Kind = kind if backward else "forward"
        self.see_operand(self.name, self.calls.get(of, 0), kind, operand, x, q)

    def result(self, product: Computed) -> None:
        if product.kind == "forward" and in_backward():
            return
        call = self.calls.get(product.kind, 0)
        self.calls[product.kind] = call + 1
        self.see(self.name, call, product)
