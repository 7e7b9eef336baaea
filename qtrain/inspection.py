"""inspect: the numeric error of every layer, forward and backward, on one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import IntFormat, QTensor

from .aside import detached, random_state_kept, unwrapped
from .conversion import forget_watch
from .copies import copied
from .layer_products import Computed
from .layers import QProduct
from .losses import cross_entropy
from .operations import Kind
from .recomputation import in_backward
from .report import Report, Row

_ROLES = {
    ("forward", "input"): "input",
    ("forward", "weight"): "weight",
    ("grad_input", "grad_output"): "grad_output (grad_input)",
    ("grad_weight", "grad_output"): "grad_output (grad_weight)",
    ("grad_input", "weight"): "weight (grad_input)",
    ("grad_weight", "input"): "input (grad_weight)",
}
#: the role under which each product's result is reported
RESULTS: dict[Kind, str] = {
    "forward": "output",
    "grad_input": "grad_input",
    "grad_weight": "grad_weight",
}
_ORDER = (
    "input",
    "weight",
    "output",
    "grad_output (grad_input)",
    "weight (grad_input)",
    "grad_input",
    "grad_output (grad_weight)",
    "input (grad_weight)",
    "grad_weight",
)


@dataclass
class _Sums:
    """What a row needs, summed over every call of a layer, in fp64."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    power: float = 0.0
    error: float = 0.0
    clipped: int = 0
    zeroed: int = 0
    nonfinite: int = 0
    low: float = math.inf
    high: float = -math.inf
    note: str = ""

    def add(self, x: Tensor, q: Tensor, clipped: Tensor | None = None) -> None:
        x, q = x.detach().double(), q.detach().double()
        if x.numel() == 0:
            return
        error = q - x
        self.elements += x.numel()
        self.signal += x.square().sum().item()
        self.noise += error.square().sum().item()
        self.dot += (x * q).sum().item()
        self.power += q.square().sum().item()
        self.error += error.sum().item()
        self.zeroed += int(((x != 0) & (q == 0)).sum())
        self.nonfinite += int((~torch.isfinite(q)).sum())
        finite = x[torch.isfinite(x)]
        if finite.numel() > 0:
            self.low = min(self.low, finite.min().item())
            self.high = max(self.high, finite.max().item())
        if clipped is not None:
            self.clipped += int(clipped.sum())

    def row(self, layer: str, role: str) -> Row:
        count = max(self.elements, 1)
        if math.isfinite(self.noise) and math.isfinite(self.signal):
            ratio = math.inf if self.noise == 0 else self.signal / self.noise
            sqnr = -math.inf if ratio == 0 else 10 * math.log10(ratio)
            norms = math.sqrt(self.signal) * math.sqrt(self.power)
            cosine = self.dot / norms if norms > 0 else float(self.signal == self.power)
        else:
            sqnr = cosine = math.nan
        none = 0.0 if self.elements == 0 else math.nan
        low, high = (self.low, self.high) if self.low <= self.high else (none, none)
        return Row(
            layer, role, sqnr, cosine, self.error / count, self.clipped / count,
            self.zeroed / count, self.nonfinite, low, high, self.elements, self.note,
        )  # fmt: skip


def _outside(x: Tensor, q: QTensor) -> Tensor | None:
    """Where x lies outside the interval its format and scale can represent."""
    if q.format is None:
        return None
    x = x.double()
    scale = q.spread(q.scale).double() if q.scale is not None else torch.ones((), device=x.device)
    if isinstance(q.format, IntFormat):
        shift = q.spread(q.zero_point) if q.zero_point is not None else 0
        low, high = (q.format.low - shift) * scale, (q.format.high - shift) * scale
        return (x < low - scale / 2) | (x > high + scale / 2)
    return x.abs() > q.format.largest * scale * (1 + 2.0**-20)  # the scale's own rounding


@dataclass
class _Recorder:
    """The probe of one layer."""

    sums: dict[str, _Sums] = field(default_factory=dict)

    def _at(self, role: str) -> _Sums:
        return self.sums.setdefault(role, _Sums())

    def operand(self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool) -> None:
        if operand != "grad_output" and in_backward():
            return  # a recomputed forward: counted already
        row = self._at(_ROLES[kind, operand])
        row.add(x, q.dequantize(), _outside(x, q))
        if folded:
            other = "weight" if kind == "grad_input" else "input"
            row.note = f"grad_output times the {other}'s scale, as it is quantized"

    def result(self, product: Computed) -> None:
        operation, kind, a, b, _, bias, result, _ = product
        if kind == "forward" and in_backward():
            return
        if kind == "forward":
            exact = operation.native(
                a.double(), b.double(), None if bias is None else bias.double()
            )
        else:
            like = torch.empty(result.shape, dtype=torch.float64, device=result.device)
            exact = operation.product(kind, a.double(), b.double(), like)
        self._at(RESULTS[kind]).add(exact, result)

    def engine(self, kind: Kind, name: str) -> None:
        pass


def inspect(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Callable[..., Tensor] | None = None,
) -> Report:
    """The error of each layer's operands and products on one batch, against full precision.

    Local error: each product is compared with the fp64 product of the same unquantized operands,
    so a row shows what its layer adds, not what earlier layers passed on.

    inputs    what the model is called with: a tensor, a tuple (positional) or a mapping (by name)
    targets   what the loss is given besides the output; None: forward roles only, unless `loss`
    loss      loss(output, targets) -> scalar (loss(output) without targets); default: the
              cross-entropy for integer targets

    Runs on a copy, in the model's present mode, with the noise of the next step; the model, its
    gradients, its buffers and all random state stay untouched.  Norms have no rows: another
    deviation is another function, not an error.

    Raises ValueError for a model without a quantized layer, or where no loss can be formed.
    """
    model = unwrapped(model)
    products = [m for m in model.modules() if isinstance(m, QProduct)]
    if not any(not p.recipe.products_off for p in products):
        raise ValueError("inspect: the model has no quantized layer; quantize(model) first")
    if loss is None and targets is not None:
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(
                f"inspect: targets are {kind}; the default loss is the cross-entropy of integer "
                f"class targets, so pass loss=, a function of (output, targets)"
            )
        loss = cross_entropy
    twin = copied(model)
    forget_watch(twin)
    recorders: dict[str, _Recorder] = {}
    for product in twin.modules():
        if isinstance(product, QProduct):
            product.probe = recorders.setdefault(product.name, _Recorder())
    with random_state_kept(), torch.set_grad_enabled(loss is not None):
        output = _call(twin, detached(inputs))
        if loss is not None:
            pairs: list[tuple[Tensor, Tensor]] = []
            output = detached(output, pairs)
            value = loss(output, targets) if targets is not None else loss(output)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"inspect: the loss must be one number, got {value!r}")
            _differentiate(twin, value.reshape(()), pairs)
    rows = [
        recorder.sums[role].row(name or "(model)", role)
        for name, recorder in recorders.items()
        for role in _ORDER
        if role in recorder.sums
    ]
    return Report(tuple(rows))


def _differentiate(model: nn.Module, loss: Tensor, outputs: list[tuple[Tensor, Tensor]]) -> None:
    """Backward through the model alone, so that whatever else the loss depends on gets no gradient.

    outputs: the model's, and their cut copies, from which the loss was computed.
    """
    pairs = [(x, cut) for x, cut in outputs if x.grad_fn is not None]
    if not loss.requires_grad or (outputs and not pairs):
        return  # everything is frozen: there is no backward pass
    if not outputs:  # an object of a class unknown to us, whose graph was not cut
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True)
        return
    # not torch.autograd.grad by parameters: reentrant checkpoints do not reach them so
    grads = torch.autograd.grad(loss, [cut for _, cut in pairs], allow_unused=True)
    reached = [(x, g) for (x, _), g in zip(pairs, grads, strict=True) if g is not None]
    torch.autograd.backward([x for x, _ in reached], [g for _, g in reached])


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | Tensor):
        return model(*inputs)
    return model(inputs)
