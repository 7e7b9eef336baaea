"""A step's operations, recorded and run again on the same tensors: a CUDA graph, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: what makes memory and writes nothing into it
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
#: by which a tensor's value reaches Python
_READS = ("_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


class Recorded(TorchDispatchMode):
    """Records every operation that runs within it; `replay()` runs them again, without Python.

    As a CUDA graph does, it keeps the operations, their tensors and their numbers: what a step
    decides in Python is decided once.  Unlike one it computes the step that it records.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: function, arguments, and of the results' tensors those with memory of their own
        self.operations: list[tuple[Any, Any, Any, dict[int, Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        assert name not in _READS, name
        result = func(*args, **kwargs)
        if name in _EMPTY:
            return result
        given = {_memory(x) for x in _tensors((args, kwargs))}  # the others' are views of it
        made = {n: x for n, x in enumerate(_tensors(result)) if _memory(x) not in given}
        if made or func._schema.is_mutable:
            self.operations.append((func, args, kwargs, made))
        return result

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, made in self.operations:
                results = _tensors(func(*args, **kwargs))
                for n, x in made.items():
                    x.copy_(results[n])
