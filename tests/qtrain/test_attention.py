"""Converted attention and transformers: every option against torch's own, train and eval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_oracle import NEAR
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import (
    ScaledDotProductAttention,
    quantize,
    recipes,
    summary,
)
from quantizers import Quantizer, fp16

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors"
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(plain: nn.Module, converted: nn.Module, call: Any) -> None:
    """Outputs and gradients of both, to fp32's rounding."""
    found = []
    for model in (plain, converted):
        model.zero_grad()
        output = call(model)
        outputs = [x for x in (output if isinstance(output, tuple) else (output,)) if x is not None]
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
        found.append((outputs, gradients(model)))
    (a, grads_a), (b, grads_b) = found
    assert len(a) == len(b) and set(grads_a) == set(grads_b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5, equal_nan=True)
    for name in grads_a:
        torch.testing.assert_close(grads_b[name], grads_a[name], rtol=1e-3, atol=1e-4, msg=name)


HIDDEN = torch.tensor([[False, True, False, False, True], [False] * 5, [False, True] * 2 + [True]])
UPPER = torch.ones(4, 5, dtype=torch.bool).triu(1)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "kdim, vdim": {"kdim": 6, "vdim": 10},
    "kdim, vdim, no bias": {"kdim": 6, "vdim": 10, "bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "batch_first": True},
    "bias_kv and zero attention": {"add_bias_kv": True, "add_zero_attn": True},
}
CALLS: dict[str, dict[str, Any]] = {
    "bare": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "bool mask": {"attn_mask": UPPER},
    "float mask": {"attn_mask": normal(4, 5, seed=8)},
    "3-D bool mask": {"attn_mask": UPPER.expand(6, 4, 5)},
    "3-D float mask": {"attn_mask": normal(6, 4, 5, seed=8), "need_weights": False},
    "padding": {"key_padding_mask": HIDDEN},
    "float padding": {"key_padding_mask": HIDDEN.float() * -1e4, "need_weights": False},
    "padding and mask": {"key_padding_mask": HIDDEN, "attn_mask": UPPER},
    "causal": {"attn_mask": UPPER, "is_causal": True, "need_weights": False},
}


def operands(options: dict[str, Any]) -> list[Tensor]:
    sizes = (8, options.get("kdim", 8), options.get("vdim", 8))
    shapes = [(length, 3, size) for length, size in zip((4, 5, 5), sizes, strict=True)]
    found = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    return [x.transpose(0, 1) for x in found] if options.get("batch_first") else found


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_multihead_attention_is_torchs(options: dict[str, Any], train: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **options).train(train)
    converted = quantize(plain, recipe=NEAR)
    appended = options.keys() & {"add_bias_kv", "add_zero_attn"}
    for name, kwargs in CALLS.items():
        if name == "causal" and appended:
            continue  # torch's causal kernel then hides the appended keys, which its mask does not
        agree(plain, converted, lambda m, k=kwargs: m(*operands(options), **k))
    with torch.no_grad():  # where torch would take its fast path
        x = operands(options)
        torch.testing.assert_close(converted(*x)[0], plain(*x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_unbatched_attention_is_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **options)
    converted = quantize(plain, recipe=NEAR)
    batch = 0 if options.get("batch_first") else 1
    x = [x.select(batch, 0) for x in operands(options)]
    for kwargs in (
        {},
        {"key_padding_mask": HIDDEN[0]},
        {"attn_mask": UPPER},
        {"attn_mask": UPPER.expand(2, 4, 5), "average_attn_weights": False},
    ):
        agree(plain, converted, lambda m, k=kwargs: m(*x, **k))


def test_a_query_that_may_see_nothing_is_torchs() -> None:
    """0 where torch's scaled_dot_product_attention gives 0, NaN where its softmax gives NaN."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    converted = quantize(plain, recipe=NEAR)
    x, hidden = normal(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    agree(plain, converted, lambda m: m(x, x, x, key_padding_mask=hidden, need_weights=False))
    for model in (plain, converted):
        assert bool(torch.isnan(model(x, x, x, key_padding_mask=hidden)[0][1]).all())


NAN, INF = float("nan"), float("inf")
ONE_ROW = torch.zeros(3, 3).index_fill_(0, torch.tensor(1), -INF)
ONE_HEAD = torch.zeros(4, 3, 3).index_fill_(0, torch.tensor(1), -INF)
ONE_HEAD[1, :2] = 0.0
LOSSES: dict[str, dict[str, Any]] = {
    "padding": {"key_padding_mask": torch.tensor([[False] * 3, [True] * 3])},
    "float padding": {"key_padding_mask": torch.tensor([[0.0] * 3, [-INF] * 3])},
    "one row": {"attn_mask": ONE_ROW == -INF},
    "one row by floats": {"attn_mask": ONE_ROW},
    "causal, padded to the left": {
        "attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.tensor([[False] * 3, [True, True, False]]),
    },
    "two masks of finite numbers": {
        "attn_mask": torch.full((3, 3), torch.finfo(torch.float32).min),
        "key_padding_mask": torch.tensor([[0.0] * 3, [torch.finfo(torch.float32).min] * 3]),
    },
    "one head's row": {"attn_mask": ONE_HEAD},
    "NaN in a row": {"attn_mask": torch.tensor([[0.0] * 3, [0.0, NAN, 0.0], [0.0] * 3])},
    "inf in a row": {"attn_mask": torch.tensor([[0.0] * 3, [0.0, INF, 0.0], [0.0] * 3])},
}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_row_is_lost_where_torchs_is(name: str, need_weights: bool, train: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True).train(train)
    x = normal(2, 3, 8)
    for average in (True, False):
        found = [
            model.train(train)(
                x, x, x, need_weights=need_weights, average_attn_weights=average, **LOSSES[name]
            )
            for recipe in (NEAR, recipes.int8(), recipes.banner2018())
            for model in (plain, quantize(plain, recipe=recipe))
        ]
        torch.testing.assert_close(*found[:2], rtol=1e-4, atol=1e-5, equal_nan=True)
        for outputs in found[3::2]:
            for got, expected in zip(outputs, found[0], strict=True):
                if expected is None:
                    assert got is None
                else:
                    assert torch.equal(got.isnan(), expected.isnan())
        assert need_weights <= bool(found[0][0].isnan().any())


def test_other_rows_keep_the_bits_they_would_have_without_a_lost_one() -> None:
    """Of twins, one is hidden; outputs, weights, gradients and running ranges are those of before,
    for a loss that ignores it."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    x = normal(1, 3, 8).expand(2, 3, 8)
    found = []
    for hidden in (False, True):
        converted = quantize(plain)
        leaf = x.clone().requires_grad_()
        padding = torch.tensor([[False] * 3, [hidden] * 3])
        output, weights = converted(leaf, leaf, leaf, key_padding_mask=padding)
        assert hidden == bool(output[1].isnan().all()) == bool(weights[1].isnan().all())
        (output[0].square().sum() + weights[0].square().sum()).backward()
        assert leaf.grad is not None
        state = converted.state_dict()
        low = state["context.forward_input_low"]  # softmax's least, which a range widens to 0
        assert bool(low.clamp_(max=0.0) == 0)
        parts = *gradients(converted).values(), *state.values()
        found.append([output[0], weights[0], leaf.grad, *parts])
    for before, after in zip(*found, strict=True):
        assert torch.equal(before, after)


def test_a_loss_that_counts_a_lost_row_is_told() -> None:
    converted = quantize(nn.MultiheadAttention(8, 2, batch_first=True))
    x, hidden = normal(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    output, _ = converted(x, x, x, key_padding_mask=hidden)
    output.square().sum().backward()
    assert all(bool(grad.isnan().any()) for grad in gradients(converted).values())


def test_a_lost_row_under_dropout_and_in_half_precision() -> None:
    torch.manual_seed(0)
    x, hidden = normal(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    for dtype in (torch.float32, torch.bfloat16):
        converted = quantize(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).to(dtype))
        output, weights = converted(*[x.to(dtype)] * 3, key_padding_mask=hidden)
        for found in (output, weights):
            assert found.dtype == dtype
            assert torch.equal(found.isnan().flatten(1).all(1), torch.tensor([False, True]))
            assert bool(found[0].isfinite().all())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_lost_rows_compile() -> None:
    torch.manual_seed(0)
    converted = quantize(nn.MultiheadAttention(8, 2, batch_first=True))
    x, hidden = normal(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    expected = converted(x, x, x, key_padding_mask=hidden)
    for got, want in zip(compiled(x, x, x, key_padding_mask=hidden), expected, strict=True):
        assert torch.equal(got[0], want[0]) and bool((got[1].isnan() & want[1].isnan()).all())
    compiled(x, x, x, key_padding_mask=hidden)[0][0].sum().backward()
    assert all(bool(grad.isfinite().all()) for grad in gradients(converted).values())


@pytest.mark.parametrize("recipe", ["int8", "banner2018", "bf16"])
def test_a_row_that_a_mask_makes_nan_is_alone(recipe: str) -> None:
    """In the functional's module, where a hidden row is 0."""
    attend = quantize(ScaledDotProductAttention(), recipe=recipe)
    q = normal(2, 2, 3, 8)
    mask = torch.zeros(3, 3)
    mask[0] = -INF
    expected = attend(q, q, q, mask)
    mask[0, 1] = NAN
    output = attend(q, q, q, mask)
    assert bool(output[:, :, 0].isnan().all())
    assert torch.equal(output[:, :, 1:], expected[:, :, 1:])
    assert not expected[:, :, 0].any() and bool(expected.isfinite().all())


def test_attention_to_no_key_is_torchs() -> None:
    attend = quantize(ScaledDotProductAttention(), recipe=NEAR)
    q, k = normal(2, 3, 8), normal(2, 0, 8)
    mask = torch.ones(3, 0, dtype=torch.bool)
    assert torch.equal(attend(q, k, k, mask), F.scaled_dot_product_attention(q, k, k, mask))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"attn_mask": torch.zeros(1, 5)}, ValueError, r"attn_mask has shape \(1, 5\), need"),
        ({"attn_mask": torch.zeros(3, 4, 5)}, ValueError, r"need \(4, 5\) or \(6, 4, 5\)"),
        ({"key_padding_mask": HIDDEN.T}, ValueError, r"key_padding_mask .* need \(3, 5\)"),
        ({"attn_mask": UPPER.to(torch.uint8)}, TypeError, "attn_mask is torch.uint8, need bool"),
        ({"is_causal": True}, ValueError, "pass attn_mask"),
    ],
    ids=["narrow", "heads", "transposed padding", "bytes", "causal alone"],
)
def test_wrong_masks_are_refused(kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(nn.MultiheadAttention(8, 2))(*operands({}), **kwargs)


def test_dropout_is_torchs_draw() -> None:
    """Dropout acts on the weights, as torch's, and not in evaluation."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, dropout=0.5)
    converted = quantize(plain, recipe=NEAR)
    found = []
    for model in (plain, converted):
        torch.manual_seed(5)
        found.append(model(*operands({}))[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    first, second = (converted.eval()(*operands({}))[0] for _ in range(2))
    assert torch.equal(first, second)


SDPA: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "4-D": (((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)), {}),
    "2-D": (((4, 8), (5, 8), (5, 6)), {}),
    "causal": (((2, 3, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8)), {"is_causal": True}),
    "causal, longer keys": (((2, 4, 8), (2, 6, 8), (2, 6, 8)), {"is_causal": True}),
    "bool mask": (((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)), {"attn_mask": ~UPPER}),
    "mask with a hidden row": (
        ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)),
        {"attn_mask": torch.arange(4)[:, None].expand(4, 5) > 0},
    ),
    "float mask": (((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)), {"attn_mask": normal(2, 1, 4, 5)}),
    "scale": (((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)), {"scale": 0.1}),
    "grouped queries": (((2, 6, 4, 8), (2, 2, 5, 8), (2, 2, 5, 6)), {"enable_gqa": True}),
    "grouped and causal": (
        ((2, 6, 4, 8), (2, 3, 4, 8), (2, 3, 4, 6)), {"enable_gqa": True, "is_causal": True}),
    "empty batch": (((0, 3, 4, 8), (0, 3, 5, 8), (0, 3, 5, 6)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention_is_torchs(name: str) -> None:
    shapes, kwargs = SDPA[name]
    converted = quantize(ScaledDotProductAttention(), recipe=NEAR)
    found = []
    for attend in (F.scaled_dot_product_attention, ScaledDotProductAttention(), converted):
        q, k, v = (normal(*s, seed=i).requires_grad_() for i, s in enumerate(shapes))
        output = attend(q, k, v, **kwargs)
        output.square().sum().backward()
        found.append((output, q.grad, k.grad, v.grad))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_causal_and_a_mask_at_once_are_refused() -> None:
    x = normal(1, 4, 8)
    with pytest.raises(ValueError, match="is_causal and attn_mask were both given"):
        quantize(ScaledDotProductAttention())(x, x, x, torch.ones(4, 4).bool(), is_causal=True)


def encoder(**kwargs: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    options = {"batch_first": True, "dropout": 0.0, **kwargs}
    layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"norm_first": True}, {"activation": "gelu"}, {"batch_first": False}, {"bias": False}],
    ids=str,
)
def test_an_encoder_is_torchs_in_training_and_evaluation(kwargs: dict[str, Any]) -> None:
    plain = encoder(**kwargs)
    converted = quantize(plain, recipe=NEAR)
    x = normal(3, 5, 8) if kwargs.get("batch_first", True) else normal(5, 3, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    kept = ~hidden if kwargs.get("batch_first", True) else ~hidden.T
    for train in (True, False):
        plain.train(train)
        converted.train(train)
        agree(plain, converted, lambda m: m(x))
        agree(plain, converted, lambda m: m(x, mask=causal))
        agree(plain, converted, lambda m: m(x, mask=causal, is_causal=True))
        agree(plain, converted, lambda m: m(x, src_key_padding_mask=hidden)[kept])


def test_evaluation_without_gradients_takes_no_fast_path() -> None:
    """8 bits under no_grad with a padding mask: the same as with gradients, and not torch's."""
    plain = encoder().eval()
    converted = quantize(plain).eval()
    x, hidden = normal(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    hidden[:, 4:] = True
    with_gradients = converted(x, src_key_padding_mask=hidden)
    with torch.no_grad():
        without = converted(x, src_key_padding_mask=hidden)
        other = plain(x, src_key_padding_mask=hidden)
        found = summary(converted, x, src_key_padding_mask=hidden)
    assert torch.equal(with_gradients, without)
    assert not torch.allclose(without[:, :4], other[:, :4], atol=1e-4)
    assert not found.outside and not found.never_ran


def test_an_encoder_that_is_off_keeps_torchs_fast_path() -> None:
    plain = encoder().eval()
    off = quantize(plain, recipe="fp32").eval()
    x, hidden = normal(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    with torch.no_grad():
        for kwargs in ({}, {"src_key_padding_mask": hidden}):
            assert torch.equal(plain(x, **kwargs), off(x, **kwargs))


@pytest.mark.parametrize("pattern", ["layers.0.linear1", "layers.*.self_attn", "layers.1"])
def test_a_layer_with_one_quantized_child_takes_no_fast_path(pattern: str) -> None:
    """Also where the encoder layer itself is left."""
    converted = quantize(encoder(), overrides={pattern: 4, "*": None}).eval()
    x = normal(3, 5, 8)
    with_gradients = converted(x)
    with torch.no_grad():  # a layer without one keeps torch's path and its other order of sums
        torch.testing.assert_close(converted(x), with_gradients, rtol=1e-5, atol=1e-5)
    plain = encoder().eval()
    assert not torch.allclose(with_gradients, plain(x), atol=1e-3)


def test_an_output_projection_cannot_outlive_its_attention() -> None:
    overrides = {"layers.0.self_attn.out_proj": 8, "layers.0.self_attn": None}
    with pytest.raises(ValueError, match=r"'layers.0.self_attn.out_proj' cannot be quantized"):
        quantize(encoder(), overrides=overrides)
    quantize(encoder(), overrides={"layers.0.self_attn.out_proj": None})(normal(2, 3, 8))
    # off is not left: the projection still runs
    off = quantize(encoder(), recipe="fp32", overrides={"*.out_proj": recipes.int8()})
    x = normal(2, 3, 8)
    assert not torch.equal(off(x), quantize(encoder(), recipe="fp32")(x))


@pytest.mark.parametrize("recipe", ["int8", "banner2018", "bf16"])
def test_torchs_transformer_trains_and_evaluates(recipe: str) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
    converted = quantize(model, recipe=recipe)
    source, target = normal(4, 6, 16), normal(4, 5, 16, seed=1)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    optimizer = torch.optim.Adam(converted.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (converted(source, target, tgt_mask=causal) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    converted.eval()
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, 4:] = True
    with torch.no_grad():
        output = converted(source, target, src_key_padding_mask=hidden)
        inside = summary(converted, source, target)
    assert bool(torch.isfinite(output).all()) and not inside.outside and not inside.never_ran


def test_a_decoder_is_torchs() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    plain = nn.TransformerDecoder(layer, 2)
    converted = quantize(plain, recipe=NEAR)
    x, memory = normal(2, 4, 8), normal(2, 5, 8, seed=1)
    for train in (True, False):
        agree(plain.train(train), converted.train(train), lambda m: m(x, memory))
        agree(plain, converted, lambda m: m(x, memory, tgt_mask=UPPER[:, :4]))


def test_attention_under_autocast_and_in_half_precision() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    recipe = replace(recipes.fp16(), activation=None, name="fp16 operands")
    assert recipe.forward.input == Quantizer(format=fp16, range=None)
    x = normal(2, 4, 8)
    exact = plain(x, x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantize(plain, recipe=recipe)(x, x, x)[0]
    assert cast.dtype == torch.bfloat16
    half = quantize(plain.bfloat16(), recipe=recipe)(*[x.bfloat16()] * 3)[0]
    for found in (cast, half):  # a few roundings of 2^-8
        assert (found - exact).abs().max() < 0.03 * exact.abs().max() + 0.01
