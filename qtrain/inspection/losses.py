"""The loss of a run: the cross-entropy of classes, one per sample or one per token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(
    output: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """The cross-entropy of (N, classes) outputs, of (N, classes, *S), or, as language models give
    them, of (*, classes) outputs with targets (*)."""
    if output.dim() > 2 and output.shape[:-1] == targets.shape:
        output, targets = output.flatten(0, -2), targets.flatten()
    return functional.cross_entropy(
        output, targets, label_smoothing=label_smoothing, reduction=reduction
    )
