"""Scales corrected for what rounding took, and clips by the angle, against numpy in fp64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quantizer_checks import compiled, same_bits
from torch import Tensor

from quantizers import (
    IntFormat,
    Quantizer,
    Scale,
    blocks,
    ceil,
    e2m1,
    e4m3,
    floor,
    fp32,
    nearest_even,
    root_key,
    stochastic,
)

KEY = root_key(7)
EDEN = Scale(e4m3, rounding=stochastic(), over=Scale(fp32, top=256), correction=blocks(32))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer(scale: Scale, size: int = 16) -> Quantizer:
    return Quantizer(format=e2m1, granularity=blocks(size), scale=scale)


def corrected(x: Tensor, scale: Scale) -> np.ndarray[Any, Any]:
    """Scales of 16 times sum y^2 / sum(y e) of each 32: fp64, one a block, before rounding."""
    plain = quantizer(replace(scale, correction=None, rounding=nearest_even))(x)
    assert plain.scale is not None and plain.outer is not None
    first, outer = plain.scale.double().numpy(), plain.outer.double().numpy()
    elements, real = plain.elements.double().numpy(), x.double().numpy()
    found = first.copy()
    for row, left in itertools.product(range(len(x)), range(0, x.shape[1], 32)):
        own = dot = 0.0
        for block in range(left // 16, min(left // 16 + 2, first.shape[1])):
            if first[row, block] > 0:
                at = (row, slice(16 * block, 16 * block + 16))
                y = real[at] / (first[row, block] * outer[row if len(outer) > 1 else 0, 0])
                own, dot = own + (y * y).sum(), dot + (y * elements[at]).sum()
        found[row, left // 16 : left // 16 + 2] *= own / dot if dot > 0 else 1
    return found


@pytest.mark.parametrize("columns", [64, 72, 40])
@pytest.mark.parametrize("prescale", [1, 0.75])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_scales_are_corrected_before_they_are_rounded(
    columns: int, prescale: float, reciprocal: bool
) -> None:
    x = normal(5, columns) * 2.0 ** torch.arange(5)[:, None]
    x[1, :32], x[2, 16:32] = 0, 0
    for rounding, aim in ((floor, np.floor), (ceil, np.ceil), (nearest_even, np.rint)):
        scale = replace(EDEN, rounding=rounding, reciprocal=reciprocal, prescale=prescale)
        plain = quantizer(replace(scale, correction=None, rounding=nearest_even))(x)
        made = quantizer(scale)(x)
        assert made.scale is not None and plain.scale is not None
        assert torch.equal(made.elements, plain.elements)
        exact = corrected(x, scale).astype(np.float32).astype(np.float64)
        step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(exact, 2.0**-9))), -6) - 3)
        assert np.array_equal(made.scale.double().numpy(), aim(exact / step) * step)
        assert rounding != ceil or not torch.equal(made.scale, plain.scale)
        assert bool((made.scale[1, :2] == 0).all()) and made.scale[2, 1] == 0


def test_the_projection_on_x_is_exact() -> None:
    x = normal(9, 32)
    made = quantizer(Scale(correction=blocks(32)), 32)(x).dequantize().double()
    torch.testing.assert_close(
        (made * x).sum(1), x.double().square().sum(1), rtol=1e-6, atol=0, check_dtype=False
    )


def test_a_stochastic_scale_is_up_as_often_as_it_should() -> None:
    x = normal(1, 32).repeat(4000, 1)
    made = quantizer(EDEN)(x, key=KEY)
    assert made.scale is not None
    exact = corrected(x[:1], EDEN)[0]
    for block in (0, 1):
        drawn = made.scale[:, block].double()
        low, high = drawn.min().item(), drawn.max().item()
        assert low < exact[block] < high and len(drawn.unique()) == 2
        sigma = np.sqrt((exact[block] - low) * (high - exact[block]) / len(x))
        assert abs(drawn.mean().item() - exact[block]) < 5 * sigma


def test_rotated_numbers_do_not_shrink_and_uncorrected_ones_do() -> None:
    """Of a vector under random signs and a Hadamard matrix: the mean projection on it."""
    signs = (torch.rand(20_000, 32, generator=torch.Generator().manual_seed(1)) < 0.5) * 2.0 - 1
    matrix = torch.ones(1, 1)
    while len(matrix) < 32:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x, matrix = normal(32) ** 3, matrix / 32**0.5
    rotated = (x * signs) @ matrix
    bias = {}
    for name, scale in (("eden", EDEN), ("plain", replace(EDEN, correction=None))):
        made = quantizer(scale)(rotated, key=KEY).dequantize().double()
        back = (made @ matrix.double().T) * signs
        bias[name] = abs(((back * x).sum(1).mean() / x.double().square().sum() - 1).item())
    assert bias["eden"] < 1e-3 < bias["plain"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_block(bad: float) -> None:
    x = normal(2, 64)
    x[0, 5] = bad
    made, clean = (quantizer(EDEN)(part, key=KEY) for part in (x, torch.nan_to_num(x, 0, 0)))
    assert made.scale is not None and clean.scale is not None
    assert torch.isfinite(made.scale).tolist() == [[False, True, True, True], [True] * 4]
    assert torch.equal(made.scale[:, 2:], clean.scale[:, 2:])


def test_a_corrected_scale_saturates() -> None:
    scale = replace(EDEN, over=Scale(fp32, top=448), rounding=ceil)
    made = quantizer(scale)(normal(64, 64, seed=3))
    assert made.scale is not None and made.scale.max() == 448


def test_granules_of_a_correction_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match=r"scale.correction: .*no multiple of the 16"):
        quantizer(replace(EDEN, correction=blocks(24)))(normal(2, 64), key=KEY)


def test_a_compiled_graph_has_the_same_bits() -> None:
    by, x = quantizer(EDEN), normal(3, 64)
    run = compiled(lambda x, key: by(x, key=key)[:2])
    for a, b in zip(run(x, KEY), by(x, key=KEY)[:2], strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_smallest_angle_decides(bits: int) -> None:
    fmt = IntFormat(bits)
    tops = tuple(fmt.largest * 2 ** (power / 2) for power in range(6))
    scale, x = Scale(candidates=tops, by="cosine"), normal(40, 48, seed=bits) ** 3
    made = Quantizer(format=fmt, granularity=blocks(32), scale=scale)(x)
    other = Quantizer(format=fmt, granularity=blocks(32), scale=replace(scale, by="mse"))(x)
    assert made.scale is not None and other.scale is not None
    chosen = set()
    for row, (left, right) in itertools.product(range(40), ((0, 32), (32, 48))):
        part = x[row, left:right].numpy()
        angles = []
        for top in tops:
            step = (np.abs(part).max() / np.float32(top)).astype(np.float32)
            value = np.clip(np.rint(part / step), -fmt.largest, fmt.largest).astype(float) * step
            lengths = np.sqrt((value**2).sum() * (part.astype(float) ** 2).sum())
            angles.append((1 - (value * part).sum() / lengths, step))
        least = min(angle for angle, _ in angles)
        step = made.scale[row, left // 32].item()
        assert step in [own for angle, own in angles if angle <= least + 1e-12]
        chosen.add([own for _, own in angles].index(step))
    assert len(chosen) > 1 and (bits > 2 or not torch.equal(made.scale, other.scale))


def test_of_zeros_the_first_candidate_stays() -> None:
    scale = Scale(e4m3, candidates=(6, 9), by="cosine")
    made = quantizer(scale)(torch.zeros(1, 16))
    assert made.scale is not None and made.scale.item() == 0
    assert not made.elements.any()
