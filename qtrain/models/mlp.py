"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    hidden: Sequence[int] = (256, 256),
) -> nn.Sequential:
    """Linear layers with ReLU between: (N, in_channels, image_size, image_size) -> (N, classes).

    ValueError for a size below 1.
    """
    widths = [in_channels * image_size * image_size, *hidden, num_classes]
    for width in (in_channels, image_size, *hidden, num_classes):
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"mlp: got the size {width!r}, need an integer of at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for i, width in enumerate(widths[1:]):
        if i > 0:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(widths[i], width))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
