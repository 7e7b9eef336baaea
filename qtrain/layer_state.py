"""What a converted layer keeps besides its parameters: noise counter and quantizer states."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import QuantizerLike, root_key
from quantizers.checks import shown
from quantizers.protocol import init_state, needs_key
from quantizers.ranges.rules import State
from quantizers.ranges.running import with_share

from .autograd.recomputation import needs_gradient, recall

Slot = tuple[str, str]
_CPU = torch.device("cpu")
_DISTRIBUTED = torch.distributed.is_available()


def device_of(*modules: nn.Module) -> torch.device:
    """Where the first of these modules that has a parameter or a buffer keeps it, else the CPU."""
    tensors = (t for m in modules for t in itertools.chain(m.parameters(), m.buffers()))
    return next((tensor.device for tensor in tensors), _CPU)


class LayerState(nn.Module):
    """Buffers of a converted layer.

    noise_key     int64, from (seed, stream): the layer's own stream of noise
    noise_count   int64, forwards so far in training, or through which a gradient flows
    <product>_<operand>_<name>   the state of each quantizer that keeps one, of a deviation too

    A state_dict without these entries loads strictly: they keep their values; one with some of them
    alone is of another recipe, and does not.  Values that were never there, on the meta device or
    taken by `to_empty`, are those of a new conversion.
    """

    noise_key: Tensor
    noise_count: Tensor

    def __init__(
        self,
        quantizers: Mapping[Slot, tuple[QuantizerLike, Sequence[int | None]]],
        *,
        name: str,
        seed: int,
        stream: int,
        device: torch.device = _CPU,
    ) -> None:
        super().__init__()
        self.name = name
        self.noisy = any(needs_key(quantizer) for quantizer, _ in quantizers.values())
        self._quantizers = dict(quantizers)
        self._stream = seed, stream
        self._slots: dict[Slot, dict[str, str]] = {}  # of those that keep a state
        for name, value in self._initial().items():
            self._hold(name, value.to(device))

    def _initial(self) -> dict[str, Tensor]:
        """The buffers of a new conversion, on the CPU."""
        with _CPU:  # whatever default device surrounds a quantizer of the user's own
            found = {
                "noise_key": root_key(*self._stream),
                "noise_count": torch.zeros((), dtype=torch.int64),
            }
            for slot, (quantizer, shape) in self._quantizers.items():
                for key, value in init_state(quantizer, shape).items():
                    name = f"{'_'.join(slot)}_{key}"
                    self._slots.setdefault(slot, {})[key] = name
                    found[name] = value
        return found

    def _hold(self, name: str, value: Tensor) -> None:
        """Own one of these."""
        self.register_buffer(name, value)

    @property
    def keeps_states(self) -> bool:
        """Whether a quantizer of it keeps one."""
        return bool(self._slots)

    def own(self) -> dict[str, Any]:
        """All that it owns, by name."""
        return {**self._parameters, **self._buffers}

    def reseed(self, seed: int, stream: int) -> None:
        """Another stream of noise, in place."""
        self._stream = seed, stream
        self.noise_key.copy_(root_key(seed, stream))

    def adopt_(self, other: LayerState) -> None:
        """Take another's quantizers, in place.  The state of a slot whose quantizer and shape are
        the same stays; others are the other's own.  The noise stays.
        """
        same = ["noise_"] + [
            f"{'_'.join(slot)}_"
            for slot in other._slots
            if self._quantizers.get(slot) == other._quantizers[slot]
        ]
        mine, others = self.own(), other.own()
        self._quantizers, self._slots = other._quantizers, other._slots
        self.noisy = other.noisy
        self._parameters.clear()
        self._buffers.clear()
        for name, value in others.items():
            self._hold(name, mine[name] if name.startswith(tuple(same)) else value)

    def range_steps(self) -> list[int]:
        """How many tensors each running range of an input has seen."""
        buffers = self.named_buffers(recurse=False)
        return [int(buffer) for name, buffer in buffers if name.endswith("_input_steps")]

    def begin(
        self, input: Tensor, *others: Tensor | None
    ) -> tuple[Tensor | None, dict[Slot, State]]:
        """Start a forward on these operands: (its noise key, the states of the quantizers that keep
        one), on the input's device.

        A forward in training, and one that a gradient flows through, advances the counter; one that
        recomputes an earlier forward takes that forward's noise and works on copies of the states
        that it began with (but those that its backward passes move on, as of gradients).
        A module without parameters has no device but its operands': its state goes where they are.

        ValueError under torch.func (grad, vmap, jvp ...) or torch.jit.trace.
        """
        if not torch.compiler.is_compiling():
            refuse_transforms(self.name)
        if self.noise_key.device != input.device and not input.is_meta:
            self.to(input.device)
        counted = self.training or needs_gradient(input, *others)
        states = {
            slot: {key: getattr(self, name) for key, name in names.items()}
            for slot, names in self._slots.items()
        }
        noise = self.noise_key if self.noisy else None
        key, repeated = recall(self, noise, self.noise_count, counted, self._forward_ranges)
        if repeated is not None:
            states = {
                slot: {key: repeated.get(name, states[slot][key]) for key, name in names.items()}
                for slot, names in self._slots.items()
            }
        return key, states

    def _forward_ranges(self) -> dict[str, Tensor]:
        """What a forward moves on, by name."""
        return {
            name: self._buffers[name]  # type: ignore[misc]
            for slot, names in self._slots.items()
            if not self.backward_moves(slot)
            for name in names.values()
            if name in self._buffers
        }

    def backward_moves(self, slot: Slot) -> bool:
        """Whether it is the backward pass that moves a slot's state on: a gradient's."""
        return slot[1] == "grad_output"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model: half() and double() leave ranges in the dtype they are kept in,
        to_empty() leaves them their values, no memory format is of their axes."""
        own = self.own()
        names = {id(tensor): name for name, tensor in own.items()}  # own keeps these ids theirs
        initial = cache(self._initial)  # made once, and only where a buffer leaves meta

        def moved(tensor: Tensor) -> Tensor:
            found: Tensor = fn(tensor.view(-1))
            if tensor.is_meta and not found.is_meta:
                name = names.get(id(tensor))  # none of a gradient
                tensor = initial()[name] if name else torch.zeros_like(tensor, device=_CPU)
            return tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def complete_(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Add to a state_dict what it lacks because an older version wrote it."""
        for names in self._slots.values():
            given = {
                k: state_dict[prefix + n] for k, n in names.items() if prefix + n in state_dict
            }
            for key, value in with_share(given).items():
                if key in names:
                    state_dict.setdefault(prefix + names[key], value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.complete_(state_dict, prefix)
        if prefix + "noise_key" in state_dict:  # else of the plain model
            missing: list[str] = args[2]
            names = (prefix + name for name in self.own())
            missing += [name for name in names if name not in state_dict]
        for name, tensor in self.own().items():
            if prefix + name in state_dict:
                continue
            if tensor.is_meta:  # where the layer's parameters come from, for assign=True
                tensor = self._initial()[name].to(_device_in(state_dict, prefix))
            state_dict[prefix + name] = tensor.detach().clone()
        for name, tensor in self.own().items():
            given = state_dict[prefix + name]
            if not isinstance(given, Tensor) or given.dtype != tensor.dtype:
                got = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise ValueError(f"{prefix}{name}: got {got}, need a tensor of {tensor.dtype}")
        count = state_dict[prefix + "noise_count"]
        if count.dim() or not (count.is_meta or int(count) >= 0):
            raise ValueError(
                f"{prefix}noise_count: got {shown(count)}"
                f"{f', {int(count)}' if count.numel() == 1 else ''}, "
                f"need a 0-d int64 tensor of at least 0, the training forwards so far"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _device_in(state_dict: Mapping[str, Any], prefix: str) -> torch.device:
    """The device of the tensors that a state_dict has for the layer whose state has this prefix."""
    layer = "".join(prefix.removesuffix(".").rpartition(".")[:2])
    near = [v for k, v in state_dict.items() if isinstance(v, Tensor) and k.startswith(layer)]
    return near[0].device if near else _CPU


def rank() -> int:
    """This process' rank in data-parallel training; 0 on its own."""
    if _DISTRIBUTED and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0


def refuse_transforms(name: str) -> None:
    """ValueError for the layer of this name under torch.func or torch.jit.trace."""
    if torch._C._are_functorch_transforms_active():
        raise ValueError(
            f"layer {name!r}: it is quantized, and torch.func's transforms (grad, "
            f"vmap, jvp ...) do not see its backward pass and its state; use "
            f"loss.backward() or torch.autograd.grad, and a batch axis instead of vmap"
        )
    if torch._C._get_tracing_state() is not None:  # with the engines that its batch took
        raise ValueError(
            f"layer {name!r}: it is quantized, and torch.jit.trace would keep the "
            f"noise of one step; use torch.compile, or trace the model before quantize()"
        )
