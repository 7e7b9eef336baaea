"""How the kernel is launched that runs before a convolution with a zero point."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quantizers.kernels.gpu.device import bound
from quantizers.kernels.gpu.launcher import Launch

from ..layout import Layout, in_units, steps_of

PREPARE = "qtrain.products.engines.gpu.int8.triton_prepare"
#: output channels from which a program sums the weights of several
_MANY = 2**13


def prepared(
    x: Tensor, copy: Tensor | None, w: Tensor, padding: Sequence[int]
) -> tuple[Launch, tuple[int, int, int]]:
    """From how x (N, G, C, H, W), its copy, where there is to be one, and w (G, P, C, R, S) lie;
    the copy has `padding`, and C or more channels: see triton_prepare.prepare."""
    groups, produced, summed, *kernel = w.shape
    unit_w, (each, *steps_w) = in_units(summed, *steps_of(w, 0, 1, 3, 4))
    together = 32 if groups * produced >= _MANY else 1
    runs = -(-summed // 128)
    programs, own, beside, down = 0, 0, 128, 128
    sizes, steps, unit = (0, 0, 0, 0, 0), [0] * 4, 1
    if copy is not None:
        _, _, own, tall, wide = copy.shape
        channels = groups * own
        sizes = copy.shape[0] * tall * wide, *x.shape[3:], tall, wide
        beside = 128 if channels > 64 else 64 if channels > 32 else 32
        down = 16384 // beside
        programs = -(-sizes[0] // down) * -(-channels // beside)
        unit, steps = in_units(*steps_of(x, 0, 1, 3, 4))
    launch = Launch(
        PREPARE, "prepare",
        (programs, groups * produced, produced, each, *steps_w, kernel[1], runs,
         bound(kernel[0] * kernel[1] * runs), sizes[0], groups, x.shape[2], own, *sizes[1:],
         *steps[:2], x.stride(2), *steps[2:], *padding),
        WIDE=Layout.of(x).is_wide or (copy is not None and Layout.of(copy).is_wide), UNIT=unit_w,
        X_UNIT=unit, LAST=x.stride(2) == 1, ALIGNED=own % 16 == 0,
        PADDED=own > x.shape[2], UNSIGNED=not x.dtype.is_signed, PIXELS=down, CHANNELS=beside,
        TOGETHER=together, DEEP=128, num_warps=8,
    )  # fmt: skip
    return launch, (programs + -(-groups * produced // together), 1, 1)
