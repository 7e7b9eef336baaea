"""The output channels of weights, whatever layer they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import checks
from ..names import hits, some

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Channels:
    """Where a weight's output channels lie.

    groups   of a transposed convolution, whose weight is (in, out / groups, *kernel); else 0:
             channels are axis 0
    """

    groups: int = 0

    def split(self, weight: Tensor) -> Tensor:
        """A view of the weight in which each channel is one index of `axes`."""
        return weight.unflatten(0, (self.groups, -1)) if self.groups else weight

    def joined(self, split: Tensor) -> Tensor:
        """The weight of such a view."""
        return split.flatten(0, 1) if self.groups else split

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the split view that number the channels."""
        return (0, 2) if self.groups else (0,)

    def norms(self, weight: Tensor, p: float = 2) -> Tensor:
        """The p-norm of every channel, in the weight's dtype: broadcastable to the split view."""
        view = self.split(weight)
        others = tuple(axis for axis in range(view.dim()) if axis not in self.axes)
        norms: Tensor = torch.linalg.vector_norm(view, p, others, keepdim=True)
        return norms


@dataclass(frozen=True)
class Weight:
    """A weight with output channels: the module that has it, its name there, its channels."""

    module: nn.Module
    name: str
    channels: Channels

    @property
    def tensor(self) -> Tensor:
        """The weight as the module computes with it: parametrized, where it is."""
        found: Tensor = getattr(self.module, self.name)
        return found

    @property
    def parameter(self) -> Tensor:
        """What is trained; ValueError for a parametrization of several tensors."""
        if not parametrize.is_parametrized(self.module, self.name):
            return self.tensor
        chain: Any = self.module.parametrizations
        original = getattr(chain[self.name], "original", None)
        if original is None:
            raise ValueError(
                f"{self.name}: its parametrization has several tensors, which have no norm "
                f"together; skip it (only=, skip=), or for weight norm use qtrain.weight_norm"
            )
        found: Tensor = original
        return found


def weights(
    model: nn.Module, *, only: Iterable[str] = ("*",), skip: Iterable[str] = ()
) -> dict[str, Weight]:
    """Every weight of the model's linear, (transposed) convolution and recurrent layers by its
    name in the model ("conv1.weight"); that of a module used twice, once.

    only, skip   patterns (fnmatch) of module names; one that names a container covers all below

    Raises ValueError for a pattern that matches no such layer.
    """
    checks.module(model)
    patterns = chosen(only, skip)
    if not patterns["only"]:
        raise ValueError('only: got no pattern, which takes no layer; leave it out for all ("*")')
    unused = {(field, pattern) for field, own in patterns.items() for pattern in own}
    found: dict[str, Weight] = {}
    paths = []
    for path, module in model.named_modules():
        names, channels = _held(module)
        if not names:
            continue
        paths.append(path)
        matched = {field: hits(path, own) for field, own in patterns.items()}
        unused -= {(field, pattern) for field, own in matched.items() for pattern in own}
        if matched["only"] and not matched["skip"]:
            for name in names:
                found[".".join(part for part in (path, name) if part)] = Weight(
                    module, name, channels
                )
    for field, pattern in sorted(unused - {("only", "*")}):
        shown = some([path or "(model)" for path in paths], 12) or "none"
        raise ValueError(f"{field}: {pattern!r} matches no layer with a weight; those are {shown}")
    return found


def _held(module: nn.Module) -> tuple[list[str], Channels]:
    """Names of the module's weights with output channels, and where these lie."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        # those that are parametrized are no parameters of the module any more
        own = {name for name, p in module.named_parameters(recurse=False) if p.dim() >= 2}
        own.update(getattr(module, "parametrizations", {}))
        return sorted(name for name in own if name.startswith("weight")), Channels()
    if isinstance(module, _TRANSPOSED):
        return ["weight"], Channels(module.groups)
    return (["weight"] if isinstance(module, _PLAIN) else []), Channels()


def chosen(only: Iterable[str], skip: Iterable[str]) -> dict[str, list[str]]:
    """The patterns of both, as lists."""
    return {"only": checks.patterns("only", only), "skip": checks.patterns("skip", skip)}


@torch.no_grad()
def channel_norms(
    model: nn.Module, *, only: Iterable[str] = ("*",), skip: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The 2-norm of every output channel of every weight that is trained: name -> (channels) fp32.

    only, skip: as in `weights`.  Of a parametrized weight, the norm of its original.
    """
    found = weights(model, only=only, skip=skip)
    return {
        name: weight.channels.norms(weight.parameter).flatten().float()
        for name, weight in found.items()
    }
