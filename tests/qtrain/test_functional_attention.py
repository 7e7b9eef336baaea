"""F.multi_head_attention_forward in a user's own module: nn.MultiheadAttention's conversion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import ScaledDotProductAttention, quantize, set_recipe, summary
from qtrain.products.module import QProduct, products_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Own(nn.MultiheadAttention):
    """With a forward of its own, and options of the function."""

    options: dict[str, Any]

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        return F.multi_head_attention_forward(
            *inputs, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias,
            self.bias_k, self.bias_v, self.add_zero_attn, self.dropout, self.out_proj.weight,
            self.out_proj.bias, training=self.training,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight, k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight, **options,
        )  # fmt: skip


def made(kind: type[nn.MultiheadAttention], **settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = kind(8, 2, **settings)
    for p in module.parameters():  # biases too
        p.data.add_(0.1 * draw(*p.shape, seed=1))
    return module


LAYERS = {
    "q_proj": "linear0", "k_proj": "linear1", "v_proj": "linear2", "scores": "attention0.scores",
    "context": "attention0.context", "out_proj": "linear3",
}  # fmt: skip


def names(model: nn.Module) -> dict[str, QProduct]:
    return {product.name: product for product in products_of(model)}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "no weights": ({"bias": False}, {"need_weights": False}),
    "each head's weights": ({}, {"average_attn_weights": False}),
    "masks": (
        {}, {
            "attn_mask": draw(5, 6, seed=4) > 0.5,
            "key_padding_mask": torch.tensor([[False] * 5 + [True], [False] * 6]),
        },
    ),
    "a mask for each head": ({}, {"attn_mask": draw(4, 5, 6, seed=5), "need_weights": False}),
    "causal": (
        {}, {"attn_mask": torch.ones(5, 6).triu(1).bool(), "is_causal": True,
             "need_weights": False},
    ),
    "appended": ({"add_bias_kv": True, "add_zero_attn": True}, {"attn_mask": draw(5, 6, seed=6)}),
    "separate": ({"kdim": 6, "vdim": 4}, {}),
    "dropout": ({"dropout": 0.3}, {}),
}  # fmt: skip


def stepped(model: nn.Module, settings: dict[str, Any], options: dict[str, Any]) -> list[Tensor]:
    """Outputs and gradients of the second of two steps."""
    inputs = [draw(5, 2, 8, seed=1), draw(6, 2, 8, seed=2), draw(6, 2, 8, seed=3)]
    sizes = 8, settings.get("kdim", 8), settings.get("vdim", 8)
    for step in range(2):
        model.zero_grad()
        torch.manual_seed(step)
        given = [x[..., :n].clone().requires_grad_() for x, n in zip(inputs, sizes, strict=True)]
        output, weights = model(*given, **options)
        loss = (output * draw(*output.shape, seed=7)).sum()
        if weights is not None:
            loss = loss + (weights * draw(*weights.shape, seed=8)).sum()
        loss.backward()
    found = [output, weights, *(x.grad for x in given), *(p.grad for p in model.parameters())]
    return [x.detach() for x in found if x is not None]


@pytest.mark.parametrize("recipe", ["int8", "fp8"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_modules_conversion_bit_for_bit(case: str, recipe: str) -> None:
    settings, options = CASES[case]
    model = quantize(made(Own, **settings), recipe=recipe)
    twin = quantize(made(nn.MultiheadAttention, **settings), recipe=recipe)
    with torch.no_grad():
        model.eval()(*(draw(2, 2, settings.get(n, 8)) for n in ("", "kdim", "vdim")))
    own, others = names(model.train()), names(twin)
    assert {f"functional.{name}" for name in LAYERS.values()} == set(own)
    for name, layer in LAYERS.items():
        others[name].noise_key.copy_(own[f"functional.{layer}"].noise_key)
    got, expected = stepped(model, settings, options), stepped(twin, settings, options)
    plain = stepped(made(Own, **settings), settings, options)
    for one, other, unquantized in zip(got, expected, plain, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, unquantized, atol=0.5, rtol=0.5)
    assert not torch.equal(got[0], plain[0])
    set_recipe(model, "fp32")
    for one, unquantized in zip(stepped(model, settings, options), plain, strict=True):
        assert torch.equal(one, unquantized)


def test_keys_and_values_that_are_given_are_not_projected() -> None:
    static = {"static_k": draw(4, 3, 4, seed=5), "static_v": draw(4, 3, 4, seed=6)}
    own = made(Own)
    model = quantize(own, recipe="fp8")
    x = draw(5, 2, 8)
    output, weights = model(x, x, x, need_weights=False, **static)
    assert weights is None and list(names(model)) == [
        "functional.linear0", "functional.attention0.scores", "functional.attention0.context",
        "functional.linear1",
    ]  # fmt: skip
    query, out = nn.Linear(8, 8), nn.Linear(8, 8)
    query.load_state_dict({"weight": own.in_proj_weight[:8], "bias": own.in_proj_bias[:8]})
    out.load_state_dict(own.out_proj.state_dict())
    parts = quantize(nn.ModuleList([query, ScaledDotProductAttention(), out]), recipe="fp8")
    q = parts[0](x.transpose(0, 1)).unflatten(2, (2, 4)).transpose(1, 2)
    k, v = (static[name].view(2, 2, 3, 4) for name in ("static_k", "static_v"))
    expected = parts[2](parts[1](q, k, v).transpose(1, 2).flatten(2)).transpose(0, 1)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("left", ["attention0", "linear3", "linear1"])
def test_a_part_that_is_left_is_torchs(left: str) -> None:
    model = quantize(made(Own), recipe="fp8", overrides={f"functional.{left}": None})
    whole = quantize(made(Own), recipe="fp8")
    x = draw(5, 2, 8)
    assert not torch.equal(model(x, x, x)[0], whole(x, x, x)[0])
    kept = {f"functional.{name}" for name in LAYERS.values() if not name.startswith(left)}
    assert set(names(model)) == kept
    shown = summary(model, x, x, x)
    assert list(shown.outside or {}) == ["(model)"] and not shown.never_ran
    assert shown.share is not None and 0 < shown.share.value < 1


def test_attention_with_no_batch_and_what_torch_refuses() -> None:
    model, batched = quantize(made(Own), recipe="fp8"), quantize(made(Own), recipe="fp8")
    x = draw(5, 8)
    output, weights = model(x, x, x, key_padding_mask=torch.arange(5) > 3)
    expected = batched(*[x[:, None]] * 3, key_padding_mask=torch.arange(5)[None] > 3)
    assert torch.equal(output, expected[0][:, 0]) and torch.equal(weights, expected[1][0])
    with pytest.raises(AssertionError, match="embedding dimension of 8, but got 6"):
        model(draw(5, 2, 6), draw(5, 2, 6), draw(5, 2, 6))
    with pytest.raises(ValueError, match=r"attn_mask has shape \(3, 3\), need \(5, 5\)"):
        model(x, x, x, attn_mask=draw(3, 3))
