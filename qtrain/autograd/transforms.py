"""What torch does to functions that a converted layer is none of."""

from __future__ import annotations

import torch


def refuse_transforms(name: str) -> None:
    """ValueError where a converted layer runs under torch.func (grad, vmap, jvp ...) or
    torch.jit.trace; not for a graph that compiles.

    A layer has a backward pass and a state of its own, which function transforms do not see, and a
    trace would hold the noise of one step and the engines that its batch took.
    """
    if torch._C._are_functorch_transforms_active():
        raise ValueError(
            f"layer {name!r}: it is quantized, and torch.func's transforms (grad, vmap, jvp ...) "
            f"do not see its backward pass and its state; use loss.backward() or "
            f"torch.autograd.grad, and a batch axis instead of vmap"
        )
    if torch._C._get_tracing_state() is not None:
        raise ValueError(
            f"layer {name!r}: it is quantized, and torch.jit.trace would keep the noise of one "
            f"step; use torch.compile, or trace the model before quantize()"
        )
