"""low_precision_: weights, gradients and states of any optimizer in few bits, by its hooks."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantizers import fold

from ... import checks
from ...autograd.capture import capturing
from ...names import some
from .counts import UpdateReport, counted, counts, rows_of
from .kept import STATE, check_kept, moved
from .named import find
from .parameters import check, check_step, key_of, named
from .update import ALL, Update, kept_values


def low_precision_(
    optimizer: Optimizer, update: Update | str, *, model: nn.Module | None = None, seed: int = 0
) -> LowPrecision:
    """Make an optimizer's steps those of `update`, in place; rounds its weights to their format.

    optimizer   any of torch's or of your own whose step() takes gradients of fp32 that are there
    update      an Update, or the name or .yaml file of one, as `qtrain train --update` takes them
    model       which names the parameters: then neither noise nor reports depend on the order of
                groups; without it, names that the optimizer was given, else numbers count
    seed        of the noise, a function of (seed, name, tensor, step, element): every rank draws
                the same

    The compensation, step and counts are in the optimizer's state_dict, under
    ["state"]["low_precision"]; what is loaded must have them, of the same update.  A step that a
    GradScaler skips changes nothing, in fused optimizers too.  Call it after `quantize`, after the
    last group was added and other step hooks were registered, and before `load_state_dict`.

    Raises TypeError and ValueError for parameters that are not plain ones of float32, a second
    call, LBFGS, and granularities that do not fit; `step` does for closures, sparse gradients,
    states that there are none of, and in a CUDA graph's capture.  An optimizer
    that is in low precision cannot be copied or pickled.
    """
    checks.optimizer(optimizer)
    if isinstance(update, str):
        update = find(update)
    checks.instance("update", update, Update, "an Update such as Update(weight='bf16'), or a name")
    checks.integer("seed", seed)
    if model is not None:
        checks.module(model)
    if "__getstate__" in vars(optimizer):
        raise ValueError(
            "optimizer: it is in low precision already; remove() the handle of the first call, or "
            "give all in one Update"
        )
    names = named(optimizer, model)
    check(optimizer, names, update)
    return LowPrecision(optimizer, update, names, seed)


class LowPrecision:
    """An optimizer's hold on its update, as `low_precision_` returns it: `report()`, `remove()`."""

    def __init__(
        self, optimizer: Optimizer, update: Update, names: dict[str, Tensor], seed: int
    ) -> None:
        self.update, self._optimizer, self._seed = update, optimizer, seed
        self._names = {id(p): name for name, p in names.items()}
        self._parameters = names
        #: what the state_dict has of ours; {} before the first step
        self._kept: dict[str, Any] = {}
        self._keys: dict[tuple[str, str], Tensor] = {}
        self._open: list[tuple[str, Tensor, Tensor | None]] = []
        if update.weight is not None:
            start = torch.zeros((), dtype=torch.int64)
            with torch.no_grad():
                made = {
                    name: update.rounded(p, self._key(name, "start", start.to(p.device)))
                    for name, p in names.items()
                }
                for name, p in names.items():  # all, or an error and none
                    p.copy_(made[name])
        self._handles = [
            # a compiled step breaks its graph there, so that rounding has the bits it has elsewhere
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after)),
            optimizer.register_state_dict_post_hook(self._add_kept),
            optimizer.register_load_state_dict_pre_hook(self._check_loaded),
            optimizer.register_load_state_dict_post_hook(self._take_loaded),
        ]
        vars(optimizer)["__getstate__"] = self._refuse_copy

    def report(self) -> UpdateReport:
        """What rounding took from every weight and state so far, by parameter."""
        kept = self._kept
        return (
            rows_of(kept["counts"], int(kept["step"]), self.update.keeps)
            if kept
            else UpdateReport(())
        )

    def remove(self) -> None:
        """Leave the optimizer as it was, with the weights and states of now."""
        for handle in self._handles:
            handle.remove()
        vars(self._optimizer).pop("__getstate__", None)

    def _refuse_copy(self) -> NoReturn:
        raise TypeError(
            "an optimizer in low precision cannot be copied or pickled: its hooks would not be; "
            "keep its state_dict(), and load it into one that is built and made so anew"
        )

    def _key(self, name: str, part: str, step: Tensor) -> Tensor:
        own = self._keys.get((name, part))
        if own is None or own.device != step.device:
            own = self._keys[name, part] = key_of(self._seed, name, part).to(step.device)
        return fold(own, step)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if capturing():
            raise ValueError(
                "step: a step in low precision cannot be captured in a CUDA graph, whose replays "
                "run no Python; leave optimizer.step() out of the capture"
            )
        check_step(self._names, optimizer, args, kwargs)
        with_grad = {n: p for n, p in self._parameters.items() if p.grad is not None}
        if not self._kept and with_grad:
            device = next(iter(with_grad.values())).device
            self._kept = {
                "update": self.update.identity,
                "seed": self._seed,
                "step": torch.zeros((), dtype=torch.int64, device=device),
                "compensation": {},
                "counts": {},
            }
        if self.update.gradient is not None:
            if getattr(optimizer, "grad_scale", None) is not None:
                raise ValueError(
                    "gradient: the gradients are still scaled, and a fused optimizer unscales them "
                    "within its step; call scaler.unscale_(optimizer) before scaler.step"
                )
            for name, p in with_grad.items():
                assert p.grad is not None
                key = self._key(name, "gradient", self._step_on(p))
                p.grad.copy_(kept_values(self.update.gradient, p.grad, key))
        keep = self.update.weight is not None
        self._open = [(n, p, p.clone() if keep else None) for n, p in with_grad.items()]

    def _step_on(self, p: Tensor) -> Tensor:
        step: Tensor = self._kept["step"]
        return step.to(p.device)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._check_states()
        found_inf = getattr(optimizer, "found_inf", None)
        for name, p, old in self._open:
            skipped = None if found_inf is None else found_inf.to(p.device) > 0
            if old is not None:
                self._round_weight(name, p, old, skipped)
            for state, value in optimizer.state[p].items():
                if _rounds(self.update, state, value):
                    kept = self.update.of_state(state)
                    assert kept is not None
                    key = self._key(name, state, self._step_on(p))
                    new = kept_values(kept, value, key)
                    self._count(name, state, value != 0, (new == 0) & (value != 0), skipped)
                    _write(value, new, skipped)
        if self._open:
            step = self._kept["step"]
            step.add_(1 if found_inf is None else (found_inf.to(step.device) <= 0).long().view(()))
        self._open = []

    def _round_weight(self, name: str, p: Tensor, old: Tensor, skipped: Tensor | None) -> None:
        """p: what the optimizer made of the weight `old` -> the weight that is kept, in place."""
        update, key = self.update, self._key(name, "weight", self._step_on(p))
        changed = p != old
        if update.compensation is None:
            new = update.rounded(p, key)
            lost = changed & (new == old)
        else:
            owed = self._kept["compensation"]
            had = owed.setdefault(name, torch.zeros_like(p))
            wide = old.double()
            y = (p - old).double() + had
            new = update.rounded(wide + y, key)
            left = kept_values(update.compensation, y - (new - wide), None)
            lost = changed & (new == old) & (left == had)
            _write(had, left, skipped)
        self._count(name, "weight", changed, lost, skipped)
        p.copy_(new if skipped is None else torch.where(skipped, old, new))

    def _count(
        self, name: str, part: str, seen: Tensor, lost: Tensor, skipped: Tensor | None
    ) -> None:
        own = self._kept["counts"].setdefault(name, {})
        now = own.setdefault(part, counts(seen.device))
        _write(now, counted(now, seen, lost, self._step_on(seen)), skipped)

    def _check_states(self) -> None:
        """ValueError after a step for a state that no parameter has, by this step or one before."""
        found = {n for p in self._parameters.values() for n in self._optimizer.state.get(p, ())}
        odd = [name for name in self.update.states if name not in {*found, ALL}]
        if odd and self._open:
            raise ValueError(
                f"states: {type(self._optimizer).__name__} keeps no {', '.join(odd)}; it keeps "
                f"{some(sorted(found), 8) or 'none'}"
            )

    def _add_kept(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self._kept:
            state["state"][STATE] = self._kept

    def _check_loaded(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        check_kept(state["state"], self.update, self._seed, self._parameters)

    def _take_loaded(self, optimizer: Optimizer) -> None:
        found = optimizer.state.pop(STATE, None)  # type: ignore[call-overload]
        self._kept = {} if found is None else moved(found, self._parameters)


def _rounds(update: Update, name: str, value: object) -> bool:
    """Whether a state is one that the update keeps in few bits."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if value.numel() < update.min_size:
        return False
    return name in update.states or (ALL in update.states and value.dim() > 0 and name != "step")


def _write(place: Tensor, new: Tensor, skipped: Tensor | None) -> None:
    """In place, but for a step that was skipped."""
    place.copy_(new if skipped is None else torch.where(skipped, place, new))
