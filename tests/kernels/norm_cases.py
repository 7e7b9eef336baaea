"""What the tests of the norms' Triton kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton_device import DEVICE

from qtrain.norms import batch, normalize, operations
from qtrain.norms.kernels.gpu import residual, running, whole
from qtrain.norms.kernels.gpu.channels import TritonChannels, channels
from qtrain.norms.passes import Affine
from quantizers import FloatFormat
from quantizers.kernels.gpu import quantizers as quantizing
from quantizers.kernels.gpu.launcher import Launch
from quantizers.steps import quantize

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = {
    "rows": (37, 5),
    "2d": (6, 8, 5, 3),
    "one channel": (11, 1, 3, 3),
    "one sample": (1, 5, 4, 6),
    "two elements": (2, 3),
    "aligned": (3, 4, 16, 8),
    "several tiles": (9, 3, 17, 19),
    "channels beyond a tile": (50, 130),
}


def gaussian(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, planes: bool = False
) -> Tensor:
    """(N, C, *S), contiguous with planes, else channels-last; channels differ in location and
    scale."""
    rows = (shape[0], *shape[2:], shape[1])
    x = torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    channel = torch.arange(shape[1], dtype=torch.float64) % 7
    x = (x * (1 + channel % 3) + 0.3 * channel).to(dtype).movedim(-1, 1)
    return (x.contiguous() if planes else x).to(DEVICE)


def per_channel(x: Tensor, value: float) -> Tensor:
    """Numbers of both signs, one a channel."""
    channel = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
    return (value + channel / 4) * (1 - 2 * (channel % 2))


def affine_of(x: Tensor, activation: FloatFormat | None = None, relu: bool = False) -> Affine:
    """An output of x about its channels' means."""
    mean = x.float().transpose(0, 1).flatten(1).mean(1)
    return Affine(mean, 1 / per_channel(x, 1.0), per_channel(x, -0.5), activation, relu)


def launched(x: Tensor, *args: Any) -> TritonChannels:
    """The kernels' passes of x, which they serve."""
    found = channels(x, *args)
    assert found is not None
    return found


@contextmanager
def on_this_device() -> Iterator[None]:
    """Within it the interpreter's tensors take the forms of a GPU's."""
    if DEVICE != "cpu":
        yield
        return
    forms: list[tuple[Any, Any]] = [
        (normalize.channels, channels), (operations.normalize, whole.normalize),
        (operations.gradients, whole.gradients), (operations.affine, whole.affine),
        (operations.add_relu, residual.add_relu), (operations.masked, residual.masked),
        (batch.track, running.track),
        (quantize, quantizing.whole),
    ]  # fmt: skip
    before = [by.forms.get(DEVICE) for by, _ in forms]
    for by, form in forms:
        by.forms[DEVICE] = form
    try:
        yield
    finally:
        for (by, _), form in zip(forms, before, strict=True):
            by.forms[DEVICE] = form


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the launches of kernels and torch's operations that are no views and make no
    tensor of what is in memory."""

    lets_kernels_pass = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._call, self._inside = Launch.__call__, False

    def __enter__(self) -> Any:
        counted = self

        def call(launch: Any, grid: Any, *words: Any) -> None:
            counted.names.append(launch.kernel.__name__)
            counted._inside = True  # the interpreter copies
            counted._call(launch, grid, *words)
            counted._inside = False

        Launch.__call__ = call  # type: ignore[assignment,method-assign]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        Launch.__call__ = self._call  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        free = func.is_view or name in ("empty", "empty_like", "empty_strided", "_unsafe_view")
        if not free and not self._inside:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
