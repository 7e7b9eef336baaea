"""VGG-11 with batch-norm (Simonyan and Zisserman 2014, arXiv 1409.1556), as trained on CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import checks

#: output channels of each convolution, in units of `width`; 0: 2x2 max-pooling
_ELEVEN = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)
Norm = Callable[[int], nn.Module]


class VGG(nn.Module):
    """Convolutions 3x3 with norm and ReLU, five poolings, one linear layer.

    (N, in_channels, H, W) -> (N, num_classes).  A pooled map larger than 1x1 is averaged.
    ValueError or TypeError for sizes out of range.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, width: int, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        for what, size in sizes.items():
            checks.integer(what, size, low=1)
        layers: list[nn.Module] = []
        channels = in_channels
        for times in _ELEVEN:
            if times == 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # for small images
                continue
            layers += [nn.Conv2d(channels, times * width, 3, padding=1, bias=False)]
            channels = times * width
            layers += [norm(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


def vgg11(
    *, num_classes: int, in_channels: int = 3, width: int = 64, norm: Norm = nn.BatchNorm2d
) -> VGG:
    """The eight convolutions of configuration A, 64 to 512 channels at width 64, and one linear
    layer in place of three; norm: what makes the norm of so many channels."""
    return VGG(num_classes=num_classes, in_channels=in_channels, width=width, norm=norm)
