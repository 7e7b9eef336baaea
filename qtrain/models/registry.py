"""Reference networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .. import checks
from ..data import Kind
from .characters import CharLSTM, CharTransformer
from .mlp import mlp
from .resnet import Stem, resnet18, resnet20, resnet34, resnet50, resnet56
from .vgg import vgg11

SMALL_IMAGE = 64  # pixels; up to here the CIFAR stem, which keeps the resolution


def _stem(image_size: int) -> Stem:
    return "cifar" if image_size <= SMALL_IMAGE else "imagenet"


#: kind -> name -> the network of num_classes and of what else fits the kind: see `_SIZES`
_MODELS: dict[Kind, dict[str, Callable[..., nn.Module]]] = {
    "images": {
        "mlp": mlp,
        "vgg11": lambda image_size, **sizes: vgg11(**sizes),
        "resnet18": lambda image_size, **sizes: resnet18(**sizes, stem=_stem(image_size)),
        "resnet34": lambda image_size, **sizes: resnet34(**sizes, stem=_stem(image_size)),
        "resnet50": lambda image_size, **sizes: resnet50(**sizes, stem=_stem(image_size)),
        "resnet20": lambda image_size, **sizes: resnet20(**sizes),
        "resnet56": lambda image_size, **sizes: resnet56(**sizes),
    },
    "text": {
        "charlstm": lambda context, **sizes: CharLSTM(**sizes),
        "chartransformer": CharTransformer,
    },
}
#: those with residual branches that end in a norm
_RESIDUAL = tuple(name for name in _MODELS["images"] if name.startswith("resnet"))
_KINDS: dict[str, Kind] = {name: kind for kind, own in _MODELS.items() for name in own}
#: What `get` takes beside num_classes.
_SIZES: dict[Kind, tuple[str, ...]] = {
    "images": ("in_channels", "image_size"),
    "text": ("context",),
}


def names(kind: Kind | None = None) -> list[str]:
    """The names that `get` takes, sorted; those that fit one kind of data where given."""
    return sorted(name for name in _KINDS if kind in (None, _KINDS[name]))


def check(name: str, *, zero_init_residual: int = False) -> None:
    """What `get` refuses of a name and its options, without a network."""
    checks.choice("model", name, names())
    checks.boolean("zero_init_residual", zero_init_residual)
    if zero_init_residual and name not in _RESIDUAL:
        raise ValueError(
            f"zero_init_residual: got True for {name!r}, which has no residual branch that ends in "
            f"a norm; leave it out, or take one of {', '.join(_RESIDUAL)}"
        )


def get(
    name: str,
    *,
    num_classes: int,
    in_channels: int | None = None,
    image_size: int | None = None,
    context: int | None = None,
    zero_init_residual: int = False,  # a bool; type checkers take **dataset.sizes for it, too
) -> nn.Module:
    """A freshly initialised network; `get(name, **dataset.sizes)` fits a data set.

    Of images: (N, in_channels, image_size, image_size) -> (N, num_classes); ResNet-18/34/50 take
    the CIFAR stem up to 64 pixels.  Of text: (N, context) int64 -> (N, context, num_classes).
    zero_init_residual: a bool, see `ResNet`.  ValueError for an unknown name (suggests the
    nearest), for the sizes of another kind of data, for a size below 1, and for zero_init_residual
    of a network without residual branches that end in a norm; ValueError or TypeError for a size
    that is no integer.
    """
    check(name, zero_init_residual=zero_init_residual)
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
    for what in given.keys() - {"in_channels"}:  # which every network of images checks
        checks.integer(what, given[what], low=1)
    options = {"zero_init_residual": True} if zero_init_residual else {}
    return _MODELS[kind][name](num_classes=num_classes, **given, **options)
