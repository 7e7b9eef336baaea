"""One step of a model aside: forward, loss, backward through the model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import checks
from ..conversion.watch import arguments
from ..copies import aside, detached, random_state_kept

Loss = Callable[..., Tensor]
#: the target that torch's cross-entropy leaves out
_IGNORED = -100
#: the dtypes it takes for classes
_CLASSES = (torch.int64, torch.uint8)


def logits_of(output: Any) -> Tensor:
    """A model's output, or the `logits` of one that is an object, as transformers' models return.

    TypeError for an output that is neither."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        kind = type(output).__name__
        raise TypeError(
            f"the model's output is a {kind}, need a tensor of logits or an object with .logits; "
            f"wrap the model in a Module whose forward returns them"
        )
    return found


def cross_entropy(
    output: Any, targets: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """The cross-entropy of (N, classes) outputs, of (N, classes, *S), or, as language models give
    them, of (*, classes) outputs with targets (*); of `logits_of` the output."""
    output = logits_of(output)
    if output.dim() > 2 and output.shape[:-1] == targets.shape:
        output, targets = output.flatten(0, -2), targets.flatten()
    return functional.cross_entropy(
        output, targets, label_smoothing=label_smoothing, reduction=reduction
    )


def chosen_loss(caller: str, loss: Loss | None, targets: Any) -> Loss | None:
    """The loss that was given, else the cross-entropy of integer targets, None without targets.

    TypeError for a loss that is no function; ValueError, in the caller's name, for other targets
    without a loss.
    """
    if loss is not None:
        need = "a function of (output, targets), or of the output where there are no targets"
        given = (None,) if targets is None else (None, None)
        return checks.function("loss", loss, need, *given)
    if targets is None:
        return None
    if not isinstance(targets, Tensor) or targets.dtype not in _CLASSES:
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"{caller}: targets are {kind}; the default loss is the cross-entropy of integer "
            f"class targets, so pass loss=, a function of (output, targets)"
        )
    return _class_loss


def _class_loss(output: Any, targets: Tensor) -> Tensor:
    """`cross_entropy`; TypeError or ValueError for an output that it does not take with these
    targets."""
    try:
        output = logits_of(output)
    except TypeError as error:
        raise TypeError(f"loss: {error}, or give loss=, which takes it") from None
    rows = output.dim() > 2 and output.shape[:-1] == targets.shape
    classes = output.shape[-1 if rows or output.dim() < 2 else 1] if output.dim() else 0
    fits = rows or output.shape[:1] + output.shape[2:] == targets.shape
    if output.dim() == 1:
        fits = targets.dim() == 0
    if not fits:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)} for an output of {tuple(output.shape)}, "
            f"need one class for each of its rows"
        )
    known = targets.long()
    known = known[known != _IGNORED]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise ValueError(
            f"targets: got classes from {int(known.min())} to {int(known.max())}, need 0 to "
            f"{classes - 1}: the model's output has {classes} classes"
        )
    return cross_entropy(output, targets)


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


def rehearse(caller: str, model: nn.Module, inputs: Any, targets: Any, loss: Loss | None) -> None:
    """`step`, or without a loss the forward alone, with all random state as it was."""
    with random_state_kept():
        if loss is not None:
            step(caller, model, inputs, targets, loss)
        else:
            with torch.no_grad():
                called(model, inputs)


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's output; inputs as in `step`."""
    args, kwargs = arguments(aside(inputs))
    return model(*args, **kwargs)


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
