"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .. import checks


def mlp(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    hidden: Sequence[int] = (256, 256),
) -> nn.Sequential:
    """Linear layers with ReLU between: (N, in_channels, image_size, image_size) -> (N, classes).

    ValueError or TypeError for a size below 1.
    """
    widths = [in_channels * image_size * image_size, *hidden, num_classes]
    for width in (in_channels, image_size, *hidden, num_classes):
        checks.integer("mlp: a size", width, low=1)
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
