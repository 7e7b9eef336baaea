from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from qtrain import Arithmetic, plain_state_dict, quantize
from qtrain.conversion.kinds import can_convert, convert_norm_
from qtrain.norms import deviations
from qtrain.norms.batch import QBatchNorm1d, QBatchNorm2d, QBatchNorm3d
from qtrain.norms.constants import expected_range
from qtrain.norms.deviations import Deviation, l1, l2, linf, range_, topk
from qtrain.norms.module import ROLES
from qtrain.norms.recipe import NormRecipe
from qtrain.norms.sync import QSyncBatchNorm
from quantizers import (
    FloatFormat,
    IntFormat,
    QTensor,
    Quantizer,
    e4m3,
    fold,
    fp16,
    fp32,
    int8,
    percentile,
    stochastic,
)

ALL = [
    l2(),
    l1(),
    l1("paper"),
    linf(),
    linf("code"),
    topk(3),
    topk(3, "code"),
    range_(),
    range_(3),
    range_(1, "paper"),
    range_(3, "paper"),
    range_(1, "code"),
    range_(3, "code"),
    l2(times=3),
    l1(times=0.25),
    linf(times=4),
    topk(3, times=4),
    range_(3, times=0.25),
]
ONE_EACH = [l2(), l1(), linf(), topk(3), range_(), range_(4)]
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SHAPES = {"1d": (11, 2), "1d-length": (3, 2, 5), "2d": (3, 2, 3, 2), "3d": (2, 2, 2, 3, 2)}


def norm_for(x: Tensor, recipe: NormRecipe | None = None, **settings: Any) -> Any:
    """A converted torch norm for x, its scale and shift away from 1 and 0."""
    norm: Any = NORMS[max(1, x.dim() - 2)](x.shape[1], **settings).to(x.dtype)
    if norm.affine:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            norm.weight.copy_(1 + torch.rand(x.shape[1], generator=generator))
            norm.bias.copy_(torch.randn(x.shape[1], generator=generator))
    if recipe is not None:
        convert_norm_(norm, recipe)
    return norm


def gaussian(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def gradients(norm: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, gradient of the input, and of the parameters there are."""
    x = x.detach().requires_grad_()
    output = norm(x)
    return [output.detach(), *torch.autograd.grad(output, [x, *norm.parameters()], grad)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("deviation", ALL, ids=str)
def test_analytic_gradients_equal_finite_differences(
    deviation: Deviation, shape: tuple[int, ...], affine: bool
) -> None:
    x = gaussian(*shape, dtype=torch.float64, scale=2).requires_grad_()
    norm = norm_for(x, NormRecipe(deviation=deviation), affine=affine, track_running_stats=False)
    leaves = [x, *norm.parameters()]
    # gradcheck's own tolerances; differences of 1e-6 swap no two extremes of this sample
    assert torch.autograd.gradcheck(
        lambda x, *parameters: torch.func.functional_call(
            norm, dict(zip(("weight", "bias"), parameters, strict=False)), (x,)
        ),
        leaves,
    )


@pytest.mark.parametrize("make", [l2, l1, linf, topk, range_], ids=lambda make: make.__name__)
def test_times_divides_the_output_and_squares_into_the_running_variance(
    make: Callable[..., Deviation],
) -> None:
    x, grad = gaussian(8, 3, 4, 4), gaussian(8, 3, 4, 4, seed=1)
    settings: dict[str, Any] = {"affine": False, "eps": 1e-30, "momentum": 1.0}
    once, often = (
        norm_for(x, NormRecipe(deviation=make(times=times)), **settings) for times in (1, 4)
    )
    for a, b in zip(gradients(often, x, grad), gradients(once, x, grad), strict=True):
        torch.testing.assert_close(4 * a, b)
    # what the norm divides by, squared
    torch.testing.assert_close(often.running_var, 16 * once.running_var)
    torch.testing.assert_close(4 * often.eval()(x), once.eval()(x))


def test_range_gradient_is_the_published_formula() -> None:
    x, grad = gaussian(24, 3, dtype=torch.float64), gaussian(24, 3, dtype=torch.float64, seed=1)
    recipe = NormRecipe(deviation=range_(2))
    norm = norm_for(x, recipe, affine=False, eps=1e-3)
    output, grad_input = gradients(norm, x, grad)
    constant = 1 / expected_range(12)
    halves = x.reshape(2, 12, 3)
    sigma = constant * (halves.amax(1) - halves.amin(1)).mean(0) + 1e-3
    at = (halves == halves.amax(1, keepdim=True)).double() - (
        halves == halves.amin(1, True)
    ).double()
    spike = constant * (24 / 2) * at.reshape(24, 3) * (grad * output).mean(0)
    # float64 rounding only
    torch.testing.assert_close(grad_input, (grad - grad.mean(0) - spike) / sigma)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_l2_agrees_with_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad = gaussian(*shape, dtype=dtype), gaussian(*shape, dtype=dtype, seed=1)
    theirs, ours = norm_for(x), norm_for(x, NormRecipe(statistics_gradient="exact"))
    for _ in range(2):
        # assert_close's defaults, some 10 ulp: two orders of the same few additions
        torch.testing.assert_close(gradients(ours, x, grad), gradients(theirs, x, grad))
    torch.testing.assert_close(plain_state_dict(ours), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("momentum", [0.1, 0.9, None], ids=str)
def test_running_statistics_follow_torch(momentum: float | None) -> None:
    ours = norm_for(gaussian(16, 4), NormRecipe(), momentum=momentum)
    theirs = norm_for(gaussian(16, 4), momentum=momentum)
    for seed in range(4):
        x = gaussian(16, 4, seed=seed, scale=3)
        ours(x), theirs(x)
    torch.testing.assert_close(plain_state_dict(ours), dict(theirs.state_dict()))


@pytest.mark.parametrize("deviation", ONE_EACH[1:], ids=str)
def test_evaluation_on_the_batch_statistics_equals_training(deviation: Deviation) -> None:
    x = gaussian(8, 3, 4, 4, scale=0.01)  # small against the root of eps: the eps rules must agree
    norm = norm_for(x, NormRecipe(deviation=deviation), momentum=1.0)
    trained = norm(x)
    torch.testing.assert_close(norm.eval()(x), trained)  # sigma is squared and its root taken


def test_untracked_norm_uses_the_batch_in_evaluation() -> None:
    x = gaussian(8, 3, 4, 4)
    norm = norm_for(x, NormRecipe(deviation=range_()), track_running_stats=False)
    assert torch.equal(norm(x), norm.eval()(x))
    assert "running_mean" not in norm.state_dict()


@pytest.mark.parametrize("deviation", ONE_EACH, ids=str)
def test_constant_channel_stays_finite(deviation: Deviation) -> None:
    x = gaussian(8, 3, 4)
    x[:, 1], x[:, 2] = 0.3, 0.0  # a rounded mean, and an exact one
    norm = norm_for(x, NormRecipe(deviation=deviation))
    for mode in ("exact", "l2", "detached"):
        norm.recipe = NormRecipe(deviation=deviation, statistics_gradient=mode)
        results = gradients(norm, x, gaussian(8, 3, 4, seed=1))
        assert all(result.isfinite().all() for result in results)
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize("deviation", ONE_EACH, ids=str)
def test_layout_does_not_change_the_result(deviation: Deviation) -> None:
    x, grad = gaussian(6, 3, 5, 4), gaussian(6, 3, 5, 4, seed=1)
    recipe = NormRecipe(deviation=deviation)
    reference = gradients(norm_for(x, recipe), x, grad)
    last = x.to(memory_format=torch.channels_last)
    spread = torch.stack([x, x], -1)[..., 0]
    swapped = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (last, spread, swapped):
        assert other.stride() != x.stride()
        # sums in another order
        torch.testing.assert_close(gradients(norm_for(x, recipe), other, grad), reference)
    assert norm_for(x, recipe)(last).is_contiguous(memory_format=torch.channels_last)


def test_chunks_are_the_same_elements_in_every_layout() -> None:
    x = gaussian(5, 3, 5, 3)
    estimates = [
        range_(4).estimate(y.transpose(0, 1).flatten(1))
        for y in (x, x.to(memory_format=torch.channels_last))
    ]
    for ours, theirs in zip(*estimates, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deviation", ONE_EACH, ids=str)
def test_half_precision_input_has_fp32_statistics(deviation: Deviation, dtype: torch.dtype) -> None:
    x, grad = gaussian(64, 3, 8, 8, dtype=dtype, scale=3), gaussian(64, 3, 8, 8, dtype=dtype)
    norm = norm_for(x.float(), NormRecipe(deviation=deviation))
    wide = gradients(copy.deepcopy(norm), x.float(), grad.float())
    output, grad_input, grad_weight, grad_bias = gradients(norm, x, grad)
    assert output.dtype == grad_input.dtype == dtype
    # one rounding, of the fp32 result; parameters' gradients stay fp32
    assert torch.equal(output, wide[0].to(dtype))
    assert torch.equal(grad_input, wide[1].to(dtype))
    assert torch.equal(grad_weight, wide[2]) and torch.equal(grad_bias, wide[3])


def test_norm_converted_to_half_runs_and_tracks_in_half() -> None:
    x = gaussian(16, 4, dtype=torch.bfloat16)
    norm = norm_for(x, NormRecipe(deviation=range_()), momentum=None)
    norm(x).sum().backward()
    assert norm.running_var.dtype == norm.weight.grad.dtype == torch.bfloat16


def test_detached_statistics_pass_only_the_mean_back() -> None:
    x, grad = gaussian(24, 3), gaussian(24, 3, seed=1)
    recipe = NormRecipe(deviation=range_(), statistics_gradient="detached")
    norm = norm_for(x, recipe, affine=False)
    grad_input = gradients(norm, x, grad)[1]
    sigma = range_().estimate((x - x.mean(0)).t()).sigma + norm.eps
    torch.testing.assert_close(grad_input, (grad - grad.mean(0)) / sigma)


@pytest.mark.parametrize("deviation", ONE_EACH, ids=str)
def test_l2_statistics_gradient_is_orthogonal_to_the_centered_input(deviation: Deviation) -> None:
    x, grad = (gaussian(24, 3, dtype=torch.float64, seed=seed) for seed in (0, 1))
    recipe = NormRecipe(deviation=deviation, statistics_gradient="l2")
    grad_input = gradients(norm_for(x, recipe, affine=False), x, grad)[1]
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close((grad_input * (x - x.mean(0))).sum(0), zero)
    torch.testing.assert_close(grad_input.sum(0), zero)
    # what is left is the incoming gradient, projected and divided
    flat = x - x.mean(0)
    projected = grad - grad.mean(0) - flat * (grad * flat).sum(0) / flat.square().sum(0)
    sigma = deviation.stabilized(deviation.estimate(flat.t()).sigma, 1e-5)
    torch.testing.assert_close(grad_input, projected / sigma)


def test_l2_statistics_gradient_removes_the_spike_of_range() -> None:
    x, grad = gaussian(4096, 4), gaussian(4096, 4, seed=1) + 0.1 * gaussian(4096, 4)
    peak = {}
    for mode in ("exact", "l2"):
        recipe = NormRecipe(deviation=range_(), statistics_gradient=mode)
        grad_input = gradients(norm_for(x, recipe, affine=False), x, grad)[1]
        peak[mode] = (grad_input.abs().amax() / grad_input.std()).item()
    # a Gaussian's own peak here is near 4; the spike is about 4096 / 7.25 * mean(g y) = 56
    assert peak["l2"] < 6 and peak["exact"] > 20


def test_conversion_keeps_every_parameter_and_buffer() -> None:
    for plain, converted in (
        (nn.BatchNorm1d(3), QBatchNorm1d),
        (nn.BatchNorm2d(3), QBatchNorm2d),
        (nn.BatchNorm3d(3), QBatchNorm3d),
        (nn.SyncBatchNorm(3), QSyncBatchNorm),
    ):
        before = plain.state_dict(keep_vars=True)
        assert can_convert(plain)
        convert_norm_(plain, NormRecipe(deviation=l1()))
        after = plain.state_dict(keep_vars=True)
        after = {k: v for k, v in after.items() if not k.startswith("state.")}
        assert type(plain) is converted and list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        copied = copy.deepcopy(plain)
        assert copied.recipe == plain.recipe


def test_plain_state_loads_strictly_both_ways() -> None:
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    convert_norm_(ours, NormRecipe(deviation=range_()))
    ours(gaussian(4, 3, 2, 2))
    theirs.load_state_dict(plain_state_dict(ours), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)


class _Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input


@pytest.mark.parametrize(
    "module",
    [nn.LocalResponseNorm(3), nn.LazyBatchNorm2d(), _Own(3)],
    ids=lambda module: type(module).__name__,
)
def test_other_norms_are_not_converted(module: nn.Module) -> None:
    assert not can_convert(module)
    with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
        convert_norm_(module, NormRecipe(deviation=l1()))


def test_printed_norm_says_its_deviation_and_constant() -> None:
    norm = nn.BatchNorm2d(3)
    convert_norm_(norm, NormRecipe(deviation=range_(16, "code"), activation=fp16))
    assert "BatchNorm2d(3, eps=1e-05" in repr(norm)
    assert repr(norm).endswith("; range(chunks=16, code))")
    assert str(norm.recipe) == "range(chunks=16, code); output fp16"


@pytest.mark.parametrize("deviation", ONE_EACH, ids=str)
def test_one_value_per_channel_is_refused_in_training_only(deviation: Deviation) -> None:
    norm = norm_for(gaussian(1, 3), NormRecipe(deviation=deviation))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm(gaussian(1, 3))
    assert norm.eval()(gaussian(1, 3)).shape == (1, 3)


def test_empty_batch_is_torchs() -> None:
    x = torch.zeros(0, 3, 4, 4)
    ours, theirs = norm_for(x, NormRecipe(deviation=range_())), norm_for(x)
    results = zip(gradients(ours, x, x), gradients(theirs, x, x), strict=True)
    assert all(torch.equal(a, b) for a, b in results)
    torch.testing.assert_close(plain_state_dict(ours), dict(theirs.state_dict()))


def test_wrong_inputs_are_named() -> None:
    norm = norm_for(gaussian(4, 3, 2, 2), NormRecipe(deviation=range_()))
    with pytest.raises(ValueError, match="got 5 channels"):
        norm(gaussian(4, 5, 2, 2))
    with pytest.raises(TypeError, match=r"got an input of torch\.int64"):
        norm(torch.ones(4, 3, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"got an input of torch\.complex64"):
        norm(torch.ones(4, 3, 2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(gaussian(4, 3))


@pytest.mark.parametrize("affine", [True, False])
def test_second_derivative_is_refused(affine: bool) -> None:
    x = gaussian(8, 3).requires_grad_()
    norm = norm_for(x.detach(), NormRecipe(deviation=range_()), affine=affine)
    (grad,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_frozen_parameters_get_no_gradient() -> None:
    x = gaussian(8, 3).requires_grad_()
    norm = norm_for(x.detach(), NormRecipe(deviation=range_()))
    norm.weight.requires_grad_(False)
    norm(x).square().sum().backward()
    assert norm.weight.grad is None and norm.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize("deviation", [*ONE_EACH, l2(times=4), range_(times=0.25)], ids=str)
def test_compiled_norm_is_one_graph_with_the_same_result(deviation: Deviation) -> None:
    torch._dynamo.reset()
    x, grad = gaussian(6, 3, 4, 4), gaussian(6, 3, 4, 4, seed=1)
    q = Quantizer(format=int8)
    recipe = NormRecipe(deviation=deviation, input=q, weight=q, grad_output=q, activation=fp16)
    eager = norm_for(x, recipe)
    compiled = copy.deepcopy(eager)
    expected = gradients(eager, x, grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, in its tracer
        run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(run, x, grad), expected)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


def test_compiled_norm_takes_another_batch_size() -> None:
    torch._dynamo.reset()
    norm = norm_for(gaussian(6, 3), NormRecipe(deviation=range_(4)), track_running_stats=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run = torch.compile(norm, fullgraph=True, backend="aot_eager", dynamic=True)
        for batch in (6, 13, 40):
            x = gaussian(batch, 3)
            torch.testing.assert_close(run(x), norm(x))


# --- quantization of the norm's operands


def test_quantized_operands_equal_a_norm_of_their_values() -> None:
    q = Quantizer(format=int8)
    x, grad = gaussian(8, 3, 4, 4), gaussian(8, 3, 4, 4, seed=1)
    ours = norm_for(x, NormRecipe(deviation=range_(), input=q, weight=q, bias=q, grad_output=q))
    values = norm_for(x, NormRecipe(deviation=range_()))
    with torch.no_grad():
        for parameter in values.parameters():
            parameter.copy_(q(parameter).dequantize())
    expected = gradients(values, q(x).dequantize(), q(grad).dequantize())
    # straight-through: the gradient at the quantized value is the gradient
    for a, b in zip(gradients(ours, x, grad), expected, strict=True):
        assert torch.equal(a, b)


def test_quantized_input_of_a_double_norm_keeps_the_double_output() -> None:
    q = Quantizer(format=int8)  # its values are fp32, so that statistics are too
    x, grad = (gaussian(8, 3, 4, 4, dtype=torch.float64, seed=seed) for seed in (0, 1))
    found = gradients(norm_for(x, NormRecipe(deviation=range_(), input=q)), x, grad)
    assert all(result.dtype == torch.float64 for result in found)
    norm = norm_for(x.float(), NormRecipe(deviation=range_(), input=q))
    for ours, single in zip(found, gradients(norm, x.float(), grad.float()), strict=True):
        torch.testing.assert_close(ours.float(), single)


def test_quantizers_own_backward_is_used() -> None:
    clipping = Quantizer(format=int8, range=percentile(0.9), straight_through="inclusive")
    x, grad = gaussian(64, 2), gaussian(64, 2, seed=1)
    plain = Quantizer(format=int8, range=percentile(0.9))
    passed = gradients(norm_for(x, NormRecipe(input=plain)), x, grad)[1]
    clipped = gradients(norm_for(x, NormRecipe(input=clipping)), x, grad)[1]
    mask = clipping.backward(torch.ones_like(x), x, None)
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(clipped, passed * mask)


def test_a_plain_function_is_a_quantizer() -> None:
    def halves(x: Tensor, *, state=None, key=None, training=True) -> QTensor:  # type: ignore[no-untyped-def]
        return QTensor((x * 2).round() / 2, block=tuple(x.shape))

    x = gaussian(16, 3)
    norm = norm_for(x, NormRecipe(input=halves))
    assert torch.equal(norm(x), norm_for(x, NormRecipe())((x * 2).round() / 2))


def test_stochastic_gradient_takes_the_layers_own_noise() -> None:
    q = Quantizer(format=IntFormat(bits=8), rounding=stochastic())
    x = gaussian(16, 3)
    norm = norm_for(x, NormRecipe(deviation=range_(), grad_output=q))
    grad = gaussian(16, 3, seed=1)
    # the layer's own key, its first training forward, the role (rank 0)
    key = fold(fold(norm.state.noise_key, 1), ROLES.index("grad_output") + len(ROLES))
    values = q(grad, key=key).dequantize()
    expected = gradients(norm_for(x, NormRecipe(deviation=range_())), x, values)
    assert torch.equal(gradients(norm, x, grad)[1], expected[1])
    # the next forward draws other noise
    assert not torch.equal(gradients(norm, x, grad)[1], expected[1])


@pytest.mark.parametrize("fmt", [fp16, e4m3], ids=str)
def test_activation_rounds_the_output_and_passes_the_gradient(fmt: FloatFormat) -> None:
    x, grad = gaussian(16, 3), gaussian(16, 3, seed=1)
    plain = gradients(norm_for(x, NormRecipe(deviation=range_())), x, grad)
    rounded = gradients(norm_for(x, NormRecipe(deviation=range_(), activation=fmt)), x, grad)
    dtype = torch.float16 if fmt == fp16 else torch.float8_e4m3fn
    assert torch.equal(rounded[0], plain[0].to(dtype).float())
    assert rounded[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(rounded[1:], plain[1:], strict=True))


@pytest.mark.parametrize("arithmetic", [None, Arithmetic(format=fp32)], ids=str)
def test_evaluation_rounds_16_bit_data_to_the_activation_once(
    arithmetic: Arithmetic | None,
) -> None:
    x = gaussian(4000, 4, dtype=torch.float16)
    recipe = NormRecipe(deviation=l1(), activation=e4m3, arithmetic=arithmetic)
    norm = norm_for(gaussian(8, 4), recipe).eval()
    assert torch.equal(norm(x), norm(x.float()).half())


def test_recipe_is_off_only_when_nothing_differs_from_torch() -> None:
    assert NormRecipe().is_off
    for recipe in (
        NormRecipe(deviation=l1()),
        NormRecipe(deviation=l2(times=4)),
        NormRecipe(statistics_gradient="detached"),
        NormRecipe(grad_output=Quantizer(format=int8)),
        NormRecipe(activation=fp16),
    ):
        assert not recipe.is_off


def test_recipe_refuses_what_it_cannot_honour() -> None:
    with pytest.raises(TypeError, match=r"deviation: got 'range'.*deviations\.get"):
        NormRecipe(deviation="range")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="statistics_gradient: got 'none'"):
        NormRecipe(statistics_gradient="none")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"norm\.input: got 8"):
        NormRecipe(input=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="activation: got 16"):
        NormRecipe(activation=16)  # type: ignore[arg-type]


def test_range_norm_trains_a_small_network() -> None:
    torch.manual_seed(0)
    x = gaussian(64, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    convert_norm_(net[1], NormRecipe(deviation=deviations.get("range")))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.1 < math.log(2)  # from chance, ln 2, to nearly fitted


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
@pytest.mark.parametrize("where", ["an operation", "taken apart"])
@pytest.mark.parametrize("deviation", [topk(3), range_(16)], ids=str)
def test_batches_of_other_sizes_compile_once_more(
    deviation: Deviation, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plain network: for the first size, and for any; on a device without the operation."""
    if where == "taken apart":
        for name in ("normalize", "gradients"):
            monkeypatch.setattr(f"qtrain.norms.operations.{name}.graphs", {})
    torch._dynamo.reset()
    eager = norm_for(gaussian(8, 3, 3, 4), NormRecipe(deviation=deviation))
    counter = CompileCounterWithBackend("aot_eager")
    norm = copy.deepcopy(eager)
    run = torch.compile(norm, fullgraph=True, backend=counter)
    for batch in (8, 7, 6, 5):
        x, grad = gaussian(batch, 3, 3, 4), gaussian(batch, 3, 3, 4, seed=1)
        torch.testing.assert_close(gradients(run, x, grad), gradients(eager, x, grad))
    torch.testing.assert_close(norm.state_dict(), eager.state_dict())
    assert counter.frame_count == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(inplace=True)], ids=repr)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=["batch", "group"])
@pytest.mark.parametrize("kind", ["activation", "grad_output"])
def test_a_norms_output_can_be_written_into(
    kind: str, norm: nn.Module, activation: nn.Module, training: bool
) -> None:
    """As torch's norms' can: common networks do."""
    one: Any = {"activation": fp16, "grad_output": Quantizer(format=int8)}
    recipe = NormRecipe(**{kind: one[kind]})
    found = []
    for own in (activation, type(activation)()):
        model = quantize(nn.Sequential(copy.deepcopy(norm), own), norm=recipe).train(training)
        leaf = torch.linspace(-3, 3, 2 * 4 * 36).reshape(2, 4, 6, 6).requires_grad_()
        output = model(leaf)
        output.square().sum().backward()
        found.append((output.detach(), leaf.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
