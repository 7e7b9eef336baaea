"""Groups of elements in C order, against the same tensor as rows and other people's code."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from recorded_results import Recorded, recorded
from torch import Tensor

from qtrain import Forward, GradWeight, Recipe, quantize
from quantizers import (
    Granularity,
    Quantizer,
    RealOffset,
    Scale,
    blocks,
    ema,
    groups,
    kernels,
    minmax,
    nf4,
    per_tensor,
    percentile,
    root_key,
    stochastic,
)

QUANTIZERS = {
    "int8": Quantizer(format="int8"),
    "affine": Quantizer(format="uint8", range=minmax),
    "percentile": Quantizer(format="int4", range=percentile(0.9)),
    "e4m3": Quantizer(format="e4m3", scale=Scale("e8m0", rule="rceil")),
    "stochastic": Quantizer(format="int8", rounding=stochastic()),
    "two levels": Quantizer(format="e2m1", scale=Scale("e4m3", over=Scale("fp32", top=448))),
    "candidates": Quantizer(format="e2m1", scale=Scale("e4m3", candidates=(6, 4))),
    "nf4": Quantizer(format=nf4),
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 3


def as_rows(x: Tensor, size: int) -> Tensor:
    """C order written out, a group a row; x must have whole groups."""
    return torch.tensor([float(v) for v in x.contiguous().view(-1)]).to(x.dtype).view(-1, size)


@pytest.mark.parametrize("served", [nullcontext, kernels.eager], ids=["fused", "eager"])
@pytest.mark.parametrize("shape", [(24,), (6, 8), (2, 3, 8), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_groups_are_rows_of_the_flat_tensor(name: str, shape: Any, served: Any) -> None:
    by, x, key = QUANTIZERS[name], normal(*shape), root_key(4)
    flat = replace(by, granularity=groups(8))
    with served():
        rows = replace(by, granularity=blocks(8))(as_rows(x, 8), key=key)
        for laid in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
            q = flat(laid, key=key)
            assert q.elements.shape == x.shape and q.block == (8,)
            assert torch.equal(q.elements.flatten(), rows.elements.flatten())
            for own, other in ((q.scale, rows.scale), (q.zero_point, rows.zero_point)):
                assert (own is None) == (other is None)
                assert own is None or other is None or torch.equal(own, other.flatten())
            assert torch.equal(q.dequantize().flatten(), rows.dequantize().flatten())


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (1,), (), (0, 4)], ids=str)
def test_a_last_group_may_be_shorter_and_a_tensor_anything(shape: Any) -> None:
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    q = Quantizer(format="int8", granularity=groups(8))(x)
    flat = x.flatten()
    assert q.scale is not None and q.scale.shape == (max(-(-flat.numel() // 8), 1),)
    for start in range(0, flat.numel(), 8):
        part = flat[start : start + 8]
        assert q.scale[start // 8] == part.max() / 127
        found = q.dequantize().flatten()[start : start + 8]
        assert torch.equal(found, Quantizer(format="int8")(part).dequantize())
    assert q.dequantize().shape == x.shape


@pytest.mark.parametrize("clip", ["inclusive", "strict"])
def test_gradients_stop_where_a_group_clips(clip: Any) -> None:
    by = Quantizer(format="int4", scale=Scale(top=12.0), straight_through=clip)
    x, grad = normal(4, 6), normal(6, 4).T
    passed = replace(by, granularity=groups(8)).backward(grad, x, None)
    rows = replace(by, granularity=blocks(8)).backward(as_rows(grad, 8), as_rows(x, 8), None)
    assert passed.shape == x.shape and torch.equal(passed.flatten(), rows.flatten())
    assert 0 < int((passed == 0).sum()) < 24


def test_outer_scales_are_groups_of_groups() -> None:
    over = Scale("fp32", top=448, granularity=groups(16))
    by = Quantizer(format="e2m1", granularity=groups(8), scale=Scale("e4m3", over=over))
    x = normal(6, 8)
    q = by(x)
    scale = Scale("e4m3", over=replace(over, granularity=blocks(16)))
    rows = replace(by, granularity=blocks(8), scale=scale)(as_rows(x, 16))
    assert torch.equal(q.dequantize().flatten(), rows.dequantize().flatten())


def test_compiled_groups_are_the_same() -> None:
    by = Quantizer(format="int8", granularity=groups(8), rounding=stochastic())
    x, key = normal(5, 6), root_key(2)
    compiled = torch.compile(lambda x, key: by(x, key=key).dequantize(), backend="aot_eager")
    assert torch.equal(compiled(x, key), by(x, key=key).dequantize())


@pytest.mark.parametrize("case", recorded("torchao", "quantize_fp8"), ids=str)
def test_fp8_optimizer_states_are_torchaos(case: Recorded) -> None:
    """Its scales end at 1e-12."""
    q = Quantizer(format="e4m3", granularity=groups(256))(case.x)
    assert q.scale is not None
    large = q.scale >= 1e-12
    assert torch.equal(q.scale[large], case["scale"].flatten()[large])
    known = large.repeat_interleave(256)[: case.x.numel()]
    assert torch.equal(q.elements.flatten()[known], case["elements"].flatten()[known].float())


@pytest.mark.parametrize("case", recorded("bitsandbytes", "quantize_4bit"), ids=str)
def test_nf4_groups_are_bitsandbytes(case: Recorded) -> None:
    q = Quantizer(format=nf4, granularity=groups(64))(case.x)
    assert q.scale is not None and torch.equal(q.scale, case["scale"].flatten())
    assert torch.equal(nf4.encode(q.elements).flatten(), case["codes"].flatten().long())


FLAT = Quantizer(format="int8", granularity=groups(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(name="x", forward=Forward(input=FLAT)),
         r"forward\.input: got groups of 8 in C order.*use blocks"),
        (lambda: Recipe(name="x", grad_weight=GradWeight(grad_output=FLAT)), r"grad_weight\.grad"),
        (lambda: Quantizer(format="int8", granularity=groups(8), range=ema()), "has a memory"),
        (lambda: RealOffset(Quantizer(format="uint8", granularity=groups(8))), "of: got groups"),
        (lambda: groups(0), "block size: got 0"),
        (lambda: Granularity(((0, 8),), of="flat"), r"of a flat tensor; use groups\(128\)"),
        (lambda: Granularity(((-1, None),), of="flat"), "of a flat tensor"),
        (lambda: Quantizer(format="e2m1", granularity=groups(8), scale=Scale(
            "e4m3", over=Scale("fp32", top=448, granularity=blocks(16)))), "or both flat"),
    ],
)  # fmt: skip
def test_where_groups_have_no_meaning_they_are_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_outputs_may_be_kept_in_groups() -> None:
    layer, x = torch.nn.Linear(6, 10), normal(7, 6)
    model = quantize(layer, recipe=Recipe(name="x", activation=FLAT))
    assert torch.equal(model(x), FLAT(layer(x)).dequantize())
    assert str(FLAT) == "int8, groups of 8" and per_tensor != FLAT.granularity
