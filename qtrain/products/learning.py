"""The parameters of a product's quantizers that learn: whose they are, and what sets them first."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.protocol import init_parameters
from quantizers.ranges.rules import State

from ..autograd.capture import capturing
from ..layer_state import LayerState, Slot


class Learning(LayerState):
    """A product's state, and what its quantizers learn.

    <product>_<operand>_<name>    a Parameter of the slot's quantizer
    <product>_<operand>_fitted    int64: whether a tensor has set them

    A state_dict without a flag, as of the plain model, leaves them unfitted: the next tensors set
    them.  A part of a state, as each of several files holds, leaves them as they are: one that
    lacks what other layers need, or that has of this one no noise_key but other entries.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: the slots whose parameters no tensor has set
        self.look()

    def _initial(self) -> dict[str, Tensor]:
        found = super()._initial()
        #: of each slot whose quantizer learns: the parameters' names, by the quantizer's
        self._learned: dict[Slot, dict[str, str]] = {}
        with torch.device("cpu"):
            for slot, (quantizer, shape) in self._quantizers.items():
                made, place = init_parameters(quantizer, shape), "_".join(slot)
                if not made:
                    continue
                names = {key: f"{place}_{key}" for key in made}
                set_first = callable(getattr(quantizer, "fit", None))
                self._learned[slot] = names
                self._slots.setdefault(slot, {}).update(names)
                found.update({names[key]: value for key, value in made.items()})
                if f"{place}_fitted" in found:
                    raise ValueError(
                        f"{' '.join(slot)}: {quantizer} keeps a tensor named 'fitted', as the "
                        f"layer does of it; name it otherwise"
                    )
                found[f"{place}_fitted"] = torch.tensor(int(not set_first))
        return found

    def _hold(self, name: str, value: Tensor) -> None:
        if any(name in names.values() for names in self._learned.values()):
            own = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
            self.register_parameter(name, own)
        else:
            super()._hold(name, value)

    @torch.no_grad()
    def adopt_(self, other: LayerState) -> None:
        """A Parameter of the same name and shape stays, which an optimizer may have, and begins
        with the other's value."""
        assert isinstance(other, Learning)
        mine = dict(self._parameters)
        self._learned = other._learned
        super().adopt_(other)
        for name, new in self._parameters.items():
            own = mine.get(name)
            if own is not None and new is not None and own.shape == new.shape:
                own.copy_(new)
                self._parameters[name] = own
        self.look()

    def learned(self, slot: Slot) -> dict[str, Tensor]:
        """The parameters of a slot's quantizer, by the names it gave them; {} where it has none."""
        return {key: getattr(self, name) for key, name in self._learned.get(slot, {}).items()}

    def look(self) -> None:
        """Read again which slots are unfitted."""
        flags = {slot: self.get_buffer(f"{'_'.join(slot)}_fitted") for slot in self._learned}
        self.unfitted = frozenset(slot for slot, f in flags.items() if f.is_meta or not int(f))

    @torch.no_grad()
    def fit(self, slot: Slot, x: Tensor, state: State) -> State:
        """The state that a slot's quantizer takes for x; where no tensor has set its parameters, x
        does: in place in training, on several ranks by the mean of what each rank's x gives, and
        else, as where x is empty, zero or not finite, for this call alone.

        ValueError while a CUDA graph is captured, whose replays would set them again.
        """
        quantizer: Any = self._quantizers[slot][0]
        if x.is_meta:
            return state
        if torch.compiler.is_compiling() or capturing():
            raise ValueError(
                f"{' '.join(slot)}: no tensor has set the parameters of {quantizer}, and a graph "
                f"would set them at every step; train one step before torch.compile or the capture "
                f"of a CUDA graph"
            )
        flag = self.get_buffer(f"{'_'.join(slot)}_fitted")
        if int(flag):  # set with it from outside, as in a model of averaged weights
            self.unfitted -= {slot}
            return state
        tried = {name: value.detach().clone() for name, value in state.items()}
        if x.numel():
            quantizer.fit(x.detach(), tried)
        if not self.training:
            return tried
        names = self._learned[slot]
        good = bool(x.any()) and all(bool(tried[key].isfinite().all()) for key in names)
        found = [tried[key] if good else torch.zeros_like(tried[key]) for key in names]
        place = " ".join((self.name, *slot))
        count, found = _over_ranks(place, torch.full((), float(good), device=x.device), found)
        if not count:
            return tried
        for key, value in zip(names, found, strict=True):
            state[key].copy_(value)
        flag.fill_(1)
        self.unfitted -= {slot}
        known = getattr(quantizer, "trouble", None)
        if known is not None and x.numel() and (trouble := known(x, slot[-1])):
            warnings.warn(f"layer {self.name!r}: {' '.join(slot)}: {trouble}", stacklevel=2)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        flags = [f"{'_'.join(slot)}_fitted" for slot in self._learned]
        lacking = [flag for flag in flags if prefix + flag not in state_dict]
        given = any(key.startswith(prefix) for key in state_dict)
        if (given or args[2]) and prefix + "noise_key" not in state_dict:
            lacking = []  # a part of a state
        super()._load_from_state_dict(state_dict, prefix, *args)
        for flag in lacking:
            self.get_buffer(flag).copy_(self._initial()[flag])
        self.look()


def _over_ranks(place: str, count: Tensor, tensors: list[Tensor]) -> tuple[float, list[Tensor]]:
    """(the sum of count, the tensors' sums over it) of all ranks.

    Through the ranks' store, by the place's name: a rank that never gets there, as the layer is
    skipped in its forward, leaves the others a ValueError when the group's timeout has passed; as a
    collective it would meet what that rank does next, another layer's numbers.
    """
    own = torch.cat([count.view(1).double(), *[each.double().flatten() for each in tensors]])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        own = torch.stack(_of_ranks(place, own)).sum(0)
    (total,), *parts = own.split([1, *[each.numel() for each in tensors]])
    means = [part.view_as(each) / total for part, each in zip(parts, tensors, strict=True)]
    return float(total), means


def _of_ranks(place: str, own: Tensor) -> list[Tensor]:
    """Every rank's fp64 numbers, at its n-th time in a place."""
    from torch.distributed.distributed_c10d import _get_default_store

    store, rank = _get_default_store(), torch.distributed.get_rank()
    place = f"qtrain/{place}"
    place = f"{place}/{store.add(f'{place}/{rank}', 1)}"
    store.set(f"{place}/{rank}", json.dumps(own.tolist()))
    found = []
    for other in range(torch.distributed.get_world_size()):
        try:
            found.append(json.loads(store.get(f"{place}/{other}")))
        except RuntimeError as error:
            raise ValueError(
                f"rank {rank} waited in vain for rank {other} to run it too: the first step, which "
                f"sets what is learned, must run it on every rank; else calibrate(model, batches) "
                f"before init_process_group, and DistributedDataParallel hands rank 0's values on"
            ) from error
    return list(own.new_tensor(found))
