"""Reference networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from .mlp import mlp
from .resnet import ResNet, Stem, resnet18, resnet20, resnet34, resnet50, resnet56
from .vgg import vgg11

SMALL_IMAGE = 64  # pixels; up to here the CIFAR stem, which keeps the resolution
_STEMMED: dict[str, Callable[..., ResNet]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
_CIFAR: dict[str, Callable[..., ResNet]] = {"resnet20": resnet20, "resnet56": resnet56}


def names() -> list[str]:
    """The names that `get` takes, sorted."""
    return sorted([*_STEMMED, *_CIFAR, "mlp", "vgg11"])


def get(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A freshly initialised network: (N, in_channels, image_size, image_size) -> (N, num_classes).

    ResNet-18/34/50 take the CIFAR stem up to 64 pixels.  ValueError for an unknown name (suggests
    the nearest) or a size below 1.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size: got {image_size!r}, need an integer of at least 1")
    if name == "mlp":
        return mlp(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if name == "vgg11":
        return vgg11(num_classes=num_classes, in_channels=in_channels)
    if name in _STEMMED:
        stem: Stem = "cifar" if image_size <= SMALL_IMAGE else "imagenet"
        return _STEMMED[name](num_classes=num_classes, in_channels=in_channels, stem=stem)
    if name in _CIFAR:
        return _CIFAR[name](num_classes=num_classes, in_channels=in_channels)
    near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)
    raise ValueError(f"model: got {name!r}, known: {', '.join(names())}; did you mean {near[0]!r}?")
