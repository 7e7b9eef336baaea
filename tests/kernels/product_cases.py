"""Products whose sums are tried: operation, shape of the input and of the canonical weight."""

from __future__ import annotations

from qtrain.products.convolution import Convolution
from qtrain.products.operations import BatchedMatmul, Linear, Operation

Case = tuple[Operation, tuple[int, ...], tuple[int, ...]]
CASES: dict[str, Case] = {
    "linear": (Linear(), (3, 5, 70), (1, 9, 70)),
    "batches": (BatchedMatmul(), (3, 10, 65), (3, 9, 65)),
    "1d": (Convolution((1,), (1,), (1,), 1), (2, 6, 9), (1, 5, 6, 3)),
    "1d transposed": (Convolution((2,), (1,), (1,), 1, True, (1,)), (2, 6, 9), (1, 5, 6, 3)),
    "strided": (Convolution((2, 2), (1, 1), (1, 1), 1), (1, 17, 8, 7), (1, 16, 17, 3, 3)),
    "uneven": (Convolution((2, 1), (2, 0), (1, 2), 2), (1, 6, 9, 8), (2, 5, 3, 3, 2)),
    "transposed": (
        Convolution((2, 2), (1, 1), (1, 1), 2, True, (1, 0)), (2, 4, 5, 6), (2, 3, 2, 3, 3)
    ),
}  # fmt: skip
