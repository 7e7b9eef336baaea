from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtrain import models, quantize, summary

TINY: dict[str, Any] = {"num_classes": 11, "context": 12, "width": 8, "depth": 2, "heads": 2}


def tokens(n: int = 3, length: int = 12, classes: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, classes, (n, length), generator=generator)


@pytest.mark.parametrize("name", models.names("text"))
def test_models_of_text_map_characters_to_logits(name: str) -> None:
    model = models.get(name, num_classes=11, context=12)
    for length in (12, 5, 1):  # any window up to the context
        assert model(tokens(length=length)).shape == (3, length, 11)


@pytest.mark.parametrize(
    "model",
    [models.CharTransformer(**TINY), models.CharLSTM(num_classes=11, width=8, depth=2)],
    ids=["transformer", "lstm"],
)
@pytest.mark.parametrize("recipe", ["fp32", "none"])
def test_no_logit_sees_a_later_character(model: nn.Module, recipe: str) -> None:
    model = (model if recipe == "none" else quantize(model, recipe=recipe)).eval()
    x = tokens()
    before = model(x)
    for place in range(1, 12):
        changed = x.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.isclose(after[:, place], before[:, place]).all()


def test_the_quantized_transformer_sees_of_later_characters_a_scale_at_most() -> None:
    torch.manual_seed(0)
    model = quantize(models.CharTransformer(**TINY))
    model.train()(tokens())
    model.eval()  # input scales are frozen; those of keys and values span the whole window
    before, changed = model(tokens()), tokens()
    changed[:, 6:] = 3
    moved = (model(changed) - before).square().mean((0, 2)).sqrt()
    assert moved[:6].max() < 0.05 * moved[6:].mean()  # a few of 8-bit steps of 1/127


def by_hand(model: models.CharTransformer, x: Tensor) -> Tensor:
    """The forward from the weights alone, with the mask written out."""
    w = {name: value.double() for name, value in model.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    length, heads = x.shape[1], TINY["heads"]
    h = w["embedding.weight"][x] + w["positions.weight"][:length]
    for i in range(TINY["depth"]):
        block = f"blocks.{i}"
        parts = linear(f"{block}.qkv", norm(f"{block}.norm1", h)).chunk(3, -1)
        outputs = []
        for q, k, v in zip(*(part.chunk(heads, -1) for part in parts), strict=True):
            scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
            seen = torch.ones(length, length).tril() > 0
            outputs.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
        h = h + linear(f"{block}.proj", torch.cat(outputs, -1))
        inner = linear(f"{block}.fc1", norm(f"{block}.norm2", h))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        h = h + linear(f"{block}.fc2", inner)
    return linear("fc", norm("norm", h))


def test_the_transformer_is_the_stated_function_of_its_weights() -> None:
    torch.manual_seed(0)
    model = models.CharTransformer(**TINY)
    with torch.no_grad():
        for parameter in model.parameters():  # initial biases and norms would hide an error
            parameter.normal_(0, 0.5)
        got = model(tokens())
    assert torch.allclose(got.double(), by_hand(model, tokens()), atol=1e-4)  # sums in fp32


def test_sizes_and_initialisation_are_as_stated() -> None:
    torch.manual_seed(0)
    model = models.get("chartransformer", num_classes=65, context=128)
    assert isinstance(model, models.CharTransformer)
    count = sum(p.numel() for p in model.parameters())
    block = 12 * 128**2 + 13 * 128  # qkv, proj, fc1, fc2 with biases (9 widths) and two norms
    assert count == 65 * 128 + 128 * 128 + 4 * block + 2 * 128 + 128 * 65 + 65
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            last = name.endswith(("proj.weight", "fc2.weight"))
            std = 0.02 / 8**0.5 if last else 0.02
            # 5 sigma of a standard deviation estimated from n normal samples
            assert abs(parameter.std() / std - 1) < 5 / (2 * parameter.numel()) ** 0.5, name
    lstm = models.get("charlstm", num_classes=65, context=128)
    assert sum(p.numel() for p in lstm.parameters()) == (
        65 * 128 + 4 * 128 * (128 + 128 + 2) + 128 * 65 + 65
    )


def test_the_norm_is_whatever_is_asked_for() -> None:
    made: list[int] = []

    def norm(features: int) -> nn.Module:
        made.append(features)
        return nn.RMSNorm(features)

    model = models.CharTransformer(**TINY, norm=norm)
    assert made == [8] * 5
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert model(tokens()).shape == (3, 12, 11)


@pytest.mark.parametrize(
    "make",
    [
        lambda dropout: models.CharTransformer(**TINY, dropout=dropout),
        lambda dropout: models.CharLSTM(num_classes=11, width=8, depth=2, dropout=dropout),
    ],
    ids=["transformer", "lstm"],
)
def test_dropout_acts_in_training_alone(make: Any) -> None:
    model = make(0.5)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(tokens()), model(tokens()))
    assert torch.equal(model.eval()(tokens()), model(tokens()))
    assert make(0.0).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads: got 3 with width 8; need a divisor"),
        ({"heads": 0}, "heads: got 0"),
        ({"depth": 0}, "depth: got 0"),
        ({"width": True}, "width: got True"),
        ({"num_classes": 0}, "num_classes: got 0"),
        ({"context": 0}, "context: got 0"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
    ],
)
def test_bad_sizes_of_models_of_text_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        models.CharTransformer(**{**TINY, **arguments})
    if not {"heads", "context"} & arguments.keys():
        with pytest.raises((ValueError, TypeError), match=message):
            models.CharLSTM(**{"num_classes": 11, "width": 8, "depth": 2, **arguments})


def test_a_window_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a window of 13 characters, .* at most 12"):
        models.CharTransformer(**TINY)(tokens(length=13))


@pytest.mark.parametrize("name", models.names("text"))
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (tokens()[0], ValueError, r"tokens: got \(12,\), need \(N, T\).*tokens\[None\]"),
        (tokens()[None], ValueError, r"tokens: got \(1, 3, 12\)"),
        (tokens().float(), TypeError, r"tokens: got torch.float32, need int64"),
        (tokens() > 3, TypeError, r"tokens: got torch.bool, need int64"),
        ("abc", TypeError, "tokens: got str"),
    ],
    ids=["one window", "three axes", "floating point", "bool", "str"],
)
def test_other_tokens_are_refused(name: str, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        models.get(name, num_classes=11, context=12)(given)


@pytest.mark.parametrize("name", models.names("text"))
@pytest.mark.parametrize(
    ("context", "error"), [(0, ValueError), (-1, ValueError), ("x", TypeError), (True, TypeError)]
)
def test_every_model_of_text_refuses_a_bad_context(name: str, context: Any, error: Any) -> None:
    with pytest.raises(error, match=rf"context: got {context!r}, need an integer of at least 1"):
        models.get(name, num_classes=11, context=context)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", {"context": 12}),
        ("chartransformer", {"in_channels": 1, "image_size": 8}),
        ("charlstm", {"in_channels": 1, "image_size": 8, "context": 12}),
        ("mlp", {"in_channels": 1}),
        ("charlstm", {}),
    ],
)
def test_sizes_of_another_kind_of_data_are_refused(name: str, sizes: dict[str, int]) -> None:
    pattern = rf"'{name}' is one of .*takes the sizes.*images: mlp, .*of text: charlstm, chartransf"
    with pytest.raises(ValueError, match=pattern):
        models.get(name, num_classes=11, **sizes)


def test_every_linear_and_attention_product_of_the_transformer_is_converted() -> None:
    model = quantize(models.CharTransformer(**TINY))
    found = summary(model, tokens())
    layers = {f"blocks.{i}.{name}" for i in range(2) for name in ("qkv", "proj", "fc1", "fc2")}
    attention = {f"blocks.{i}.attention" for i in range(2)}
    assert set(found.conversion.converted) == layers | attention | {"fc"}
    assert found.outside == {} and found.never_ran == []
    left = found.conversion.left
    assert {name for name, why in left.items() if "Embedding: a lookup" in why} == {
        "embedding", "positions",
    }  # fmt: skip
    assert {name for name, why in left.items() if "LayerNorm" in why} == {
        "norm", *(f"blocks.{i}.norm{k}" for i in range(2) for k in (1, 2)),
    }  # fmt: skip
    assert len(left) == 7


def test_every_product_of_the_lstm_is_converted() -> None:
    model = quantize(models.CharLSTM(num_classes=11, width=8))
    found = summary(model, tokens())
    assert set(found.conversion.converted) == {"fc", "lstm"}
    assert set(found.conversion.left) == {"embedding"}
    assert found.outside == {} and found.never_ran == []


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_the_transformer_learns_a_repeating_text(recipe: str) -> None:
    torch.manual_seed(0)
    model = quantize(models.CharTransformer(**TINY), recipe=recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.arange(13).expand(8, -1) * 3 % 11
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(11.0).log().item(), abs=0.1)  # knows nothing yet
    assert losses[-1] < losses[0] / 2
