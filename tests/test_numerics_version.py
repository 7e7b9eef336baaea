"""The package's version is that of its bits: a change of one raises it."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qtrain
from qtrain import quantize
from quantizers import (
    FloatFormat,
    Granularity,
    IntFormat,
    Quantizer,
    Scale,
    absmax,
    ceil,
    chunked_minmax,
    e4m3,
    e5m2,
    e8m0,
    ema,
    floor,
    fp16,
    fp32,
    minmax,
    nearest_even,
    per_axis,
    per_tensor,
    percentile,
    root_key,
    stochastic,
)

#: scales and roundings are tried together at random
pytestmark = pytest.mark.filterwarnings("ignore::quantizers.ClippingScaleWarning")
#: version -> digest of quantizations, and of layers' integer products
DIGESTS = {
    "0.1.0": ("4f593a4897ff2daa", "2d1d576e42826b17"),
    "0.2.0": ("4f593a4897ff2daa", "ed4065f88600424c"),
}


def numbers(*shape: int) -> Tensor:
    """Of all sizes from 2^-12 to 2^3, the same everywhere."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    mixed = (index * 2654435761 + 12345) % 2**32
    size = torch.ldexp(torch.ones(shape).view(-1), (mixed % 16 - 12).int())
    return (((mixed >> 8) % 4096 - 2048).float() / 2048 * size).view(shape)


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def quantizations() -> list[Tensor]:
    x, found = numbers(6, 5, 32), []
    formats = (IntFormat(8), IntFormat(4, signed=False, symmetric=False), e4m3, e5m2, fp16)
    ranges = (absmax, minmax, chunked_minmax(3), percentile(0.9), ema())
    granularities = (per_tensor, per_axis(1), Granularity(((-1, 8),), rest="each"))
    roundings = (nearest_even, floor, ceil, stochastic())
    for fmt, rule, granularity, rounding in itertools.product(
        formats, ranges, granularities, roundings
    ):
        scale = e8m0 if granularity == granularities[2] else fp32
        quantizer = Quantizer(
            format=fmt, range=rule, granularity=granularity, rounding=rounding, scale=Scale(scale)
        )
        state = quantizer.init_state(x.shape)
        for step in range(2):
            q = quantizer(x * (1 + step), state=state, key=root_key(7, step))
            assert isinstance(q.format, IntFormat | FloatFormat) and q.scale is not None
            found += [q.elements, q.scale, *([] if q.zero_point is None else [q.zero_point])]
    return found


def products() -> list[Tensor]:
    """Outputs and gradients of inputs, whose products are of integers."""
    found = []
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(40, 24), numbers(9, 40)),
        (nn.Conv2d(8, 12, 3, stride=2, groups=2), numbers(3, 8, 9, 9)),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), numbers(2, 6, 5, 5)),
    ]
    for (layer, x), bits in itertools.product(layers, (4, 8, 12)):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(numbers(*parameter.shape))
        model = quantize(nn.Sequential(layer), bits=bits, seed=3)
        for mode in (True, False):
            leaf = x.clone().requires_grad_()
            output = model.train(mode)(leaf)
            output.backward(numbers(*output.shape))
            assert leaf.grad is not None
            found += [output, leaf.grad]
    return found


def test_a_change_of_bits_raises_the_version() -> None:
    found = digest(quantizations()), digest(products())
    assert found == DIGESTS.get(qtrain.__version__), (
        f"{found}: the bits are not those of version {qtrain.__version__}.  If they are meant to "
        f"change, raise VERSION in qtrain/version.py, say what changed in CHANGELOG.md, and enter "
        f"the new digest"
    )


def test_the_changelog_has_the_version() -> None:
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition(f"## {qtrain.__version__}")[2].partition("\n## ")[0]
    assert "### Numerics" in section


@pytest.mark.parametrize("what", [quantizations, products])
def test_a_digest_sees_one_bit(what: object) -> None:
    tensors = [t.clone() for t in what()]  # type: ignore[operator]
    before = digest(tensors)
    flat = tensors[5].view(-1)
    flat[0] = flat[0] + 1
    assert digest(tensors) != before
