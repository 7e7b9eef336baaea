"""Attention's softmax and its gradient by Triton: within the bounds it states, in kind as torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_device import DEVICE, served

from qtrain.layers import softmax as attention
from qtrain.layers.gpu import softmax as launched
from qtrain.layers.softmax import softmax
from quantizers.kernels.gpu.device import INTERPRETED

# the interpreter computes by numpy, which warns of infinities
pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
INF, NAN = float("inf"), float("nan")
ULP = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
LEAST = {torch.float32: 2.0**-126, torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126}


@pytest.fixture(autouse=True)
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA forms, also where the interpreter plays the device."""
    for form in (attention._softmax, attention._gradient):
        monkeypatch.setitem(form.forms, "cpu", form.forms["cuda"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_torch(x: Tensor, mask: Tensor | None, idle: Tensor | None) -> Tensor:
    """The same functions without kernels."""
    total = x if mask is None else x + mask
    return total.softmax(-1) if idle is None else total.softmax(-1).masked_fill(idle, 0.0)


def check(
    x: Tensor, mask: Tensor | None = None, idle: Tensor | None = None, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and gradient are the kernels', and within what `softmax` states of float64's."""
    x, mask, idle = (None if t is None else t.to(DEVICE) for t in (x, mask, idle))
    assert x is not None and launched.serves(x, mask, idle)
    x = x.detach().requires_grad_()
    weights = softmax(x, mask, idle)
    assert type(weights.grad_fn).__name__ == "_OnePassBackward" and weights.is_contiguous()
    expected = by_torch(x.detach(), mask, idle)
    assert (weights.dtype, weights.shape) == (expected.dtype, expected.shape)
    # the sum that is exponentiated is torch's, with its rounding
    total = (x.detach() if mask is None else x.detach() + mask).double()
    exact = total.softmax(-1) if idle is None else total.softmax(-1).masked_fill(idle, 0.0)
    below = (total.amax(-1, keepdim=True) - total).nan_to_num(posinf=0.0)  # of a weight of 0
    bound = exact * (8 + below / 2) * 2.0**-23 + 2.0**-126
    own = 0 if weights.dtype == torch.float32 else ULP[weights.dtype]
    bound += exact * own / 2 + LEAST[weights.dtype] * own
    w = weights.detach().double()
    assert bool(((w - exact).abs() <= bound).all())

    grad = normal(*weights.shape, seed=1) if grad is None else grad
    grad = grad.to(DEVICE, weights.dtype)
    assert launched.gradient(grad, weights.detach(), x.dtype) is not None
    weights.backward(grad)
    assert x.grad is not None and x.grad.dtype == x.dtype
    product = w * grad.double()
    exact = product - w * product.sum(-1, keepdim=True)
    bound = (product.abs() + w * product.abs().sum(-1, keepdim=True)) * 2.0**-21 + 2.0**-126
    if x.dtype != torch.float32:
        bound += exact.abs() * ULP[x.dtype] / 2 + LEAST[x.dtype] * ULP[x.dtype]
    assert bool(((x.grad.double() - exact).abs() <= bound).all())
    again = softmax(x, mask, idle)
    assert torch.equal(again, weights)
    assert torch.equal(torch.autograd.grad(again, x, grad)[0], x.grad)
    return weights.detach().cpu(), x.grad.cpu()


@pytest.mark.parametrize("keys", [197, 1, 7, 64, 1024, 1025, 8192])
@pytest.mark.parametrize("factor", [1.0, 0.1, 10.0, 100.0])
def test_within_the_bounds(keys: int, factor: float) -> None:
    rows = max(2, min(300, 8192 // keys))
    weights, _ = check(normal(rows, keys) * factor, grad=normal(rows, keys, seed=2).exp())
    torch.testing.assert_close(weights.sum(-1), torch.ones(rows))


#: of logits (2, 3, 4, 12): causal, of each query, of each key, of batches, of heads ...
MASKS: dict[str, Tensor] = {
    "whole": normal(2, 3, 4, 12),
    "queries by keys": normal(4, 12).masked_fill(torch.ones(4, 12).triu(1).bool(), -INF),
    "keys": normal(12),
    "batches by keys": normal(2, 1, 1, 12).masked_fill(normal(2, 1, 1, 12, seed=3) < 0, -INF),
    "heads": normal(3, 1, 1),
    "batches by queries": normal(2, 1, 4, 1),
    "one": normal(1),
    "turned": normal(2, 3, 12, 4).mT,
    "every other": normal(2, 1, 4, 24)[..., ::2],
    "expanded": normal(1, 3, 1, 12).expand(2, 3, 4, 12),
    "heads first": normal(3, 2, 4, 12).transpose(0, 1),
    "unaligned": normal(4, 13)[:, 1:],
    "bf16": normal(2, 1, 4, 12).bfloat16(),
    "fp16": normal(4, 12).half(),
    "nothing hidden": torch.zeros(1, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str, dtype: torch.dtype) -> None:
    mask = MASKS[name]
    check(normal(2, 3, 4, 12, seed=5).to(dtype), mask)
    if mask.dtype == torch.float32:
        check(normal(2, 3, 4, 12, seed=5).to(dtype), mask.to(dtype))
    idle = torch.arange(4)[:, None] % 2 == 1
    for rows in (idle, idle.expand(2, 3, 4, 1), idle[:1] | (torch.arange(3) == 1)[:, None, None]):
        weights, grad = check(normal(2, 3, 4, 12, seed=5).to(dtype), mask, rows)
        hidden = rows.expand(2, 3, 4, 12)
        assert not weights[hidden].any() and not grad[hidden].any() and weights[~hidden].any()


def rows_of(x: Tensor) -> dict[str, Tensor]:
    return {
        "every other row": x[:, :, ::2],
        "heads inside": x.transpose(1, 2),
        "a part of the keys": x[..., 3:40],
        "a part of each axis": x[:, 1:, 2:5, 4:44],
        "two axes": x[0, 0],
        "one row": x[0, 0, 0],
        "expanded": x[:1].expand(5, 3, 6, 48),
        "five axes": x[None].expand(2, 2, 3, 6, 48),
        "one key": x[..., :1],
    }


@pytest.mark.parametrize("name", rows_of(torch.empty(2, 3, 6, 48)))
def test_layouts(name: str) -> None:
    x = rows_of(normal(2, 3, 6, 48))[name]
    check(x)
    # the gradient's: of each head's mean, of a sum, transposed, of other keys
    for grad in (normal(x.shape[-1]), torch.ones(1)):
        check(x, grad=grad.expand(x.shape))
    if x.dim() > 2:
        check(x, grad=normal(*x.shape[:-2], x.shape[-1], x.shape[-2]).mT)
        check(x, grad=normal(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1))


def test_rows_far_apart() -> None:
    """On a GPU beyond what int32 numbers."""
    step = 2**16 if INTERPRETED else 2**31
    x = torch.zeros(step + 40, dtype=torch.bfloat16, device=DEVICE)
    x[step:] = normal(40).to(x)
    rows = x.as_strided((2, 40), (step, 1))
    weights = softmax(rows, rows, None)
    torch.testing.assert_close(weights[1], (rows[1] * 2).softmax(-1))
    torch.testing.assert_close(
        launched.gradient(rows, rows, torch.float32),
        torch._softmax_backward_data(rows.float(), rows.float(), -1, torch.float32),
    )


def odd() -> Tensor:
    x = normal(12, 40) * 3
    x[0, 3], x[1], x[2, 5], x[3, 7], x[4, 8:] = -INF, -INF, INF, NAN, -INF
    x[5], x[6, 0], x[7, :2], x[8] = 3e38, -3e38, 3.4e38, -3.4e38
    x[9], x[10, 1:], x[11, ::2] = -0.0, 1e-42, -INF
    return x


@pytest.mark.parametrize("where", ["logits", "mask"])
def test_what_is_not_finite_is_as_of_torch(where: str) -> None:
    extreme, none = odd(), torch.zeros(12, 40)
    x, mask = (extreme, none) if where == "logits" else (none, extreme)
    grads = [normal(12, 40, seed=1) for _ in range(4)]
    grads[1][:, 3], grads[2][:, 9], grads[3] = INF, NAN, grads[3] * 3e38
    for grad in grads:
        found = []
        for by in (softmax, by_torch):
            leaf = x.to(DEVICE).requires_grad_()
            weights = by(leaf, mask.to(DEVICE), None)
            weights.backward(grad.to(DEVICE))
            assert leaf.grad is not None
            found.append((weights.detach(), leaf.grad))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_second_derivatives_are_torchs() -> None:
    found = []
    for by in (softmax, by_torch):
        x = normal(5, 9).to(DEVICE).requires_grad_()
        direction = normal(5, 9, seed=1).to(DEVICE).requires_grad_()
        (grad,) = torch.autograd.grad(by(x, None, None), x, direction, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), (x, direction)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_batched_gradients_are_torchs() -> None:
    x, many = normal(5, 9).to(DEVICE).requires_grad_(), normal(3, 5, 9, seed=1).to(DEVICE)
    weights = softmax(x, None, None)
    (grads,) = torch.autograd.grad(weights, x, many, is_grads_batched=True, retain_graph=True)
    for grad, direction in zip(grads, many, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(weights, x, direction, True)[0])


def test_a_mask_that_learns_has_its_gradient() -> None:
    x, mask = normal(2, 4, 12), normal(4, 12, seed=1).to(DEVICE).requires_grad_()
    assert not launched.serves(x.to(DEVICE), mask, None)
    weights = softmax(x.to(DEVICE), mask, None)
    weights.square().sum().backward()
    other = mask.detach().cpu().requires_grad_()
    by_torch(x, other, None).square().sum().backward()
    assert mask.grad is not None and other.grad is not None
    torch.testing.assert_close(mask.grad.cpu(), other.grad)
    with torch.no_grad():
        assert launched.serves(x.to(DEVICE), mask, None)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


DECLINED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]] = {
    "fp64": lambda x: (x.double(), None, None),
    "an fp64 mask": lambda x: (x, x.double(), None),
    "a mask of integers": lambda x: (x, x.int(), None),
    "8193 keys": lambda x: (x.new_zeros(2, 8193), None, None),
    "keys apart": lambda x: (x.mT, None, None),
    "no row": lambda x: (x[:0], None, None),
    "no row, idle": lambda x: (x[:0], None, x[:0, ..., :1] > 0),
    "no key": lambda x: (x[..., :0], None, None),
    "a number": lambda x: (x[0, 0, 0, 0], None, None),
    "a mask that is a number": lambda x: (x, x[0, 0, 0, 0], None),
    "a larger mask": lambda x: (x[:1], x, None),
    "a mask of more axes": lambda x: (x[0], x[:1], None),
    "more idle rows": lambda x: (x[:1], x[:, :1], x[..., :1] > 0),
    "axes apart": lambda x: (
        x.new_zeros(4, 4, 4, 4, 8)[::2, ::2, ::2, ::2], x.new_zeros(2, 1, 2, 1, 8), None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_what_no_kernel_serves_is_torchs(name: str) -> None:
    x = normal(2, 3, 4, 12).to(DEVICE)
    operands = DECLINED[name](x)
    assert launched.serves(x, None, None) and not launched.serves(*operands)
    found = []
    for by in (softmax, by_torch):
        leaf = operands[0].detach().requires_grad_()
        weights = by(leaf, *operands[1:])
        weights.backward(torch.ones_like(weights))
        found.append((weights, leaf.grad))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert torch.equal(found[0][0], found[1][0])


def test_what_must_be_seen_is_torchs() -> None:
    x = normal(2, 3, 4, 12).to(DEVICE).requires_grad_()
    weights = softmax(x, None, None)
    with Mode():
        assert not launched.serves(x, None, None)
        assert launched.gradient(weights.detach(), weights.detach(), x.dtype) is None
    assert torch.func.vmap(lambda x: softmax(x, None, None))(x.detach()).shape == x.shape
    for grad in (weights.detach().double(), weights.detach().requires_grad_()):
        assert launched.gradient(grad, weights.detach(), x.dtype) is None
    empty = weights.detach()[:0]  # of which a GPU refuses to launch anything
    assert launched.gradient(empty, empty, x.dtype) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_has_torchs_dtype(dtype: torch.dtype) -> None:
    """fp32 on CUDA."""
    x, mask = normal(3, 4, 12).to(DEVICE, dtype), normal(4, 12, seed=1).to(DEVICE, dtype)
    kind = "cpu" if INTERPRETED else "cuda"
    with torch.autocast(kind, dtype):
        for other in (None, mask, mask.float()):
            check(x, other)
            check(x, other, torch.arange(4)[:, None] == 1)
