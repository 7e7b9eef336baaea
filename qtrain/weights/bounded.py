"""Weights whose channels have a set norm, or one that is learned apart from the direction.

    bounded weight norm   w_i = rho * v_i / ||v_i||_p              Hoffer et al. 2018, section 5
      with a learned g    w_i = rho * g_i / ||g|| * v_i / ||v_i||_p          the authors' code
    weight norm           w_i = g_i * v_i / ||v_i||_p    Salimans and Kingma 2016, arXiv 1602.07868

for every output channel i;  p = 1, 2 or inf.  rho is one number a weight, of when it was bounded,
after whatever initialised it, and is not trained: the mean of its channels' p-norms, or with a
learned g the 2-norm of all of them.  g_i is trained, and starts as the channel's own p-norm; where
it is bounded it deals out what the layer has, and its own size changes the length of its steps
alone, as that of v_i does for v_i: the gradient that reaches v_i has no part along v_i (p = 2), and
that of a bounded g none along g.

The code that the paper's ImageNet network imports (norm_matters 3b103aa, models/resnet_wn.py and
bwn.py, class BoundedWeighNorm) learns g with its norm held; the text, and convNet.pytorch's
models/modules/bwn.py (ebec93d), have rho alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import checks
from ..copies import copied
from .channels import Channels, Weight, weights

ORDERS = (1, 2, math.inf)


class WeightNorm(nn.Module):
    """The torch parametrization v -> size * v / ||v||_p of a weight, channel by channel.

    weight    whose channels' norms are kept: their mean as `rho`, a 0-d buffer, or
    learned   all of them as `g`, a parameter that broadcasts to `channels.split(weight)`
    bounded   whether the 2-norm of the sizes stays what it was, as `rho`; without `learned` it does
    p         1, 2 or math.inf
    channels  where the weight's channels lie

    A channel that is 0 stays 0 and passes no gradient; so does a bounded g of zeros.
    """

    def __init__(
        self,
        weight: Tensor,
        p: float = 2,
        channels: Channels | None = None,
        *,
        learned: bool = False,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float) or p not in ORDERS:
            raise ValueError(f"p: got {checks.shown(p)}, need 1, 2 or math.inf")
        self.p, self.channels, self.learned = p, channels or Channels(), learned
        self.bounded = bounded or not learned
        with torch.no_grad():
            norms = self.channels.norms(weight, p)
            if learned:
                self.g = nn.Parameter(norms, requires_grad=weight.requires_grad)
            if self.bounded:
                self.register_buffer("rho", norms.norm() if learned else norms.mean())

    @property
    def size(self) -> Tensor:
        """The norm of every channel (of g), or of all (rho)."""
        if not self.learned:
            return self.get_buffer("rho")
        if not self.bounded:
            return self.g
        whole = self.g.norm()
        off = whole == 0  # guarded before the division, as below
        return self.g * torch.where(off, 0.0, self.get_buffer("rho") / torch.where(off, 1.0, whole))

    def forward(self, v: Tensor) -> Tensor:
        """v: the weight's shape -> the same, every channel of p-norm `size`."""
        norms = self.channels.norms(v, self.p)
        off = norms == 0  # guarded before the division: behind it the gradient is 0 * inf
        factor = torch.where(off, 0.0, self.size / torch.where(off, 1.0, norms))
        return self.channels.joined(self.channels.split(v) * factor)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """v = w of a weight that is assigned: its norms become g, but leave rho as it is, so that
        of a bounded g the shares count."""
        if self.learned:
            self.g.copy_(self.channels.norms(weight, self.p))
        return weight

    def extra_repr(self) -> str:
        sizes = ["g"] if self.learned else []
        sizes += [f"rho={float(self.get_buffer('rho')):.4g}"] if self.bounded else []
        return ", ".join([f"p={self.p:g}", *sizes])


def bound_weights(
    model: nn.Module, p: float = 2, *, skip: Iterable[str] = (), learned: bool = False
) -> nn.Module:
    """A copy of `model` whose weights are bounded; see `bound_weights_`."""
    checks.module(model)
    return bound_weights_(copied(model), p, skip=skip, learned=learned)


def bound_weights_(
    model: nn.Module, p: float = 2, *, skip: Iterable[str] = (), learned: bool = False
) -> nn.Module:
    """Bound every weight of the model's linear, (transposed) convolution and recurrent layers, in
    place; returns the model.

    p         1, 2 or math.inf
    skip      patterns (fnmatch) of modules that are left, such as "fc"; each must match one
    learned   False: all channels of a weight have one norm, that of the paper's text.  True: their
              norms are learned as g, whose own norm is held, as in the paper's code: the same
              function at first, and one more parameter a weight; build the optimizer afterwards

    Works before or after `quantize`: what is quantized is the bounded weight.  An optimizer built
    before still holds the parameters, which are now v, and start as the weights.  Raises ValueError
    for a weight that is parametrized already, or a model without any.
    """
    checks.boolean("learned", learned)
    return _parametrized(model, p, skip, learned=learned, bounded=True)


def weight_norm(model: nn.Module, p: float = 2, *, skip: Iterable[str] = ()) -> nn.Module:
    """A copy of `model` with weight norm; see `weight_norm_`."""
    checks.module(model)
    return weight_norm_(copied(model), p, skip=skip)


def weight_norm_(model: nn.Module, p: float = 2, *, skip: Iterable[str] = ()) -> nn.Module:
    """Give the weights that `bound_weights_` would bound weight norm, in place: the same function
    at first, and one more parameter a weight, g.

    p, skip   as in `bound_weights_`, and so are the errors

    Build the optimizer afterwards: one built before lacks g.  `channel_norms`, `CorrectedSteps`
    and `effective_rates` see v.
    """
    return _parametrized(model, p, skip, learned=True, bounded=False)


def _parametrized(
    model: nn.Module, p: float, skip: Iterable[str], *, learned: bool, bounded: bool
) -> nn.Module:
    found = weights(model, skip=skip)
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no weight to norm: no linear, convolution or "
            f"recurrent layer that is not skipped"
        )
    for name, weight in found.items():
        if parametrize.is_parametrized(weight.module, weight.name):
            raise ValueError(
                f"model: {name} is parametrized already; remove that first "
                f"(torch.nn.utils.parametrize.remove_parametrizations), or skip it"
            )
    made = {
        name: WeightNorm(w.tensor, p, w.channels, learned=learned, bounded=bounded)
        for name, w in found.items()
    }
    for name, norm in made.items():
        own = found[name]
        parametrize.register_parametrization(own.module, own.name, norm)
    return model


def unbound_weights_(model: nn.Module) -> nn.Module:
    """Make plain parameters of the weights with bounded or learned norms, with the values they
    have, in place."""
    normed = [weight for weight in weights(model).values() if _is_normed(weight)]
    if not normed:
        raise ValueError("model: none of its weights is bounded or has weight norm")
    for own in normed:
        parametrize.remove_parametrizations(own.module, own.name)
    return model


def _is_normed(weight: Weight) -> bool:
    if not parametrize.is_parametrized(weight.module, weight.name):
        return False
    chains: Any = weight.module.parametrizations
    return any(isinstance(one, WeightNorm) for one in chains[weight.name])
