"""Hadamard transforms of products, and backward operands made of the forward's value."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from block_cases import KINDS, MX, kept, normal, product
from recorded_results import recorded
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, hadamard, quantize
from qtrain.products import call
from qtrain.recipe import Hadamard
from quantizers import (
    OFF,
    IntFormat,
    Quantizer,
    blocks,
    e2m1,
    e4m3,
    fold,
    per_axis,
    per_token,
    root_key,
    stochastic,
)


def sylvester(size: int) -> Any:
    """Kronecker powers of [[1, 1], [1, -1]]."""
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.kron(found, [[1, 1], [1, -1]])
    return found


def recipe(q: Any, forward: Any = None, backward: Any = None, **more: Any) -> Recipe:
    return Recipe(
        name="transformed",
        forward=Forward(input=q, weight=q, transform=forward),
        grad_input=GradInput(grad_output=q, transform=backward, **more),
        grad_weight=GradWeight(grad_output=q, transform=backward, **more),
    )


# The transform ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 16, 32, 128])
def test_it_is_the_matrix_of_sylvester(size: int) -> None:
    x = torch.randint(-50, 50, (3, 2 * size)).float()
    found = hadamard(size, None)(x)
    exact = (x.double().numpy().reshape(3, 2, size) @ sylvester(size)).reshape(3, -1)
    assert torch.equal(found, torch.from_numpy(exact).float() * (1 / size**0.5))
    assert torch.allclose(hadamard(size, None)(found), x, atol=1e-4)  # its own inverse


def test_signs_are_told_drawn_once_or_at_every_key() -> None:
    x, given = torch.eye(16), tuple(1 - 2 * (i % 3 == 0) for i in range(16))
    told = hadamard(16, given)(x) * 4
    assert torch.equal(told, torch.tensor(given).float()[:, None] * torch.from_numpy(sylvester(16)))
    assert hadamard(16, list(given)) == hadamard(16, given)  # type: ignore[arg-type]
    fixed = hadamard(16)(x)
    assert torch.equal(fixed, hadamard(16, "fixed")(x, root_key(3)))
    drawn = [hadamard(16, "step")(x, root_key(seed)) for seed in range(6)]
    assert len({tuple(d[:, 0].sign().tolist()) for d in drawn}) == 6
    for matrix in (fixed, *drawn):
        assert set((matrix * 4).flatten().tolist()) == {1.0, -1.0}
    with pytest.raises(ValueError, match="signs of each step need a key"):
        hadamard(16, "step")(x)


def test_it_has_a_gradient_and_runs_where_tensors_only_look_like_ones() -> None:
    """The gradient of an orthogonal transform is the other way; fake tensors leave nothing."""
    rotation, x = hadamard(8), normal(3, 16).requires_grad_()
    assert not torch.equal(rotation(x), x)
    (grad,) = torch.autograd.grad(rotation(x), x, rotation(normal(3, 16)).detach())
    torch.testing.assert_close(grad, normal(3, 16))
    with FakeTensorMode():
        assert hadamard(4)(torch.randn(2, 8)).shape == (2, 8)
    assert torch.equal(hadamard(4, "fixed")(x), hadamard(4)(x))


def test_neighbours_that_do_not_fill_a_transform_are_filled_up() -> None:
    x = normal(3, 19)
    found = hadamard(16, None)(x)
    assert found.shape == (3, 32)
    padded = torch.nn.functional.pad(x, (0, 13))
    assert torch.equal(found, hadamard(16, None)(padded))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_halves_are_transformed_in_fp32_and_doubles_in_fp64(dtype: torch.dtype) -> None:
    x = normal(3, 16).to(dtype)
    found = hadamard(16)(x)
    assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(found, hadamard(16)(x.to(found.dtype)))


def test_rotations_of_transformer_engine() -> None:
    """Its sums of 16 terms are added in another order, in the tensor's own dtype."""
    te = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
    cases = [c for c in recorded("transformer_engine") if "rotated" in c.keys and c.data != "huge"]
    assert len(cases) >= 10
    for case in cases:
        signs = te if case.settings["with_random_sign_mask"] else None
        x, rotated = case.x.t(), case["rotated"].double()
        found = hadamard(16, signs)(x).double()
        largest = rotated.abs().unflatten(-1, (-1, 16)).amax(-1).repeat_interleave(16, -1)
        share = 2.0**-6 if "bfloat16" in str(case) else 2.0**-20
        assert ((found - rotated).abs() <= share * largest).all(), str(case)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 12}, "size: got 12, need a power of two"),
        ({"size": 1}, "size"),
        ({"signs": "random"}, "signs: got 'random', need one of fixed, step"),
        ({"signs": (1, -1)}, "need 16 numbers 1 or -1"),
        ({"signs": (2,) * 16}, "need 16 numbers 1 or -1"),
    ],
)
def test_what_is_no_transform_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        hadamard(**wrong)


# In products --------------------------------------------------------------------------------------

LAYERS = {
    "linear": (nn.Linear(19, 13), (3, 7, 19)),
    "convolution": (nn.Conv2d(9, 10, 3, 2, 1, groups=1), (2, 9, 7, 6)),
    "grouped": (nn.Conv2d(8, 6, 3, padding=1, groups=2), (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 5, 3, 2, output_padding=1), (2, 6, 4, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("signs", [None, "fixed", "step"])
def test_a_product_that_quantizes_nothing_is_left_what_it_is(layer: str, signs: Any) -> None:
    plain, shape = LAYERS[layer]
    h = hadamard(16, signs)
    model = quantize(copy.deepcopy(plain), recipe=recipe(OFF, h, h))
    plain.zero_grad()
    results = []
    for one in (plain, model):
        x = normal(*shape, seed=1).requires_grad_()
        y = one(x)
        y.backward(normal(*y.shape, seed=2))
        results.append((y.detach(), x.grad, one.weight.grad, one.bias.grad))
    for own, other in zip(*results, strict=True):
        assert (own - other).abs().max() <= 1e-6 * own.abs().max() * 10
        assert (own - other).norm() <= 1e-6 * own.norm()


@pytest.mark.parametrize("kind", ["mx", "fp4 tiles", "whole rows"])
def test_operands_are_quantized_as_they_were_transformed(kind: str) -> None:
    q, h = KINDS[kind], hadamard(8)
    layer = nn.Linear(19, 13, bias=False)
    x, g = normal(3, 7, 19, seed=1).requires_grad_(), normal(3, 7, 13, seed=2)
    model = quantize(copy.deepcopy(layer), recipe=recipe(q, h, h))
    y = model(x)
    y.backward(g)
    w, flat_x, flat_g = layer.weight.detach(), x.detach().flatten(0, 1), g.flatten(0, 1)
    assert torch.equal(y.flatten(0, 1), product((q, q), h(flat_x), h(w)))
    assert torch.equal(x.grad.flatten(0, 1), product((q, q), h(flat_g), h(w.T)))
    assert torch.equal(model.weight.grad, product((q, q), h(flat_g.T), h(flat_x.T)))


def test_matrices_of_a_batch_are_transformed_each() -> None:
    h, q = hadamard(8), MX
    a, b = normal(2, 3, 7, 19, seed=1), normal(2, 3, 19, 5, seed=2)
    y = quantize(nn.Sequential(Matmul()), recipe=recipe(q, h))[0](a, b)
    for i in range(2):
        for j in range(3):
            assert torch.equal(y[i, j], product((q, q), h(a[i, j]), h(b[i, j].T)))


def test_one_transform_of_a_whole_tensor() -> None:
    """A quantizer without blocks: one scale for all of the transformed matrix."""
    q, h = Quantizer(format=IntFormat(8)), hadamard(16)
    layer, x = nn.Linear(16, 4, bias=False), normal(6, 16, seed=1)
    y = quantize(copy.deepcopy(layer), recipe=recipe(q, h))(x)
    a, b = q(h(x)), q(h(layer.weight.detach()))
    sums = a.elements.double() @ b.elements.double().T
    assert torch.equal(y, sums.float() * (a.scale * b.scale))


# Signs of each step -------------------------------------------------------------------------------


def signs_of(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The keys that transforms are given from here on."""
    keys: list[Tensor] = []
    real = Hadamard.__call__

    def watched(self: Hadamard, x: Tensor, key: Tensor | None = None) -> Tensor:
        keys.append(key)  # type: ignore[arg-type]
        return real(self, x, key)

    monkeypatch.setattr(Hadamard, "__call__", watched)
    return keys


def test_both_operands_share_signs_that_every_step_and_product_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, h = signs_of(monkeypatch), hadamard(16, "step")
    model = quantize(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), recipe=recipe(MX, h, h))
    for step in range(2):
        model(normal(4, 16, seed=step).requires_grad_()).sum().backward()
    values = [int(key) for key in keys]
    assert len(values) == 2 * 2 * 6 and all(values.count(value) == 2 for value in values)


def test_signs_are_alike_on_every_rank_where_noise_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, h = signs_of(monkeypatch), hadamard(16, "step")
    q = replace(MX, rounding=stochastic())
    outputs = []
    for rank in (0, 3):
        monkeypatch.setattr(call, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        model = quantize(nn.Linear(16, 16), recipe=recipe(q, h), seed=1)
        outputs.append(model(normal(4, 16)))
    assert [int(k) for k in keys[:2]] == [int(k) for k in keys[2:]]
    assert not torch.equal(*outputs)


def test_a_recomputed_forward_has_the_signs_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, h = signs_of(monkeypatch), hadamard(16, "step")
    grads = []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        model = quantize(nn.Linear(16, 16), recipe=recipe(MX, h, h), seed=1)
        x, start = normal(4, 16).requires_grad_(), len(keys)
        y = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
        assert len({int(key) for key in keys[start:]}) == 3
        grads.append((x.grad, model.weight.grad))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_a_resumed_layer_draws_the_next_signs() -> None:
    h = hadamard(16, "step")
    torch.manual_seed(0)
    model = quantize(nn.Linear(16, 16), recipe=recipe(MX, h, h), seed=1)
    model(normal(4, 16))
    state = copy.deepcopy(model.state_dict())
    second = model(normal(4, 16))
    other = quantize(nn.Linear(16, 16), recipe=recipe(MX, h, h), seed=5)
    other.load_state_dict(state)
    assert torch.equal(other(normal(4, 16)), second)


# The forward's value ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(20, 12), nn.Conv2d(8, 12, 3, groups=2), nn.ConvTranspose2d(8, 6, 3, groups=2)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("cut", [True, False], ids=["blocks", "tensor"])
def test_a_backward_operand_of_the_forwards_value(layer: Any, cut: bool) -> None:
    """q(x) of the forward, as a number, is what the backward product quantizes."""
    coarse = replace(MX, format=e2m1) if cut else Quantizer(format=IntFormat(3))
    own = MX if cut else Quantizer(format=e4m3)
    shape = (4, 20) if isinstance(layer, nn.Linear) else (2, 8, 5, 5)
    found = {}
    for source in ("input", "forward"):
        r = Recipe(
            name="twice",
            forward=Forward(input=coarse, weight=coarse),
            grad_input=GradInput(grad_output=own, weight=own, source=source),
            grad_weight=GradWeight(grad_output=own, input=own, source=source),
        )
        found[source] = kept(r, copy.deepcopy(layer), normal(*shape, seed=1))
    for kind, operand in (("grad_input", "weight"), ("grad_weight", "input")):
        first = found["forward"]["forward", operand].dequantize()
        twice = found["forward"][kind, operand]
        once = found["input"][kind, operand]
        assert not torch.equal(twice.elements, once.elements)
        # of the format's 15 values or fewer there are no others in it
        kinds = set(first.abs().flatten().tolist()) | {0.0}
        close = twice.dequantize().abs().flatten()
        nearest = torch.tensor(sorted(kinds))
        gap = (close[:, None] - nearest).abs().amin(1)
        assert (gap <= 0.07 * close).all()
    if isinstance(layer, nn.Linear):
        matrix = found["forward"]["forward", "weight"].dequantize().reshape(12, 20)
        expected = own(matrix.T if cut else matrix[None])
        twice = found["forward"]["grad_input", "weight"]
        assert torch.equal(twice.elements.flatten(), expected.elements.flatten())


def test_sources_and_transforms_that_contradict_are_refused() -> None:
    h = hadamard(16)
    with pytest.raises(ValueError, match=r"grad_input\.source: got 'forward', but no quantizer"):
        GradInput(grad_output=MX, source="forward")
    with pytest.raises(ValueError, match="source: got 'backward', need one of input, forward"):
        GradWeight(input=MX, source="backward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source: got 'forward', but the forward's value is that"):
        Recipe(
            name="both", forward=Forward(input=MX, weight=MX, transform=h),
            grad_input=GradInput(weight=MX, source="forward"),
        )  # fmt: skip
    for granularity in (per_token, per_axis(0)):
        with pytest.raises(ValueError, match="names axes of the operand"):
            recipe(Quantizer(format=e4m3, granularity=granularity), h)
    with pytest.raises(TypeError, match="transform: got 16"):
        Forward(transform=16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unit: got 'bf16', but blocks"):
        Recipe(name="bf16", grad_weight=GradWeight(grad_output=MX, input=MX, unit="bf16"))


def test_what_is_reused_is_not_transformed_otherwise() -> None:
    """A weight quantized in the forward's transform is none of the backward's, nor the reverse."""
    tile = Quantizer(format=e2m1, granularity=blocks(4, 4))
    layer, x = nn.Linear(16, 16), normal(4, 16)
    plain = recipe(tile)
    assert plain.slots["grad_input", "weight"].reused
    for r in (recipe(tile, hadamard(16)), recipe(tile, None, hadamard(16))):
        assert not r.slots["grad_input", "weight"].reused
        assert ("grad_input", "weight") in kept(r, copy.deepcopy(layer), x)
    assert fold(root_key(0), -1).dtype == torch.int64
