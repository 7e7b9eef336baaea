"""Quantizers of the user's own: what a slot accepts, and what it refuses, layer and slot named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtrain
from qtrain import calibrate, quantize
from quantizers import IntFormat, QTensor, Quantizer, absmax, int8, per_sample


class Returns:
    """A quantizer that returns what it is told to."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make = make

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> Any:
        return self.make(x)


def layer(**slots: Any) -> nn.Module:
    torch.manual_seed(0)
    recipe = qtrain.Recipe(name="own", forward=qtrain.Forward(**slots))
    return quantize(nn.Sequential(nn.Linear(6, 4)), recipe=recipe)


ONE = torch.ones(1, 1)
REFUSED: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "none": (lambda x: None, TypeError, "NoneType, need a QTensor"),
    "tensor": (lambda x: x, TypeError, "Tensor, need a QTensor"),
    "extra-axis": (lambda x: QTensor(x[None]), ValueError, "elements"),
    "no-elements": (lambda x: QTensor(None), ValueError, "elements"),  # type: ignore[arg-type]
    "format-name": (lambda x: QTensor(x, ONE, None, "int8"), TypeError, "format"),  # type: ignore[arg-type]
    "fractional": (lambda x: QTensor(x, ONE, None, int8), TypeError, "integer dtype"),
    "complex": (lambda x: QTensor(x + 0j), TypeError, "floating-point dtype"),
    "bool": (lambda x: QTensor(x > 0, ONE, None, int8), TypeError, "integer dtype"),
    "float-scale": (lambda x: QTensor(x, 0.5), ValueError, "scale 0.5"),  # type: ignore[arg-type]
    "scale-shape": (lambda x: QTensor(x, torch.ones(3)), ValueError, "scale"),
    "zero-blocks": (lambda x: QTensor(x, ONE, None, None, (0, 0)), ValueError, "block"),
    "short-block": (lambda x: QTensor(x, ONE, None, None, (2,)), ValueError, "block"),
    "zero-point": (lambda x: QTensor(x, ONE, ONE / 2), TypeError, "zero_point"),
    "elsewhere": (lambda x: QTensor(x.to("meta")), ValueError, "another device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_result_is_refused_with_layer_and_slot(case: str) -> None:
    make, kind, text = REFUSED[case]
    with pytest.raises(kind, match=f"layer '0': input of forward: .*{text}"):
        layer(input=Returns(make))(torch.randn(2, 6))


def test_elements_outside_their_format_are_refused() -> None:
    make = lambda x: QTensor(torch.full(x.shape, 100), ONE, None, IntFormat(4))  # noqa: E731
    with pytest.raises(RuntimeError, match="outside int4"):
        layer(input=Returns(make))(torch.randn(2, 6))


def test_a_scale_without_blocks_is_one_for_all() -> None:
    x = torch.randn(2, 6)
    got = layer(input=Returns(lambda x: QTensor(x.round(), torch.tensor(0.5))))(x)
    plain = layer(input=Returns(lambda x: QTensor(x)))
    torch.testing.assert_close(got, plain(x.round() * 0.5))


class OwnBackward(Returns):
    def backward(self, grad: Tensor, x: Tensor, state: Any) -> Any:
        return None


def test_a_backward_of_the_wrong_shape_is_refused() -> None:
    x = torch.randn(2, 6, requires_grad=True)
    output = layer(input=OwnBackward(lambda x: QTensor(x)))(x)
    with pytest.raises(ValueError, match="layer '0': input: backward returned None"):
        output.sum().backward()


class Doubled(Quantizer):
    """A subclass that brings its own backward."""

    def backward(self, grad: Tensor, x: Tensor, state: Any) -> Tensor:
        return 2 * grad


def test_a_subclass_of_quantizer_keeps_its_own_backward() -> None:
    x = torch.randn(2, 6, requires_grad=True)
    (single,) = torch.autograd.grad(layer(input=Quantizer(format=int8))(x).sum(), x)
    (double,) = torch.autograd.grad(layer(input=Doubled(format=int8))(x).sum(), x)
    assert torch.equal(double, 2 * single)


class Counting(Returns):
    """Keeps how often it ran, and passes that count back as its gradient's factor."""

    def init_state(self, shape: Any) -> dict[str, Tensor]:
        return {"calls": torch.zeros(())}

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: Any = True
    ) -> Any:
        state["calls"].add_(1)
        return QTensor(x)

    def backward(self, grad: Tensor, x: Tensor, state: Any) -> Tensor:
        return grad * state["calls"]


def test_two_forwards_before_one_backward_keep_each_forwards_state() -> None:
    model = layer(input=Counting(lambda x: x))
    first, second = (torch.randn(2, 6, requires_grad=True) for _ in range(2))
    (model(first).sum() + model(second).sum()).backward()
    assert first.grad is not None and second.grad is not None
    torch.testing.assert_close(second.grad, 2 * first.grad)


def test_state_that_is_no_dict_of_tensors_is_refused() -> None:
    class Bad(Returns):
        def init_state(self, shape: Any) -> Any:
            return [1.0]

    with pytest.raises(TypeError, match="need a dict of tensors"):
        layer(input=Bad(lambda x: x))


@pytest.mark.parametrize("batch", [torch.full((2, 6), float("nan")), torch.ones(0, 6)])
def test_calibration_that_fills_nothing_is_an_error(batch: Tensor) -> None:
    model = quantize(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), norm="l1")
    with pytest.raises(ValueError, match="saw no finite, non-empty input"):
        calibrate(model, [batch])


def test_a_quantizer_class_instead_of_a_quantizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"forward\.input"):
        qtrain.Forward(input=Quantizer)  # type: ignore[arg-type]


class Range:
    """absmax in another class, and no more than a range rule must have."""

    def __call__(
        self, x: Tensor, block: Any, *, state: Any = None, training: bool = True
    ) -> tuple[Tensor, Tensor]:
        return absmax(x, block)


class Largest(Range):
    """The largest magnitude of each block so far."""

    def init_state(self, compact: tuple[int, ...]) -> dict[str, Tensor]:
        return {"bound": torch.zeros(compact)}

    def __call__(
        self, x: Tensor, block: Any, *, state: Any = None, training: bool = True
    ) -> tuple[Tensor, Tensor]:
        state["bound"].copy_(torch.maximum(state["bound"], absmax(x, block)[1]))
        return -state["bound"], state["bound"].clone()


def test_a_range_rule_needs_no_memory() -> None:
    x = torch.randn(3, 6)
    own = layer(input=Quantizer(format=int8, granularity=per_sample, range=Range()))
    assert torch.equal(own(x), layer(input=Quantizer(format=int8, granularity=per_sample))(x))


def test_a_range_rule_with_memory_serves_inputs_of_any_number_of_axes() -> None:
    own = layer(input=Quantizer(format=int8, range=Largest()))
    for shape in ((3, 6), (2, 3, 6), (6,)):
        own(torch.ones(shape))
    (bound,) = (value for name, value in own.state_dict().items() if name.endswith("bound"))
    assert bound.tolist() == [[1.0]]
