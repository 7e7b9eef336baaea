"""What a recipe's slot accepts, and the checks of what a quantizer of the user's own returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .formats import Format, IntFormat
from .granularity import compact_shape
from .off import Off
from .qtensor import QTensor
from .quantizer import Quantizer
from .ranges.rules import State
from .steps import quantize


class QuantizerLike(Protocol):
    """What every slot of a recipe accepts: `quantizer(x, state=, key=, training=) -> QTensor`.

    x          the operand: inputs and gradients as the layer sees them, (batch, channels, *space)
               or (*, features); weights as (groups, out, in, *kernel)
    state      what `init_state` returned, {} without one
    key        0-d int64, other for every layer, role and step: `random_bits(key, x.shape)`
    training   False in evaluation: the state must stay as it is

    The QTensor may leave `block` out: then its scale and zero point have one entry, of any shape.
    Elements must lie within the QTensor's format.  A class needs only `__call__`; it may offer

    noisy                    False where no call needs a key (default: all do)
    init_state(shape)        dict of tensors, registered as buffers by the layer (shape entries that
                             change from batch to batch are None), passed to every call as `state`
                             and updated in place when `training`
    init_parameters(shape)   dict of tensors that are learned: the layer owns them as Parameters
                             and passes them in `state`, too
    fit(x, state)            sets these in place by a first tensor: of training, or of `calibrate`
    backward(grad, x, state) the gradient of x, in its shape and dtype: its own backward (default:
                             straight-through, the gradient passes unchanged); with parameters
                             (that gradient, {name: the parameter's}).  Without, theirs is taken
                             through the operations of the call, whose elements may then be floating
                             point where the format is of integers
    """

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor: ...


def learns(quantizer: object) -> bool:
    """Whether a quantizer has parameters of its own."""
    return callable(getattr(quantizer, "init_parameters", None))


def format_of(quantizer: object) -> Format | None:
    """Of the elements that a quantizer returns; None where its calls alone show it."""
    found = getattr(quantizer, "returns", getattr(quantizer, "format", None))
    return found if isinstance(found, Format) else None


def straight_through(quantizer: QuantizerLike) -> bool:
    """Whether the quantizer's backward is the identity, so that x need not be kept for it."""
    if learns(quantizer):
        return False
    own = getattr(type(quantizer), "backward", None)
    if own is Quantizer.backward and isinstance(quantizer, Quantizer):
        return quantizer.straight_through == "identity"
    return not callable(getattr(quantizer, "backward", None))


def needs_key(quantizer: QuantizerLike) -> bool:
    """Whether calls need a noise key (quantizers of the user's own are given one, unless they say
    `noisy = False`)."""
    if type(quantizer) is Quantizer:
        return quantizer._noisy
    return not isinstance(quantizer, Off) and bool(getattr(quantizer, "noisy", True))


def init_state(quantizer: QuantizerLike, shape: Sequence[int | None]) -> State:
    """The quantizer's state for tensors of `shape`; {} where it keeps none.

    Raises TypeError where `init_state` returns anything but a dict of tensors by name.
    """
    state = _made(quantizer, "init_state", shape)
    for name, value in state.items():
        if value.requires_grad:
            raise TypeError(
                f"init_state returned {name!r}, which requires a gradient, and no state is "
                f"trained; return it from init_parameters(shape), as a plain tensor"
            )
    return state


def init_parameters(quantizer: QuantizerLike, shape: Sequence[int | None]) -> State:
    """The quantizer's parameters for tensors of `shape`, plain tensors; {} where it has none.

    Raises TypeError where `init_parameters` returns anything but a dict of floating-point tensors
    by name, ValueError for a name that a state has, too.
    """
    found = _made(quantizer, "init_parameters", shape)
    for name, value in found.items():
        if not value.is_floating_point():
            raise TypeError(
                f"init_parameters returned {name!r} of {value.dtype}, need floating point"
            )
    if twice := set(found) & set(init_state(quantizer, shape)):
        raise ValueError(f"init_parameters and init_state both return {sorted(twice)}")
    return {name: value.detach() for name, value in found.items()}


def _made(quantizer: QuantizerLike, by: str, shape: Sequence[int | None]) -> State:
    make = getattr(quantizer, by, None)
    if not callable(make):
        return {}
    made = make(tuple(shape))
    good = isinstance(made, dict) and all(
        isinstance(name, str) and name.isidentifier() and isinstance(value, Tensor)
        for name, value in made.items()
    )
    if not good:
        raise TypeError(
            f"{by} returned {made!r}, need a dict of tensors by name, each an identifier"
        )
    return dict(made)


def quantized(
    quantizer: QuantizerLike,
    x: Tensor,
    *,
    state: State | None,
    key: Tensor | None,
    training: bool,
) -> QTensor:
    """quantizer(x), checked where the quantizer is not ours.

    A QTensor without `block` has one scale for all.  Raises TypeError or ValueError for a result
    that is no QTensor, or whose parts do not fit x or its format.
    """
    if type(quantizer) is Quantizer:
        return quantize(x, quantizer, state, key, training)
    q = quantizer(x, state=state, key=key, training=training)
    if isinstance(quantizer, Off):
        return q
    if not isinstance(q, QTensor):
        raise TypeError(f"the quantizer returned {type(q).__name__}, need a QTensor")
    q = _with_block(q, x)
    if isinstance(q.format, IntFormat) and learns(quantizer) and q.elements.is_floating_point():
        whole = (q.elements == q.elements.round()).all()
        torch._assert_async(whole, f"the quantizer returned elements between those of {q.format!s}")
        q = q._replace(elements=q.elements.to(q.format.dtype))
    _check(q, x)
    return q


def _with_block(q: QTensor, x: Tensor) -> QTensor:
    if q.block:
        return q
    parts: Any = {
        name: part.reshape([1] * x.dim())
        for name, part in (("scale", q.scale), ("zero_point", q.zero_point), ("outer", q.outer))
        if isinstance(part, Tensor) and part.numel() == 1
    }
    return q._replace(block=tuple(max(size, 1) for size in x.shape), **parts)


def _check(q: QTensor, x: Tensor) -> None:
    if not isinstance(q.elements, Tensor) or q.elements.shape != x.shape:
        got = tuple(q.elements.shape) if isinstance(q.elements, Tensor) else q.elements
        raise ValueError(
            f"the quantizer returned elements {got}, need a tensor of {tuple(x.shape)}"
        )
    if not isinstance(q.format, Format | None):
        raise TypeError(f"the quantizer returned format {q.format!r}, need a format or None")
    integer = isinstance(q.format, IntFormat)
    dtype = q.elements.dtype
    fits = dtype != torch.bool and not dtype.is_complex and not dtype.is_floating_point
    if (not fits) if integer else (not dtype.is_floating_point):
        kind = "an integer dtype" if integer else "a floating-point dtype"
        raise TypeError(f"the quantizer returned elements of {dtype} for {q.format}, need {kind}")
    if len(q.block) != x.dim() or not all(isinstance(b, int) and b > 0 for b in q.block):
        raise ValueError(f"the quantizer returned block {q.block}, need {x.dim()} positive sizes")
    shape = compact_shape(x.shape, q.block)
    for name, part in (("scale", q.scale), ("zero_point", q.zero_point)):
        if part is None:
            continue
        if not isinstance(part, Tensor) or tuple(part.shape) != shape:
            got = tuple(part.shape) if isinstance(part, Tensor) else part
            raise ValueError(
                f"the quantizer returned {name} {got} for blocks {q.block}, need shape {shape}"
            )
        if part.is_floating_point() != (name == "scale") or part.dtype == torch.bool:
            raise TypeError(f"the quantizer returned a {name} of {part.dtype}")
    if q.outer is not None:
        _check_outer(q.outer, q.scale, shape)
    parts = [t for t in (*q[:3], q.outer) if t is not None]
    if any(part.device != x.device for part in parts):
        raise ValueError(f"the quantizer returned parts on another device than x's {x.device}")
    if isinstance(q.format, IntFormat):
        inside = ((q.elements >= q.format.low) & (q.elements <= q.format.high)).all()
        # without waiting for the device: the exact sums rely on the format's bounds
        torch._assert_async(inside, f"the quantizer returned elements outside {q.format!s}")


def _check_outer(outer: object, scale: Tensor | None, shape: tuple[int, ...]) -> None:
    good = isinstance(outer, Tensor) and outer.dtype is torch.float32 and scale is not None
    got: Any = tuple(outer.shape) if isinstance(outer, Tensor) else outer
    if (
        not good
        or len(got) != len(shape)
        or any(size not in (1, count) for size, count in zip(got, shape, strict=True))
    ):
        raise ValueError(
            f"the quantizer returned outer {got}, need fp32 that broadcasts to the scale's {shape}"
        )
