from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import NormRecipe, plain_state_dict, quantize, summary
from qtrain.conversion.kinds import convert_norm_
from qtrain.norms.constants import largest_factor, range_factor
from qtrain.norms.deviations import Deviation, l1, l2, linf, none, range_, topk
from qtrain.norms.row import QGroupNorm, QLayerNorm, QRMSNorm
from quantizers import Quantizer, bf16, e4m3, fp16, int8, per_axis, stochastic

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(6), (3, 4, 6)),
    "layer-2d": (lambda: nn.LayerNorm((2, 6)), (3, 2, 6)),
    "layer-no-bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "layer-plain": (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "rms": (lambda: nn.RMSNorm(6, eps=1e-3), (3, 4, 6)),
    "rms-eps-of-dtype": (lambda: nn.RMSNorm(6), (3, 6)),
    "group": (lambda: nn.GroupNorm(2, 4), (3, 4, 2, 3)),
    "group-1d": (lambda: nn.GroupNorm(2, 4), (3, 4)),
    "group-of-channels": (lambda: nn.GroupNorm(4, 4), (2, 4, 5)),
}
DEVIATIONS = [l2(), l2(times=2), l1(), l1(times=0.25), linf(), topk(2), range_(), none()]
CARRIES = ("exact", "l2", "detached")


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A norm of torch with parameters away from 1 and 0, and an input for it."""
    make, shape = KINDS[kind]
    generator = torch.Generator().manual_seed(3)
    norm = make().to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator))
    return norm, torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * 2 + 0.5


def converted(norm: nn.Module, recipe: NormRecipe) -> Any:
    norm = copy.deepcopy(norm)
    convert_norm_(norm, recipe)
    return norm


def all_of(norm: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and every gradient."""
    x = x.detach().requires_grad_()
    output = norm(x)
    leaves = [x, *(p for p in norm.parameters() if p.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def rows_of(norm: Any, x: Tensor) -> Tensor:
    """(rows, elements): what each statistic is taken over."""
    if isinstance(norm, nn.GroupNorm):
        return x.reshape(x.shape[0] * norm.num_groups, -1)
    return x.reshape(-1, math.prod(norm.normalized_shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_l2_agrees_with_torch(kind: str, dtype: torch.dtype) -> None:
    norm, x = made(kind, dtype)
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    # detached statistics would show: the recipe differs from torch in the name of its norm alone
    ours = converted(norm, NormRecipe(deviation=l2()))
    for ours_, torchs in zip(all_of(ours, x, grad), all_of(norm, x, grad), strict=True):
        assert ours_.dtype == torchs.dtype
        # one rounding to dtype on either side, and sums of 24 terms in another order
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(ours_, torchs, rtol=4 * unit, atol=30 * unit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_rms_norms_own_eps_is_torchs_where_it_counts(dtype: torch.dtype) -> None:
    norm = nn.RMSNorm(8, elementwise_affine=False)
    x = (torch.randn(4, 8, dtype=torch.float64) * 3e-4).to(dtype)
    ours = converted(norm, NormRecipe(deviation=l2()))
    torch.testing.assert_close(ours(x), norm(x))
    quantized = converted(norm, NormRecipe(deviation=l2(), input=Quantizer(format=fp16)))
    torch.testing.assert_close(quantized(x), norm(x), rtol=4e-3, atol=4e-3)  # fp16's subnormals


def test_a_nested_tensor_is_refused_by_name() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)], layout=torch.jagged)
    ours = converted(nn.LayerNorm(6), NormRecipe(deviation=l1()))
    with pytest.raises(TypeError, match="QLayerNorm: got a nested tensor; pad it"):
        ours(nested)


@pytest.mark.parametrize("deviation", [l1(), linf(), topk(2), range_(), none()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_divisor_is_the_deviation_of_each_row(kind: str, deviation: Deviation) -> None:
    norm, x = made(kind)
    if isinstance(norm, nn.RMSNorm) and deviation == none():
        pytest.skip("refused: nothing would be left")
    output = converted(norm, NormRecipe(deviation=deviation))(x)
    rows = rows_of(norm, x)
    centered = rows if isinstance(norm, nn.RMSNorm) else rows - rows.mean(1, keepdim=True)
    n, ordered = rows.shape[1], centered.abs().sort(1, descending=True).values
    factor = {
        "l1": lambda: math.sqrt(math.pi / 2) * ordered.mean(1),
        "linf": lambda: ordered[:, 0] / largest_factor("exact", n, 1) ** -1,
        "topk": lambda: ordered[:, : min(2, n)].mean(1) * largest_factor("exact", n, min(2, n)),
        "range": lambda: (rows.amax(1) - rows.amin(1)) * range_factor("exact", n),
        "none": lambda: torch.ones(len(rows)),
    }
    sigma = factor[deviation.name]().double()
    eps = torch.finfo(torch.float64).eps if norm.eps is None else norm.eps
    eps = 0.0 if deviation == none() else eps
    expected = (centered / (sigma + eps).unsqueeze(1)).view(x.shape)
    weight, bias = norm.weight, getattr(norm, "bias", None)
    space = [1, -1, *[1] * (x.dim() - 2)] if isinstance(norm, nn.GroupNorm) else None
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            expected = apply(expected, parameter.view(space) if space else parameter)
    torch.testing.assert_close(output, expected)  # float64 rounding only


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind: str, deviation: Deviation) -> None:
    norm, x = made(kind)
    if isinstance(norm, nn.RMSNorm) and deviation == none():
        pytest.skip("refused: nothing would be left")
    ours = converted(norm, NormRecipe(deviation=deviation))
    names = [name for name, p in ours.named_parameters() if p.requires_grad]
    leaves = [x.requires_grad_(), *(ours.get_parameter(name) for name in names)]
    assert torch.autograd.gradcheck(
        lambda x, *own: torch.func.functional_call(ours, dict(zip(names, own, strict=True)), (x,)),
        leaves,
    )


@pytest.mark.parametrize("carry", ["l2", "detached"])
@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_other_gradients_of_the_statistic(kind: str, carry: Any) -> None:
    norm, x = made(kind)
    ours = converted(norm, NormRecipe(deviation=range_(), statistics_gradient=carry))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.ones_like(parameter))
    grad = torch.randn_like(x)
    grad_input = rows_of(norm, all_of(ours, x, grad)[1])
    rows = rows_of(norm, x)
    centered = rows if kind == "rms" else rows - rows.mean(1, keepdim=True)
    along = (grad_input * centered).sum(1)
    if carry == "l2":  # nothing along the centered input
        torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)
    else:
        g = rows_of(norm, grad)
        g = g if kind == "rms" else g - g.mean(1, keepdim=True)
        torch.testing.assert_close(
            grad_input / grad_input[:, :1], g / g[:, :1]
        )  # the same, times a number for each row


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_a_transposed_input_gives_the_same_bits(kind: str) -> None:
    norm, x = made(kind, torch.float32)
    ours = converted(norm, NormRecipe(deviation=l1()))
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    grad = torch.randn_like(x)
    for a, b in zip(all_of(ours, x, grad), all_of(ours, turned, grad), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
@pytest.mark.parametrize("deviation", [l2(times=2), l1(), linf(), range_()], ids=str)
def test_compiled_norm_is_one_graph_with_the_same_result(kind: str, deviation: Deviation) -> None:
    torch._dynamo.reset()
    norm, x = made(kind, torch.float32)
    ours = converted(norm, NormRecipe(deviation=deviation))
    grad = torch.randn_like(x)
    expected = all_of(ours, x, grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, in its tracer
        run = torch.compile(ours, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(all_of(run, x, grad), expected)


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_autocast_gives_the_dtype_of_torch(kind: str) -> None:
    norm, x = made(kind, torch.float32)
    ours = converted(norm, NormRecipe(deviation=l1()))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's rms_norm tells of its own slow path
            assert ours(x.to(dtype)).dtype == norm(x.to(dtype)).dtype


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_quantized_operands_equal_a_norm_of_their_values(kind: str) -> None:
    norm, x = made(kind, torch.float32)
    quantizer, rounded = Quantizer(format=e4m3), Quantizer(format=int8)
    recipe = NormRecipe(deviation=l1(), input=rounded, weight=quantizer, bias=quantizer)
    ours = converted(norm, recipe)
    plain = converted(norm, NormRecipe(deviation=l1()))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(quantizer(parameter).dequantize())
    assert torch.equal(ours(x), plain(rounded(x).dequantize()))


def test_the_gradient_that_enters_is_quantized_with_the_norms_own_noise() -> None:
    norm, x = made("layer", torch.float32)
    recipe = NormRecipe(deviation=l1(), grad_output=Quantizer(format=int8, rounding=stochastic()))
    ours = converted(norm, recipe)
    grad = torch.randn_like(x)
    first, second = all_of(ours, x, grad), all_of(ours, x, grad)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])  # another step, another draw
    bias = first[3]  # the sum of the quantized gradient: codes times one scale
    codes = bias / (grad.abs().amax() / 127)
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert not torch.allclose(bias, grad.flatten(0, -2).sum(0), atol=1e-4)


@pytest.mark.parametrize("fmt", [fp16, bf16], ids=str)
def test_the_output_is_rounded_to_the_activation(fmt: Any) -> None:
    norm, x = made("layer", torch.float32)
    exact = converted(norm, NormRecipe(deviation=l1()))(x)
    output = converted(norm, NormRecipe(deviation=l1(), activation=fmt))(x)
    dtype = {fp16: torch.float16, bf16: torch.bfloat16}[fmt]
    assert torch.equal(output, exact.to(dtype).float())


def test_wrong_inputs_are_named() -> None:
    layer = converted(nn.LayerNorm((2, 6)), NormRecipe(deviation=l1()))
    with pytest.raises(ValueError, match=r"\(3, 6\), need \(2, 6\)"):
        layer(torch.randn(3, 6))
    group = converted(nn.GroupNorm(2, 4), NormRecipe(deviation=l1()))
    with pytest.raises(ValueError, match=r"\(3, 5\), need \(N, 4, \.\.\.\)"):
        group(torch.randn(3, 5))
    with pytest.raises(TypeError, match="int64"):
        layer(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="more than 1 value per group"):
        converted(nn.GroupNorm(4, 4), NormRecipe(deviation=l1()))(torch.randn(2, 4))


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_empty_input_is_torchs(kind: str) -> None:
    norm, x = made(kind, torch.float32)
    ours = converted(norm, NormRecipe(deviation=l1()))
    assert ours(x[:0]).shape == norm(x[:0]).shape


def test_a_row_that_is_constant_or_not_finite_stays_by_itself() -> None:
    for deviation in (l1(), linf(), topk(2), range_()):
        ours = converted(nn.LayerNorm(4), NormRecipe(deviation=deviation))
        x = torch.tensor([[1.0, 2, 3, 4], [5, 5, 5, 5], [1, math.nan, 2, 3], [1, math.inf, 2, 3]])
        x.requires_grad_()
        output = ours(x)
        output.sum().backward()
        grad = x.grad
        assert grad is not None
        assert torch.isfinite(output[:2]).all() and torch.equal(output[1], torch.zeros(4))
        assert torch.isfinite(grad[:2]).all()
        assert not torch.isfinite(output[2:]).any()


class _Own(nn.LayerNorm):
    """A user's own, of twice the norm."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.layer_norm(2 * super().forward(input), self.normalized_shape)


@pytest.mark.filterwarnings("ignore:norm. . of 5 norms of Sequential stay:UserWarning")
def test_quantize_converts_the_norms_of_a_model_where_asked() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
        nn.GroupNorm(2, 8),
        _Own(8),
        nn.LayerNorm(1),
    )
    kinds = [type(m) for m in quantize(model, norm="l1")]
    assert kinds[1:4] == [QLayerNorm, QRMSNorm, QGroupNorm] and kinds[4:] == [_Own, nn.LayerNorm]
    left = summary(quantize(model, norm="l1")).left
    assert "a subclass of LayerNorm" in left["4"] and "one element" in left["5"]
    assert [type(m) for m in quantize(model)][1:4] == [nn.LayerNorm, nn.RMSNorm, nn.GroupNorm]
    assert "norms are left unless asked" in summary(quantize(model)).left["1"]
    mean_only = quantize(model, norm="none")
    assert "leaves nothing" in summary(mean_only).left["2"]
    norm: Any = mean_only[1]
    assert not norm.weight.requires_grad and norm.bias.requires_grad


def test_a_plain_state_loads_strictly_both_ways() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8))
    ours = quantize(model, norm="l1")
    model.load_state_dict(plain_state_dict(ours))
    ours.load_state_dict(model.state_dict())


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_torchs_inference_path_does_not_skip_a_converted_norm(recipe: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    ours = quantize(layer, recipe=recipe, norm="l1")
    ours(x)
    ours.eval()
    with torch.no_grad():
        fast = ours(x)
    slow = ours(x)  # a graph is kept: torch never takes its fast path there
    torch.testing.assert_close(fast, slow)  # fp32 products of either path
    assert isinstance(ours.norm1, QLayerNorm)
    assert not torch.allclose(fast, layer.eval()(x), atol=1e-3)  # l1 is another norm


class _OwnPart(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        out: Tensor = super()._ff_block(x)  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_nor_in_a_subclass_that_is_left(recipe: str) -> None:
    layer = _OwnPart(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first forward names what is left
        ours = quantize(layer, recipe=recipe, norm="l1")
        ours(x)
    ours.eval()
    with torch.no_grad():
        fast = ours(x)
    torch.testing.assert_close(fast, ours(x))


def test_a_norm_that_no_module_can_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm: got 'l1', but Sequential has no norm"):
        quantize(nn.Sequential(nn.Linear(3, 3)), norm="l1")


def test_an_l1_transformer_trains() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = quantize(nn.Sequential(layer, nn.Flatten(), nn.Linear(80, 3)), norm="l1")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.randn(30, 5, 16), torch.arange(30) % 3
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_quantizers_that_need_axes_of_the_data_are_checked() -> None:
    recipe = NormRecipe(deviation=l1(), weight=Quantizer(format=int8, granularity=per_axis(0)))
    ours = converted(nn.LayerNorm(6), recipe)
    # a scale for each element: every element is its own absolute maximum, and so exact
    norm = converted(nn.LayerNorm(6), NormRecipe(deviation=l1()))
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours(x), norm(x), rtol=1e-6, atol=1e-6)


def test_every_pair_of_kind_and_carry_prints_itself() -> None:
    for kind, carry in itertools.product(("layer", "rms", "group"), CARRIES):
        norm, _ = made(kind, torch.float32)
        recipe = NormRecipe(deviation=l1(), statistics_gradient=carry)
        assert repr(converted(norm, recipe)).endswith("; l1(exact))")
        assert carry == "exact" or carry in str(recipe)


def test_the_summary_says_how_norms_are_computed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    text = str(summary(quantize(model, norm="l1")))
    assert "; norm l1(exact)" in text
    assert "; norm" not in str(summary(quantize(model)))
    with pytest.raises(ValueError, match=r"norm: got 'L1', need one of .*did you mean 'l1'"):
        quantize(model, norm="L1")
