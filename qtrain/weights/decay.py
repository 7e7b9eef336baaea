"""What weight decay does to a normalized network, without weight decay (Hoffer et al. 2018, s. 3).

Behind a layer whose output is normalized the size of the weights has no effect on the output, and
a step of learning rate eta turns a channel's direction as one of eta / ||w||^2 would if its norm
were 1.  Weight decay keeps ||w|| small and so the effective rate high.  A run without it follows
the same directions when

    CorrectedSteps   every channel's step is multiplied by ||w||^2 / ||w_decayed||^2   (eq. 4)
    NormSchedule     every channel is given the decayed run's norm after every step

Both hang on a torch optimizer by its own hooks, so that loops, schedules, scalers and checkpoints
stay as they are, and take the norms of the decayed run from a `NormHistory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from .channels import Weight, weights


class _StepHook(ABC):
    """Acts on the channels that `norms` names, around every step of an optimizer."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, norms: Mapping[str, Tensor]
    ) -> None:
        checks.optimizer(optimizer)
        known = weights(model)
        if not known:
            raise ValueError(f"model: {type(model).__name__} has no layer with a weight to act on")
        _check_norms(norms)
        for name in norms:
            checks.choice("norms", name, known)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name in norms:
            if id(known[name].parameter) not in owned:
                raise ValueError(
                    f"norms: {name} is not among the optimizer's parameters; build the optimizer "
                    f"from this model's parameters"
                )
        self._weights: dict[str, Weight] = {name: known[name] for name in norms}
        self._norms: dict[str, Tensor] = {}
        self.set_norms(norms)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def set_norms(self, norms: Mapping[str, Tensor]) -> None:
        """The decayed run's norms from now on, say of another epoch: the same weights'.

        They are kept in the same memory, so that a step captured in a CUDA graph sees them.
        """
        _check_norms(norms)
        if set(norms) != set(self._weights):
            odd = sorted(set(norms) ^ set(self._weights))
            raise ValueError(f"norms: {', '.join(odd[:4])} only in one of the old and the new")
        found = {}
        for name, weight in self._weights.items():
            own = weight.channels.norms(weight.parameter.detach())
            if norms[name].numel() != own.numel():
                raise ValueError(
                    f"norms: {name} has {own.numel()} channels, got {norms[name].numel()} norms"
                )
            if not bool((torch.isfinite(norms[name]) & (norms[name] > 0)).all()):
                raise ValueError(f"norms: those of {name} must be finite and above 0")
            found[name] = norms[name].to(own).view(own.shape)
        self._norms = _kept(self._norms, found)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()

    @abstractmethod
    def _before(self, *_: Any) -> None: ...

    @abstractmethod
    def _after(self, *_: Any) -> None: ...


def _check_norms(norms: Mapping[str, Tensor]) -> None:
    """TypeError or ValueError for what is no weights' norms, or of none."""
    need = "norms by a weight's name, as NormHistory.at(epoch) gives them"
    checks.mapping("norms", norms, need)
    if not norms:
        raise ValueError(f"norms: got none, which would change no step; need {need}")
    for name, own in norms.items():
        if not isinstance(own, Tensor) or own.is_complex():
            checks.refuse(f"norms[{name!r}]", own, "a tensor of (channels)")


@torch.no_grad()
def _kept(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the new, in the memory of the old where those are of their dtype and device."""

    def alike(one: Tensor, other: Tensor | None) -> bool:
        return other is not None and (one.dtype, one.device) == (other.dtype, other.device)

    return {
        name: old[name].copy_(own) if alike(own, old.get(name)) else own.clone()
        for name, own in new.items()
    }


class CorrectedSteps(_StepHook):
    """Multiplies each channel's step, momentum included, by ||w||^2 / ||w_decayed||^2 (eq. 4).

    optimizer   any torch optimizer; its weight decay should be 0 for these weights
    norms       {weight's name: (channels)}: `NormHistory.at(epoch)` of the run with weight decay

    ||w|| is the norm before the step.  `set_norms` at the start of every epoch; `remove()` ends it.
    """

    @torch.no_grad()
    def ratios(self) -> dict[str, Tensor]:
        """||w||^2 / ||w_decayed||^2 of now: weight's name -> (channels) fp32."""
        return {
            name: self._ratio(name, weight.parameter).flatten().float()
            for name, weight in self._weights.items()
        }

    def _ratio(self, name: str, weight: Tensor) -> Tensor:
        """Broadcastable to the weight's split view."""
        return (self._weights[name].channels.norms(weight) / self._norms[name]).square()

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        self._old = {name: w.parameter.detach().clone() for name, w in self._weights.items()}

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for name, weight in self._weights.items():
            old, channels = self._old[name], weight.channels
            step = channels.split(weight.parameter - old) * self._ratio(name, old)
            weight.parameter.copy_(old + channels.joined(step))
        self._old = {}


class NormSchedule(_StepHook):
    """Gives each channel a set norm after every step: the decayed run's, times `factor`.

    optimizer, norms   as `CorrectedSteps` takes them
    factor             where the learning rate stays and the decayed run's drops, by 10 say, the
                       norm grows by the root of that instead: set `schedule.factor = 10 ** 0.5`

    A channel that is 0 stays 0.
    """

    _factor = 1.0

    @property
    def factor(self) -> float:
        return self._factor

    @factor.setter
    def factor(self, value: float) -> None:
        checks.number("factor", value, low=0, positive=True)
        self._factor = value
        self._aim()

    def set_norms(self, norms: Mapping[str, Tensor]) -> None:
        super().set_norms(norms)
        self._aim()

    @torch.no_grad()
    def _aim(self) -> None:
        """The norms that are given, in the memory of the last."""
        wanted = {name: own * self._factor for name, own in self._norms.items()}
        self._wanted = _kept(getattr(self, "_wanted", {}), wanted)

    def _before(self, *_: Any) -> None:
        pass

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for name, weight in self._weights.items():
            channels = weight.channels
            norms = channels.norms(weight.parameter)
            ratio = self._wanted[name] / torch.where(norms == 0, 1.0, norms)
            weight.parameter.copy_(channels.joined(channels.split(weight.parameter) * ratio))


def effective_rates(
    model: nn.Module, optimizer: torch.optim.Optimizer, **patterns: Any
) -> dict[str, Tensor]:
    """eta / ||w||^2 of every channel of every weight that the optimizer trains: (channels) fp32.

    eta: the learning rate of the weight's group now; patterns: only=, skip= as in `channel_norms`.
    """
    checks.module(model)
    checks.optimizer(optimizer)
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, weight in weights(model, **patterns).items():
        rate = rates.get(id(weight.parameter))
        if rate is not None:
            norms = weight.channels.norms(weight.parameter.detach())
            found[name] = rate / norms.flatten().float().square()
    return found
