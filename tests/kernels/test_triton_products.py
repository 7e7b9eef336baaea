"""Triton's int8 products are the exact sums, in every geometry, with their scale and bias."""

from __future__ import annotations

import copy
from typing import Any

import product_cases
import pytest
import torch
from product_cases import Case
from torch import nn
from triton_device import DEVICE, served

from qtrain import quantize
from qtrain.products.convolution import Convolution
from qtrain.products.engines import choice, scales
from qtrain.products.engines.engine import _is_exact, _products
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import TensorFloat32
from qtrain.products.engines.gpu import layout
from qtrain.products.engines.gpu import scales as kernels
from qtrain.products.engines.gpu.int8 import convolution, engine, preparation
from qtrain.products.engines.gpu.int8.engine import TritonInt8
from qtrain.products.engines.task import ANY, Span, Task
from qtrain.products.operations import Linear
from qtrain.products.product import Product

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CASES: dict[str, Case] = {
    "1d": product_cases.CASES["1d"],  # the first is in every sample, and this one is quick
    **product_cases.CASES,
    "3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 17, 5, 5), (1, 24, 17, 3, 3)),
    "depthwise": (Convolution((1, 1), (1, 1), (1, 1), 8), (2, 8, 6, 6), (8, 1, 1, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_are_exact(name: str) -> None:
    engine, case = TritonInt8(), CASES[name]
    served = 0
    for n, (product, a, b, like) in enumerate(_products(*case)):
        if n == 1 and a.dim() == 4:  # layers below are contiguous
            a = a.contiguous(memory_format=torch.channels_last)
        assert _is_exact(engine, product, a, b, like, torch.device(DEVICE)), product.kind
        served += product.kind != "grad_weight" or not isinstance(case[0], Convolution)
    assert served >= 2


@pytest.mark.parametrize("name", ["linear", "batches", "3x3", "uneven", "transposed"])
def test_rows_of_odd_lengths_are_copied_to_every_16_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large products are read, and the weights of many channels summed."""
    copies: list[int] = []

    def copied(x: torch.Tensor, to: layout.Layout) -> torch.Tensor:
        copies.append(to.shape[2])
        return real(x, to)

    real, direct = convolution.copied, engine._direct.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(convolution, "_MANY", 0)
    monkeypatch.setattr(preparation, "_MANY", 0)
    monkeypatch.setattr("qtrain.products.engines.engine._SPANS", [(Span(0, 255), Span(-128, 127))])
    monkeypatch.setattr(convolution, "planned", convolution.planned.__wrapped__)
    monkeypatch.setattr(engine, "planned", convolution.planned)
    monkeypatch.setattr(engine, "_direct", direct)
    for module in (convolution, engine):
        monkeypatch.setattr(module, "copied", copied)
    for product, a, b, like in _products(*CASES[name]):
        if product.kind != "grad_weight" or not isinstance(product.operation, Convolution):
            copies.clear()
            assert _is_exact(TritonInt8(), product, a, b, like, torch.device(DEVICE)), product.kind
            assert copies and all(channels % 16 == 0 for channels in copies)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (8, 24)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "without bias": (lambda: nn.Conv2d(6, 8, 1, bias=False), (2, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=4, padding=1), (2, 8, 6, 6)),
    "1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (2, 6, 9)),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_bits_of_other_engines(
    name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    other = quantize(nn.Sequential(make()), bits=bits)
    model = copy.deepcopy(other).to(DEVICE)
    # tried above, where the interpreter takes seconds; engines are tried with minutes of work
    monkeypatch.setattr(TritonInt8, "admitted_on", lambda self, device_type: True)
    called: list[str] = []
    real = TritonInt8.product
    monkeypatch.setattr(
        TritonInt8, "product", lambda *args, **kw: (called.append("x"), real(*args, **kw))[1]
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run(model: nn.Module, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.to(device, copy=True).requires_grad_()
        output = model(leaf)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        output.backward(direction.to(device))
        assert leaf.grad is not None
        return output.detach().cpu(), leaf.grad.cpu()

    want = run(other, "cpu")
    assert not called
    engines = (TritonInt8(), *choice.ENGINES[DEVICE])
    monkeypatch.setattr(choice, "ENGINES", {**choice.ENGINES, DEVICE: engines})
    monkeypatch.setattr("qtrain.products.blocks.ENGINES", choice.ENGINES)
    got = run(model, DEVICE)
    assert len(called) == 2, "forward and grad_input"
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_scales() -> None:
    one, many = torch.tensor(3e-30), torch.tensor([1e-20, 1.7, 3e38, 0.0, float("inf")])
    for a, b in ((one, many), (many, one), (many, many), (one, one)):
        want = scales.times(a, b).double()
        got = kernels.times(a.to(DEVICE), b.to(DEVICE))
        assert got is not None and torch.equal(got.cpu(), want.view(got.shape))


def test_a_scale_that_is_not_in_one_piece() -> None:
    a = torch.arange(-24, 24).view(8, 6).to(torch.int8)
    w = torch.arange(-15, 15).view(5, 6).to(torch.int8)
    many = torch.rand(10, generator=torch.Generator().manual_seed(0))
    for scale in (torch.tensor([0.3]).expand(5), many[::2]):
        task = Task(
            Product(Linear(), "forward"), 6, 1, Span(-128, 127), Span(-128, 127), sums=False
        )
        got = TritonInt8().product(
            task,
            a.to(DEVICE),
            w[None].to(DEVICE),
            a.to(DEVICE),
            epilogue=Epilogue((scale.to(DEVICE),)),
        )
        assert torch.equal(got.cpu(), (a.int() @ w.int().t()).float() * scale)


def test_places_beyond_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups and images are counted in as many bits as they need."""
    assert layout.Layout((3, 1), (2**30, 1), torch.int8).is_wide
    x = torch.arange(64, dtype=torch.int8).view(1, 2, 32).to(DEVICE)
    monkeypatch.setattr(layout.Layout, "is_wide", True)
    convolution.planned.cache_clear()
    w = torch.ones((1, 4, 32, 1, 1), dtype=torch.int8, device=DEVICE)
    y = torch.ops.qtrain.convolve_int8(
        x[..., None, None].transpose(0, 1), w, [1, 1], "contiguous", [1, 1], [0, 0], [1, 1],
        False, None, [], None,
    )  # fmt: skip
    assert y.flatten().tolist() == [sum(range(32))] * 4 + [sum(range(32, 64))] * 4


def test_fp64_is_not_multiplied_in_tf32() -> None:
    a, b = torch.rand(3, 4, dtype=torch.float64), torch.rand(1, 2, 4, dtype=torch.float64)
    task = Task(Product(Linear(), "forward"), 4, 1, ANY, ANY, "float", sums=False, significant=8)
    assert TensorFloat32().supports(task)
    got = TensorFloat32().product(task, a, b, a, epilogue=Epilogue())
    assert got.dtype == torch.float64 and torch.equal(got, a @ b[0].t())
