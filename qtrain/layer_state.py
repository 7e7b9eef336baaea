"""What a converted layer keeps besides its parameters: noise counter and quantizer states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import QuantizerLike, fold, root_key
from quantizers.checks import shown
from quantizers.protocol import init_state, needs_key
from quantizers.ranges import State

from .recomputation import recall
from .transforms import refuse_transforms

Slot = tuple[str, str]


class LayerState(nn.Module):
    """Buffers of a converted layer; no parameters.

    noise_key     int64, from (seed, stream): the layer's own stream of noise
    noise_count   int64, training forwards so far
    <product>_<operand>_<name>   the state of each quantizer that keeps one

    A state_dict without these entries loads strictly: they keep their values.
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
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.noisy = any(needs_key(quantizer) for quantizer, _ in quantizers.values())
        self.register_buffer("noise_key", root_key(seed, stream).to(device))
        self.register_buffer("noise_count", torch.zeros((), dtype=torch.int64, device=device))
        self._slots: dict[Slot, dict[str, str]] = {}
        for slot, (quantizer, shape) in quantizers.items():
            names = {}
            for key, value in init_state(quantizer, shape).items():
                names[key] = f"{'_'.join(slot)}_{key}"
                self.register_buffer(names[key], value.to(device))
            self._slots[slot] = names

    def reseed(self, seed: int, stream: int) -> None:
        """Another stream of noise, in place."""
        self.noise_key.copy_(root_key(seed, stream))

    def range_steps(self) -> list[int]:
        """How many tensors each running range of an input has seen."""
        buffers = self.named_buffers(recurse=False)
        return [int(buffer) for name, buffer in buffers if name.endswith("_input_steps")]

    def begin(self) -> tuple[Tensor | None, dict[Slot, State]]:
        """Start a forward: (its noise key, the quantizers' states).

        A training forward advances the counter; one that recomputes an earlier forward takes that
        forward's noise and works on copies of the states.
        """
        refuse_transforms(self.name)
        if self.training:
            count, repeated = recall(self, self.noise_count)
        else:
            count, repeated = self.noise_count, False
        states = {
            slot: {key: getattr(self, name) for key, name in names.items()}
            for slot, names in self._slots.items()
        }
        if repeated:
            states = {
                slot: {key: value.clone() for key, value in state.items()}
                for slot, state in states.items()
            }
        return (fold(self.noise_key, count) if self.noisy else None), states

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model; half() and double() leave ranges in the dtype they are kept in."""

        def moved(tensor: Tensor) -> Tensor:
            found: Tensor = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            state_dict.setdefault(prefix + name, buffer.detach().clone())
        count = state_dict[prefix + "noise_count"]
        if not _is_count(count):
            raise ValueError(
                f"{prefix}noise_count: got {shown(count)}"
                f"{f', {int(count)}' if isinstance(count, Tensor) and count.numel() == 1 else ''}, "
                f"need a 0-d int64 tensor of at least 0, the training forwards so far"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_count(got: object) -> bool:
    return (
        isinstance(got, Tensor)
        and got.dtype == torch.int64
        and got.dim() == 0
        and (got.is_meta or int(got) >= 0)
    )


def rank() -> int:
    """This process' rank in data-parallel training; 0 on its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for on x's device, or None outside it and for fp64, as torch's."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """What runs within it takes the dtypes it is given; entered only where autocast is on."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
