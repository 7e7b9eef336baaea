"""Reference networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from .. import checks
from ..data import Kind
from .charlstm import CharLSTM
from .chartransformer import CharTransformer
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
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("mlp", "vgg11", *_STEMMED, *_CIFAR), "images"),
    **dict.fromkeys(("charlstm", "chartransformer"), "text"),
}
#: What `get` takes beside num_classes.
_SIZES: dict[Kind, tuple[str, ...]] = {
    "images": ("in_channels", "image_size"),
    "text": ("context",),
}


def names(kind: Kind | None = None) -> list[str]:
    """The names that `get` takes, sorted; those that fit one kind of data where given."""
    return sorted(name for name in _KINDS if kind in (None, _KINDS[name]))


def get(
    name: str,
    *,
    num_classes: int,
    in_channels: int | None = None,
    image_size: int | None = None,
    context: int | None = None,
) -> nn.Module:
    """A freshly initialised network; `get(name, **dataset.sizes)` fits a data set.

    Of images: (N, in_channels, image_size, image_size) -> (N, num_classes); ResNet-18/34/50 take
    the CIFAR stem up to 64 pixels.  Of text: (N, context) int64 -> (N, context, num_classes).
    ValueError for an unknown name (suggests the nearest), for the sizes of another kind of data,
    and for a size below 1; ValueError or TypeError for one that is no integer.
    """
    if name not in _KINDS:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)
        known = ", ".join(names())
        raise ValueError(f"model: got {name!r}, known: {known}; did you mean {near[0]!r}?")
    kind = _KINDS[name]
    sizes = {"in_channels": in_channels, "image_size": image_size, "context": context}
    given = {what: size for what, size in sizes.items() if size is not None}
    if set(given) != set(_SIZES[kind]):
        got = ", ".join(f"{what}={size}" for what, size in given.items()) or "none"
        raise ValueError(
            f"model: {name!r} is one of {kind} and takes the sizes {', '.join(_SIZES[kind])}, got "
            f"{got}; models of images: {', '.join(names('images'))}; of text: "
            f"{', '.join(names('text'))}"
        )
    if kind == "text":
        return _of_text(name, num_classes, **given)
    return _of_images(name, num_classes, **given)


def _of_images(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size: got {image_size!r}, need an integer of at least 1")
    if name == "mlp":
        return mlp(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if name == "vgg11":
        return vgg11(num_classes=num_classes, in_channels=in_channels)
    if name in _STEMMED:
        stem: Stem = "cifar" if image_size <= SMALL_IMAGE else "imagenet"
        return _STEMMED[name](num_classes=num_classes, in_channels=in_channels, stem=stem)
    return _CIFAR[name](num_classes=num_classes, in_channels=in_channels)


def _of_text(name: str, num_classes: int, context: int) -> nn.Module:
    checks.integer("context", context, low=1)
    if name == "chartransformer":
        return CharTransformer(num_classes=num_classes, context=context)
    return CharLSTM(num_classes=num_classes)
