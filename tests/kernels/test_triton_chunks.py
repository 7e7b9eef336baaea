"""A range averaged over chunks, by Triton: the bits of the eager path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, served

from experiments.gpu.checks import same
from quantizers import IntFormat, Quantizer, chunked_minmax, e4m3, ema, root_key, stochastic
from quantizers.devices.memory import eager
from quantizers.kernels.gpu import chunks
from quantizers.kernels.gpu import quantizers as kernels

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def with_(value: float, at: int) -> Tensor:
    x = normal(6, 34)
    x.view(-1)[at] = value
    return x


LAST = torch.channels_last
INPUTS = {
    "matrix": normal(6, 34),
    "images": normal(4, 3, 5, 6),
    "channels last": normal(8, 6, 5, 4).contiguous(memory_format=LAST),
    "several parts": normal(3, 5, 1500),
    "one sample": normal(1, 6, 5, 4).contiguous(memory_format=LAST),
    "many samples": normal(130, 3),
    "strided": normal(6, 10, 4)[:, ::2],
    "0-d": torch.tensor(-3.5),
    "fp16": normal(4, 33).half(),
    "positive": normal(4, 33).relu(),
    "huge": (normal(4, 33) * 1e38).clamp(-3.4e38, 3.4e38),
    "subnormal": normal(4, 33) * 1e-42,
    "zeros": torch.zeros(3, 4),
    "-0": -torch.zeros(3, 4),
    "inf": with_(float("inf"), 0),
    "-inf": with_(-float("inf"), 40),
    "NaN": with_(float("nan"), 131),
    "-NaN": with_(-float("nan"), 17),
}
FORMATS = (
    IntFormat(8, signed=False, symmetric=False),
    IntFormat(8),
    IntFormat(4, signed=False),
    IntFormat(16, signed=False, symmetric=False),
    e4m3,
)


@pytest.mark.parametrize("name", INPUTS)
def test_a_whole_quantizer(name: str) -> None:
    x, tried = INPUTS[name], 0
    rules = (
        ema(chunked_minmax(), train_on="batch"),
        chunked_minmax(),
        ema(chunked_minmax()),
        ema(chunked_minmax(1 if x.numel() % 2 else 2)),
        ema(chunked_minmax()),
    )
    for n, (format, rule) in enumerate(zip(FORMATS, rules, strict=True)):
        by = Quantizer(format=format, range=rule, rounding=stochastic())
        key, state = root_key(n), by.init_state(x.shape)
        moved = {part: value.to(DEVICE, copy=True) for part, value in state.items()}
        for training in (True, False) if state else (True,):
            with eager():
                want = by(x, state=state or None, key=key, training=training)
            got = kernels.whole(x.to(DEVICE), by, moved or None, key.to(DEVICE), training)
            if got is None:
                assert n == 3, "not served"
                continue
            assert same(got.elements, want.elements), (format, rule)
            assert same(got.scale, want.scale) and same(got.zero_point, want.zero_point)
            assert all(same(moved[part], value) for part, value in state.items())
            tried += 1
    assert tried >= 7


def test_which_chunks_are_runs() -> None:
    def length(x: Tensor, parts: int | None = None) -> int | None:
        return chunks.chunk_length(x.shape, x.stride(), parts)

    x = normal(8, 6, 5, 4)
    last = x.contiguous(memory_format=LAST)
    assert length(x) == length(last) == 120
    assert length(x, 16) == 60 and length(last, 16) is None
    assert length(last, 4) == 240 and length(last, 1) == 960
    assert length(x, 7) is None, "the last is shorter"
    assert length(normal(6, 4).t()) is None
    assert length(normal(6, 1).t()) == 6
    assert length(x[:1]) == length(last[:1]) == 120


def test_a_mean_is_rounded_once() -> None:
    """One that fp32 sums would miss."""
    x = torch.tensor([2.0**24, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0])[:, None]
    by = Quantizer(format=IntFormat(8), range=chunked_minmax())
    got = kernels.whole(x.to(DEVICE), by, None, None, True)
    assert got is not None and got.scale is not None
    assert got.scale.item() == (torch.tensor((2**24 + 8) / 7) / 127).item()
