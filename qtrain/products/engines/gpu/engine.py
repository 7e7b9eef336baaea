"""Where engines of Triton kernels run."""

from __future__ import annotations

from typing import ClassVar

from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.serving import imported

from ..engine import Engine


class TritonEngine(Engine):
    """kernels: a module of its kernels."""

    device_types = ("cpu",) if INTERPRETED else ("cuda",)
    kernels: ClassVar[str]

    def admitted_on(self, device_type: str) -> bool:
        return imported(self.kernels) is not None and super().admitted_on(device_type)

    admitted_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
