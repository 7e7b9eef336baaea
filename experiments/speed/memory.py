"""A step's peak memory, and the bytes it keeps for its backward."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import torch
from step import Step
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(step: Step) -> int | None:
    """Peak memory of a step above what is held before it (weights, momentum); None: unknown here.

    Activations, gradients and temporaries.  CUDA: the allocator's count.  CPU (Linux): the peak
    resident set, whose mark is reset before the step, after freed memory has been given back.
    """
    step.clear()
    gc.collect()
    if step.device.type == "cuda":
        step.wait()
        torch.cuda.reset_peak_memory_stats(step.device)
        before = torch.cuda.memory_allocated(step.device)
        step()
        step.wait()
        return torch.cuda.max_memory_allocated(step.device) - before
    if not _CLEAR.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    _CLEAR.write_text("5")  # resets VmHWM; see proc_pid_clear_refs(5)
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def _storages(tensor: Any) -> list[torch.UntypedStorage]:
    """A tensor's storage; those of the tensors inside, for a wrapper such as torchao's weights."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.untyped_storage()]
    names, _ = tensor.__tensor_flatten__()
    return [storage for name in names for storage in _storages(getattr(tensor, name))]


def saved_bytes(step: Step) -> int:
    """Bytes of the distinct storages that a forward saves for its backward, without parameters.

    Counts what goes through autograd's saved tensors: torch's own operations, and a Function's
    `save_for_backward`; not tensors that a Function keeps on its context by itself.
    """
    parameters = {s.data_ptr() for p in step.plain.parameters() for s in _storages(p)}
    held: dict[int, torch.UntypedStorage] = {}  # kept alive: an address must not be used twice

    def pack(tensor: Tensor) -> Tensor:
        for storage in _storages(tensor):
            if storage.data_ptr() not in parameters:
                held[storage.data_ptr()] = storage
        return tensor.detach()  # an output that held itself would never be freed

    step.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.forward()
    total = sum(storage.nbytes() for storage in held.values())
    del loss
    return total
