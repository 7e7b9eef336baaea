"""Bounded weight norm: weights whose channels keep their norm (Hoffer et al. 2018, section 5).

    w_i = rho * v_i / ||v_i||_p          for every output channel i;  p = 1, 2 or inf

rho is one number a weight: the mean of its channels' p-norms when it was bounded, after whatever
initialised it; it is not trained.  The gradient that reaches v_i has no part along v_i (p = 2), and
the size of v_i changes the length of its steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import checks
from .channels import Channels, Weight, weights
from .copies import copied

ORDERS = (1, 2, math.inf)


class BoundedWeightNorm(nn.Module):
    """The torch parametrization v -> rho * v / ||v||_p of a weight, channel by channel.

    weight    whose channels' mean norm is kept as `rho`, a 0-d buffer
    p         1, 2 or math.inf
    channels  where the weight's channels lie

    A channel that is 0 stays 0 and passes no gradient.
    """

    rho: Tensor

    def __init__(self, weight: Tensor, p: float = 2, channels: Channels | None = None) -> None:
        super().__init__()
        if isinstance(p, bool) or p not in ORDERS:
            raise ValueError(f"p: got {p!r}, need 1, 2 or math.inf")
        self.p, self.channels = p, channels or Channels()
        with torch.no_grad():
            self.register_buffer("rho", self.channels.norms(weight, p).mean())

    def forward(self, v: Tensor) -> Tensor:
        """v: the weight's shape -> the same, every channel of p-norm rho."""
        norms = self.channels.norms(v, self.p)
        off = norms == 0  # guarded before the division: behind it the gradient is 0 * inf
        factor = torch.where(off, 0.0, self.rho / torch.where(off, 1.0, norms))
        return self.channels.joined(self.channels.split(v) * factor)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """v = w: a weight that is assigned gives the directions; the norms stay."""
        return weight

    def extra_repr(self) -> str:
        return f"p={self.p:g}, rho={float(self.rho):.4g}"


def bound_weights(model: nn.Module, p: float = 2, *, skip: Iterable[str] = ()) -> nn.Module:
    """A copy of `model` whose weights are bounded; see `bound_weights_`."""
    checks.module(model)
    return bound_weights_(copied(model), p, skip=skip)


def bound_weights_(model: nn.Module, p: float = 2, *, skip: Iterable[str] = ()) -> nn.Module:
    """Bound every weight of the model's linear, (transposed) convolution and recurrent layers, in
    place; returns the model.

    p      1, 2 or math.inf
    skip   patterns (fnmatch) of modules that are left, such as "fc"; each must match one

    Works before or after `quantize`: what is quantized is the bounded weight.  An optimizer built
    before still holds the parameters, which are now v, and start as the weights.  Raises ValueError
    for a weight that is parametrized already, or a model without any.
    """
    found = weights(model, skip=skip)
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no weight to bound: no linear, convolution or "
            f"recurrent layer that is not skipped"
        )
    for name, weight in found.items():
        if parametrize.is_parametrized(weight.module, weight.name):
            raise ValueError(
                f"model: {name} is parametrized already; remove that first "
                f"(torch.nn.utils.parametrize.remove_parametrizations), or skip it"
            )
    made = {name: BoundedWeightNorm(w.tensor, p, w.channels) for name, w in found.items()}
    for name, bound in made.items():
        own = found[name]
        parametrize.register_parametrization(own.module, own.name, bound)
    return model


def unbound_weights_(model: nn.Module) -> nn.Module:
    """Make plain parameters of the bounded weights, with the values they have, in place."""
    bounded = [weight for weight in weights(model).values() if _is_bounded(weight)]
    if not bounded:
        raise ValueError("model: none of its weights is bounded")
    for own in bounded:
        parametrize.remove_parametrizations(own.module, own.name)
    return model


def _is_bounded(weight: Weight) -> bool:
    if not parametrize.is_parametrized(weight.module, weight.name):
        return False
    chains: Any = weight.module.parametrizations
    return any(isinstance(one, BoundedWeightNorm) for one in chains[weight.name])
