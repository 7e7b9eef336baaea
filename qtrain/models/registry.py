"""Reference networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .. import checks
from ..data import Kind
from .charlstm import CharLSTM
from .chartransformer import CharTransformer
from .mlp import mlp
from .resnet import Stem, resnet18, resnet20, resnet34, resnet50, resnet56
from .vgg import vgg11

SMALL_IMAGE = 64  # pixels; up to here the CIFAR stem, which keeps the resolution


def _stem(image_size: int) -> Stem:
    return "cifar" if image_size <= SMALL_IMAGE else "imagenet"


#: name -> the network of (num_classes, in_channels, image_size)
_IMAGES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mlp": lambda n, c, size: mlp(num_classes=n, in_channels=c, image_size=size),
    "vgg11": lambda n, c, _: vgg11(num_classes=n, in_channels=c),
    "resnet18": lambda n, c, size: resnet18(num_classes=n, in_channels=c, stem=_stem(size)),
    "resnet34": lambda n, c, size: resnet34(num_classes=n, in_channels=c, stem=_stem(size)),
    "resnet50": lambda n, c, size: resnet50(num_classes=n, in_channels=c, stem=_stem(size)),
    "resnet20": lambda n, c, _: resnet20(num_classes=n, in_channels=c),
    "resnet56": lambda n, c, _: resnet56(num_classes=n, in_channels=c),
}
#: name -> the network of (num_classes, context)
_TEXT: dict[str, Callable[[int, int], nn.Module]] = {
    "charlstm": lambda n, _: CharLSTM(num_classes=n),
    "chartransformer": lambda n, context: CharTransformer(num_classes=n, context=context),
}
_KINDS: dict[str, Kind] = {**dict.fromkeys(_IMAGES, "images"), **dict.fromkeys(_TEXT, "text")}
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
    checks.choice("model", name, names())
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
    if context is not None:
        checks.integer("context", context, low=1)
        return _TEXT[name](num_classes, context)
    assert in_channels is not None
    size = checks.integer("image_size", image_size, low=1)
    return _IMAGES[name](num_classes, in_channels, size)
