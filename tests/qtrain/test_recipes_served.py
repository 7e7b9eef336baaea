"""Which quantizers of the named recipes Triton's kernels make: all but those of DECLINED, with its
reason.  Of plans alone: no GPU, and no interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qtrain import Recipe, recipes
from quantizers import FloatFormat, Off, Quantizer, QuantizerLike, RealOffset
from quantizers.kernels.gpu import offset
from quantizers.kernels.gpu import quantizers as kernels
from quantizers.ranges.running import Remembering

pytest.importorskip("triton", reason="pip install triton: plans of its kernels need no GPU")

CANDIDATES = "a tensor's scale among candidates, by cosines summed in an order of the whole tensor"
LEARNED = "learned: the elements by a kernel, which of them are finite by torch's operations"
#: recipe -> the places of its quantizers that torch's own operations make, and why
DECLINED = {
    "quartet2": dict.fromkeys(
        ("grad_input.grad_output", "grad_input.weight", "grad_weight.grad_output",
         "grad_weight.input"), "corrected scales, rounded stochastically",
    ),
    "lsq": dict.fromkeys(
        ("forward.input", "forward.weight", "grad_input.weight", "grad_weight.input"), LEARNED
    ),
    "unified-int8": dict.fromkeys(
        ("grad_input.grad_output", "grad_weight.grad_output"), CANDIDATES
    ),
}  # fmt: skip


def like(*shape: int) -> Tensor:
    return torch.empty(shape)


#: what operands are: of linear layers, convolutions (channels-last too), attention
OPERANDS = (
    like(256, 96), like(8, 32, 96), like(4, 16, 9, 9),
    like(4, 16, 32, 32).contiguous(memory_format=torch.channels_last), like(16, 4, 32, 64),
    like(16, 32, 4, 64).transpose(1, 2),
)  # fmt: skip
#: weights, as (groups, out, in, *kernel)
WEIGHTS = (
    like(1, 64, 96), like(1, 16, 16, 3, 3), like(4, 4, 1, 3, 3),
    like(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)[None],
)  # fmt: skip
#: as a product's matrices, and turned
MATRICES = like(1, 256, 96), like(1, 96, 256).mT, like(4, 64, 128)
#: norms' scales and shifts
VECTORS = (like(64),)


def quantizers_of(recipe: Recipe) -> Iterator[tuple[str, QuantizerLike, tuple[Tensor, ...]]]:
    for (product, operand), slot in recipe.slots.items():
        own = WEIGHTS if operand == "weight" else OPERANDS
        yield f"{product}.{operand}", slot.quantizer, MATRICES if slot.cut else own
    if isinstance(recipe.activation, FloatFormat):
        yield "activation", Quantizer(format=recipe.activation, range=None), OPERANDS
    if recipe.norm is not None:
        for role in ("input", "grad_output"):
            yield f"norm.{role}", getattr(recipe.norm, role), OPERANDS[2:4]
        for role in ("weight", "bias"):
            yield f"norm.{role}", getattr(recipe.norm, role), VECTORS


def served(by: QuantizerLike, x: Tensor) -> bool:
    if isinstance(by, RealOffset):
        assert by.of._spec is not None
        return offset.plan(x.dtype, x.shape, x.stride(), by.of._spec) is not None
    if not isinstance(by, Quantizer) or by._spec is None:
        return False
    running = isinstance(by.range, Remembering)
    found = [
        kernels._whole(x.dtype, x.shape, x.stride(), by._spec, running, training, None)
        for training in (True, False)
    ]
    return all(plan is not None for plan in found)


@pytest.mark.parametrize("name", recipes.names())
def test_kernels_make_the_quantizers_of_a_recipe(name: str) -> None:
    declined = {
        place
        for place, by, tensors in quantizers_of(recipes.get(name))
        if not isinstance(by, Off) and not all(served(by, x) for x in tensors)
    }
    assert declined == set(DECLINED.get(name, {}))


def test_an_exception_is_a_recipe_s_own() -> None:
    assert set(DECLINED) <= set(recipes.names())
