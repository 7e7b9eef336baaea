"""A quantizer as one operation of a graph that torch.compile makes for the CPU.

Taken apart, a quantizer is dozens of operations, slow to compile and, where it reduces or draws
noise, slower than its own kernel.  The operation holds the quantizer as a string and calls it.
"""

from __future__ import annotations

import base64
import pickle
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import tensor_checks
from .formats import Format, IntFormat
from .granularity import Granularity, compact_shape
from .qtensor import QTensor
from .ranges import RangeRule, State
from .running_range import Ema

_LIBRARY = torch.library.Library("quantizers", "FRAGMENT")
_LIBRARY.define(
    "quantize(Tensor x, Tensor? key, Tensor? factor, Tensor(a!)[] running, bool training, str spec)"
    " -> (Tensor, Tensor, Tensor)"
)


def spec(value: object) -> str | None:
    """A quantizer, or what else an operation needs, as a string; None where it has no pickle."""
    try:
        return base64.b64encode(pickle.dumps(value)).decode()
    except Exception:  # whatever a range rule of the user's own raises
        return None


@lru_cache(maxsize=1024)
def restored(text: str) -> Any:
    """What `spec` was given."""
    return pickle.loads(base64.b64decode(text))


def quantized(
    x: Tensor,
    spec: str | None,
    format: Format,
    granularity: Granularity,
    rule: RangeRule | None,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None,
) -> QTensor | None:
    """What the quantizer of `spec`, whose settings these are, makes of x, as one operation; None
    where that does not serve: on other devices, and for a memory that it does not know."""
    tensor_checks.real(x)
    if x.device.type != "cpu" or spec is None:
        return None
    running: list[Tensor] = []
    if state:
        if not isinstance(rule, Ema):
            return None
        running = [state[name] for name in Ema.memory]
    elements, scale, zero_point = torch.ops.quantizers.quantize(
        x.detach(), key, factor, running, training, spec
    )
    affine = isinstance(format, IntFormat) and not format.symmetric
    return QTensor(
        elements,
        None if rule is None else scale,
        zero_point if affine else None,
        format,
        granularity.block_shape(x.shape),
    )


def _quantize(
    x: Tensor,
    key: Tensor | None,
    factor: Tensor | None,
    running: list[Tensor],
    training: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """running: what running_range.Ema keeps, or nothing.
    -> elements, laid out as empty_like(x), scale and zero point (empty where there is none)."""
    state = dict(zip(Ema.memory, running, strict=True)) if running else None
    q = restored(spec)(x, state=state, key=key, training=training, factor=factor)
    scale = x.new_empty(0, dtype=torch.float32) if q.scale is None else q.scale.contiguous()
    none = x.new_empty(0, dtype=torch.int32)
    elements = laid_out_like(q.elements, x)
    return elements, scale, none if q.zero_point is None else q.zero_point.contiguous()


def laid_out_like(result: Tensor, x: Tensor) -> Tensor:
    """A result in the layout of empty_like(x), which the compiled graph counts on."""
    like = torch.empty_like(x, dtype=result.dtype)
    return result if result.stride() == like.stride() else like.copy_(result)


def _fake(
    x: Tensor,
    key: Tensor | None,
    factor: Tensor | None,
    running: list[Tensor],
    training: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    quantizer = restored(spec)
    integer = isinstance(quantizer.format, IntFormat)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    block = quantizer.granularity.block_shape(x.shape)
    shape = [0] if quantizer.range is None else list(compact_shape(x.shape, block))
    affine = integer and not quantizer.format.symmetric
    return (
        torch.empty_like(x, dtype=quantizer.format.dtype if integer else wide),
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty(shape if affine else [0], dtype=torch.int32),
    )


_LIBRARY.impl("quantize", _quantize, "CPU")
torch.library.register_fake("quantizers::quantize", _fake, lib=_LIBRARY)
