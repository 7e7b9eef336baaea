"""One step of a model aside: forward, loss, backward through the model alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .aside import detached
from .losses import cross_entropy

Loss = Callable[..., Tensor]


def chosen_loss(caller: str, loss: Loss | None, targets: Any) -> Loss | None:
    """The loss that was given, else the cross-entropy of integer targets, None without targets.

    ValueError, in the caller's name, for other targets without a loss.
    """
    if loss is not None or targets is None:
        return loss
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"{caller}: targets are {kind}; the default loss is the cross-entropy of integer "
            f"class targets, so pass loss=, a function of (output, targets)"
        )
    return cross_entropy


def step(caller: str, model: nn.Module, inputs: Any, targets: Any, loss: Loss) -> Tensor:
    """The loss, 0-d; its gradients are added to `.grad` of the model's parameters, to no others.

    inputs    what the model is called with: a tensor, a tuple (positional) or a mapping (by name)
    loss      of (output, targets), or of the output where targets are None

    ValueError, in the caller's name, where the loss is not one number.  Run it on a copy: buffers
    and gradients change.
    """
    with torch.enable_grad():
        pairs: list[tuple[Tensor, Tensor]] = []
        output = detached(called(model, inputs), pairs)
        value = loss(output, targets) if targets is not None else loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"{caller}: the loss must be one number, got {value!r}")
        _differentiate(model, value.reshape(()), pairs)
    return value.detach().reshape(())


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's output; inputs as in `step`."""
    inputs = detached(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | Tensor):
        return model(*inputs)
    return model(inputs)


def _differentiate(model: nn.Module, loss: Tensor, outputs: list[tuple[Tensor, Tensor]]) -> None:
    """Backward through the model alone, so that whatever else the loss depends on gets no gradient.

    outputs: the model's, and their cut copies, from which the loss was computed.
    """
    pairs = [(x, cut) for x, cut in outputs if x.grad_fn is not None]
    if not loss.requires_grad or (outputs and not pairs):
        return  # everything is frozen: there is no backward pass
    if not outputs:  # an object of a class unknown to us, whose graph was not cut
        wanted = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        for parameter, grad in zip(wanted, grads, strict=True):
            if grad is not None:
                kept = parameter.grad
                parameter.grad = grad if kept is None else kept + grad
        return
    # not torch.autograd.grad by parameters: reentrant checkpoints do not reach them so
    cuts = torch.autograd.grad(loss, [cut for _, cut in pairs], allow_unused=True)
    reached = [(x, g) for (x, _), g in zip(pairs, cuts, strict=True) if g is not None]
    torch.autograd.backward([x for x, _ in reached], [g for _, g in reached])
