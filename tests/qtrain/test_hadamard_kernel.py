"""The compiled Hadamard transform: the bits of the eager one."""

from __future__ import annotations

import pytest
import torch

from qtrain.recipe import hadamard
from quantizers import kernels, random_bits, root_key


@pytest.mark.parametrize("size", [2, 8, 16, 64])
@pytest.mark.parametrize("signs", [None, "fixed", "step"])
def test_it_has_the_eager_bits(size: int, signs: object) -> None:
    transform, key = hadamard(size, signs), root_key(3)  # type: ignore[arg-type]
    for shape in ((3, 64), (2, 5, 67), (1, 16), (7,)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = (random_bits(root_key(1), shape).float() / 2**29).to(dtype)
            x.view(-1)[::13], x.view(-1)[1], x.view(-1)[5] = 0.0, -0.0, float("inf")
            found = transform(x, key)
            with kernels.eager():
                expected = transform(x, key)
            assert torch.equal(found.isnan(), expected.isnan())
            bits = [t.nan_to_num(1.0).view(torch.int32) for t in (found, expected)]
            assert torch.equal(*bits)
