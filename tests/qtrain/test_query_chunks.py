"""Attention of some queries at a time: each chunk as a call of its own, in less memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import GradInput, GradWeight, Recipe, ScaledDotProductAttention, quantize, recipes
from qtrain.recipe import Forward
from quantizers import OFF, Quantizer, absmax, blocks, int8

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 21, 17, 8


def operands(queries: int = QUERIES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, KEYS, KEYS)
    return [
        torch.randn(BATCH, HEADS, size, WIDTH, generator=generator).requires_grad_()
        for size in sizes
    ]


def converted(recipe: Recipe) -> nn.Module:
    return quantize(ScaledDotProductAttention(), recipe=recipe)


def trained(forward: Any, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of the inputs."""
    for x in inputs:
        x.grad = None
    output = forward(*inputs)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    (output * weights).sum().backward()
    return [output.detach(), *[x.grad for x in inputs]]  # type: ignore[list-item]


HIDDEN = torch.rand(QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) < 0.3
HIDDEN[4] = True
MASKS: dict[str, Tensor | str | None] = {
    "none": None,
    "causal": "causal",
    "bool": ~HIDDEN,
    "float": torch.zeros(QUERIES, KEYS).masked_fill(HIDDEN, float("-inf")),
    "padding": ~HIDDEN[:BATCH, None, None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("recipe", ["int8", "mxfp8", "hbfp4", "fp8-delayed", "lsq"])
def test_each_chunk_is_a_call(recipe: str, mask: str) -> None:
    made = recipes.get(recipe)
    whole, chunked = converted(made), converted(replace(made, query_chunk=8))
    own = MASKS[mask]

    def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
            part: Any = own
            if own is not None and mask != "padding":
                full = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()
                part = (full if mask == "causal" else own)[rows]  # type: ignore[index]
            outputs.append(whole(query[..., rows, :], key, value, part))
        return torch.cat(outputs, -2)

    given: dict[str, Any] = {"is_causal": True} if mask == "causal" else {"attn_mask": own}
    inputs = operands()
    for _ in range(2):  # noise and ranges go on
        expected = trained(by_hand, inputs)
        found = trained(lambda *x: chunked(*x, **given), inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(chunked.state_dict().values(), whole.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_query_whose_mask_is_lost_is_lost_alone(size: int) -> None:
    mask = torch.zeros(QUERIES, KEYS)
    mask[3, 0] = torch.nan
    layer = converted(replace(recipes.int8(), query_chunk=size))
    lost = layer(*operands(), mask).isnan()
    assert torch.equal(lost, F.scaled_dot_product_attention(*operands(), mask).isnan())
    assert lost[..., 3, :].all() and lost.sum() == lost[..., 3, :].numel()
    assert layer(*operands(), mask[3:4]).isnan().all()  # one of all queries


def test_scales_of_rows_make_chunks_the_whole() -> None:
    rows = Quantizer(format=int8, granularity=blocks(None), range=absmax)
    tensor = Quantizer(format=int8, range=absmax)
    made = Recipe(
        name="rows",
        forward=Forward(input=rows, weight=tensor),
        grad_input=GradInput(grad_output=rows, weight=tensor),
        grad_weight=GradWeight(input=OFF),
    )
    inputs = operands()
    (output, *grads), (whole, *others) = (
        trained(converted(replace(made, query_chunk=size)), inputs) for size in (5, None)
    )
    assert torch.equal(output, whole) and torch.equal(grads[0], others[0])
    assert made.slot("grad_weight", "grad_output") is OFF
    for a, b in zip(grads[1:], others[1:], strict=True):  # sums over queries, in fp32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_no_scores_of_all_queries_are_kept(causal: bool) -> None:
    queries = 64
    sizes: dict[int | None, int] = {}
    for size in (None, 8):
        layer, kept = converted(replace(recipes.int8(), query_chunk=size)), [0]

        def keep(x: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            layer(*operands(queries), is_causal=causal)
        sizes[size] = max(kept)
    assert sizes[None] == BATCH * HEADS * queries * KEYS
    assert sizes[8] <= max(BATCH * HEADS * queries * WIDTH, queries * KEYS)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.0)
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(
            2
        )


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_modules_and_functions_compiled() -> None:
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3))
    recipe = replace(recipes.get("bf16"), query_chunk=4)  # what is noisy draws anew, compiled
    eager, compiled = (quantize(Block(), recipe=recipe) for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    expected = trained(eager, [x.clone().requires_grad_()])
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    found = trained(run, [x.clone().requires_grad_()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_of_all_queries_where_they_are_asked_for() -> None:
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3))
    attention = quantize(Block(), recipe=replace(recipes.get("bf16"), query_chunk=4)).attention
    with torch.no_grad():
        output, weights = attention(x, x, x, average_attn_weights=False)
    assert weights.shape == (2, 2, 11, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 11))
    assert output.shape == x.shape


class Heads(nn.MultiheadAttention):
    """The same by torch's function."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        return F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight,
            self.in_proj_bias, None, None, False, 0.0, self.out_proj.weight, self.out_proj.bias,
        )  # fmt: skip


CHUNKED = replace(recipes.int8(), query_chunk=8)


@pytest.mark.parametrize(
    ("part", "own", "expected"),
    [("scores", None, [8, 8, 5]), ("context", replace(CHUNKED, query_chunk=11), [8, 8, 5]),
     ("context", replace(CHUNKED, query_chunk=5), [5, 5, 5, 5, 1])],
)  # fmt: skip
@pytest.mark.parametrize("kind", [ScaledDotProductAttention, nn.MultiheadAttention, Heads])
def test_an_override_of_one_product_leaves_the_chunks(
    kind: Any, part: str, own: Recipe | None, expected: list[int]
) -> None:
    plain = kind() if kind is ScaledDotProductAttention else kind(WIDTH, 1)
    inputs = [x.detach()[0, 0] for x in operands()]
    where = "functional.attention0." if kind is Heads else ""
    layer = quantize(plain, recipe=CHUNKED, overrides={where + part: own}, example_inputs=inputs)
    seen: list[int] = []
    context = layer.get_submodule(f"{where}context")
    context.register_forward_pre_hook(lambda module, args: seen.append(args[1].shape[-2]))
    layer(*inputs)
    assert seen == expected


def test_dropout_is_drawn_once() -> None:
    layer = converted(replace(recipes.int8(), query_chunk=8))
    query, key, _ = operands()
    # the gradient of the values' sum is the weights' sum over queries, which dropout scales
    value = torch.eye(KEYS).expand(BATCH, HEADS, KEYS, KEYS).clone().requires_grad_()
    torch.manual_seed(0)
    output = layer(query, key, value, dropout_p=0.5)
    output.sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad.sum(-1) / KEYS, output.sum(-2), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("given", [0, -1, 2.5, True, "all"])
def test_refused(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="query_chunk"):
        replace(recipes.int8(), query_chunk=given)


def test_kept_at_other_bits_and_said() -> None:
    recipe = replace(recipes.int8(), query_chunk=128)
    assert recipe.at(4).query_chunk == 128
    assert "128 queries at a time" in str(recipe)
