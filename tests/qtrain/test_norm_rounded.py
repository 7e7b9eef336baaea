"""A norm in few bits, against the same steps in numpy's and ml_dtypes' own arithmetic."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtrain import Arithmetic, NormRecipe, quantize, summary
from qtrain.conversion.kinds import convert_norm_
from qtrain.norms.constants import largest_factor, range_factor
from qtrain.norms.deviations import Deviation, l1, l2, linf, none, range_, topk
from quantizers import FloatFormat, IntFormat, bf16, e4m3, e5m2, e8m0, fp16, fp32, tf32

NUMPY: dict[FloatFormat, Any] = {
    fp16: np.float16,
    bf16: ml_dtypes.bfloat16,
    e5m2: ml_dtypes.float8_e5m2,
    fp32: np.float32,
}
PAIRS = [(fp16, fp16), (fp16, fp32), (bf16, fp32), (bf16, bf16), (e5m2, fp16)]
SUMS = ("plain", "halved")


def arithmetic_ids(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Oracle:
    """The steps of the specification, every one of them in the format's own numpy type."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.of, self.sums_of = NUMPY[arithmetic.format], NUMPY[arithmetic.accumulator]
        self.halved = arithmetic.sums == "halved"

    def r(self, x: Any) -> Any:
        return np.asarray(x).astype(self.of)

    def folded(self, x: Any) -> tuple[np.float32, int]:
        """One vector of terms."""
        terms = 1
        while terms < len(x):
            terms *= 2
        level = np.zeros(terms, dtype=np.float32)
        level[: len(x)] = x.astype(np.float32)
        while len(level) > 1:
            half = len(level) // 2
            level = level[:half] + level[half:]
            if self.halved:
                level = level / np.float32(2)
            level = level.astype(self.sums_of).astype(np.float32)
        return level[0], terms

    def sum(self, x: Any) -> Any:
        total, terms = self.folded(x)
        return self.r(total * np.float32(terms) if self.halved else total)

    def mean(self, x: Any) -> Any:
        total, terms = self.folded(x)
        if self.halved:
            return self.r(np.float32(total * np.float32(terms / len(x))))
        return self.r(np.float32(total / np.float32(len(x))))

    def forward(
        self, x: Any, deviation: Deviation, eps: float, weight: Any, bias: Any, centered: bool
    ) -> dict[str, Any]:
        """x: one row or channel; weight, bias: a number or one for each element."""
        x = self.r(x)
        m = self.mean(x) if centered else self.r(0)
        c = x - m
        wide = c.astype(np.float32)
        n = len(x)
        if deviation.name == "l2":
            v = self.mean(c * c).astype(np.float32)
            sigma = np.sqrt(v) * np.float32(deviation.times)
            divisor = self.r(np.sqrt(sigma * sigma + np.float32(eps)))
        elif deviation.name == "l1":
            mean = self.mean(np.abs(c)).astype(np.float32)
            constant = np.float32(math.sqrt(math.pi / 2) * deviation.times)
            divisor = self.r(constant * mean + np.float32(eps))
        elif deviation.name == "linf":
            constant = np.float32(largest_factor("exact", n, 1))
            divisor = self.r(constant * np.abs(wide).max() + np.float32(eps))
        else:
            constant = np.float32(range_factor("exact", n))
            divisor = self.r(constant * (wide.max() - wide.min()) + np.float32(eps))
        y = c / divisor
        weight, bias = self.r(weight), self.r(bias)
        return {"c": c, "d": divisor, "y": y, "weight": weight, "output": y * weight + bias}

    def backward(self, made: dict[str, Any], g: Any, deviation: Deviation, centered: bool) -> Any:
        y, c, d = made["y"], made["c"], made["d"]
        h = self.r(g) * made["weight"]
        p = h - self.mean(h) if centered else h
        n = len(y)
        if deviation.name == "l2":
            q = self.mean(h * y)
            return (p - y * q) / d
        if deviation.name == "l1":
            constant = np.float32(np.float32(math.sqrt(math.pi / 2) / n) * np.float32(n))
            k = self.r(constant * self.mean(h * y).astype(np.float32))
            s = np.sign(c.astype(np.float32)).astype(self.of)
            s = s - self.mean(s) if centered else s
            return (p - s * k) / d
        t = self.sum(h * y).astype(np.float32)
        wide = c.astype(np.float32)
        if deviation.name == "linf":
            at = [int(np.abs(wide).argmax())]
            slopes = [np.sign(wide[at[0]]) * np.float32(largest_factor("exact", n, 1))]
        else:
            factor = np.float32(range_factor("exact", n))
            at, slopes = [int(wide.argmax()), int(wide.argmin())], [factor, -factor]
        values = [self.r(t * slope).astype(np.float32) for slope in slopes]
        p = p.astype(np.float32)
        for index, value in zip(at, values, strict=True):
            p[index] -= value
        p = self.r(p)
        if centered:
            shift = self.r(np.float32(sum(values)) / np.float32(n))
            p = p + shift
        return p / d


def data(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * scale + 0.3 * scale


def same(ours: Tensor, oracle: Any) -> None:
    """Bit for bit, whatever NaN is called."""
    theirs = torch.from_numpy(np.asarray(oracle).astype(np.float32))
    assert torch.equal(ours.float().nan_to_num(12345.0), theirs.nan_to_num(12345.0))


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("pair", PAIRS, ids=arithmetic_ids)
@pytest.mark.parametrize("deviation", [l2(), l1(), linf(), range_()], ids=str)
@pytest.mark.parametrize("scale", [1.0, 200.0], ids=["unit", "large"])
@pytest.mark.filterwarnings("ignore:.*encountered.*:RuntimeWarning")  # numpy's overflows
def test_batch_norm_has_the_bits_of_the_written_steps(
    deviation: Deviation, pair: tuple[FloatFormat, FloatFormat], sums: Any, scale: float
) -> None:
    arithmetic = Arithmetic(format=pair[0], accumulator=pair[1], sums=sums)
    oracle = _Oracle(arithmetic)
    norm: Any = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, 1.3, -2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, -0.4]))
    convert_norm_(norm, NormRecipe(deviation=deviation, arithmetic=arithmetic))
    x, grad = data(5, 3, 2, 7, scale=scale).requires_grad_(), data(5, 3, 2, 7, seed=1)
    output = norm(x)
    grad_input, grad_weight, grad_bias = torch.autograd.grad(
        output, [x, norm.weight, norm.bias], grad
    )
    for channel in range(3):
        one, g = (t[:, channel].flatten().detach().numpy() for t in (x, grad))
        weight, bias = norm.weight[channel].item(), norm.bias[channel].item()
        made = oracle.forward(one, deviation, norm.eps, weight, bias, True)
        same(output[:, channel].flatten(), made["output"])
        same(grad_input[:, channel].flatten(), oracle.backward(made, g, deviation, True))
        same(grad_weight[channel], oracle.sum(oracle.r(g) * made["y"]))
        same(grad_bias[channel], oracle.sum(oracle.r(g)))


@pytest.mark.parametrize("pair", PAIRS, ids=arithmetic_ids)
@pytest.mark.parametrize("deviation", [l2(), l1(), range_()], ids=str)
@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
def test_norms_of_rows_have_the_bits_of_the_written_steps(
    centered: bool, deviation: Deviation, pair: tuple[FloatFormat, FloatFormat]
) -> None:
    arithmetic = Arithmetic(format=pair[0], accumulator=pair[1])
    oracle = _Oracle(arithmetic)
    norm: Any = nn.LayerNorm(10) if centered else nn.RMSNorm(10, eps=1e-5)
    weight = torch.linspace(0.5, 2, 10)
    with torch.no_grad():
        norm.weight.copy_(weight)
    convert_norm_(norm, NormRecipe(deviation=deviation, arithmetic=arithmetic))
    x, grad = data(4, 10).requires_grad_(), data(4, 10, seed=1)
    output = norm(x)
    grad_input, grad_weight = torch.autograd.grad(output, [x, norm.weight], grad)
    products = []
    for row in range(4):
        one, g = x[row].detach().numpy(), grad[row].numpy()
        made = oracle.forward(one, deviation, 1e-5, weight.numpy(), np.zeros(10), centered)
        same(output[row], made["output"])
        same(grad_input[row], oracle.backward(made, g, deviation, centered))
        products.append(oracle.r(g) * made["y"])
    for column in range(10):
        same(grad_weight[column], oracle.sum(np.stack(products)[:, column]))


def test_group_norm_is_the_norm_of_each_group() -> None:
    arithmetic = Arithmetic(format=fp16)
    recipe = NormRecipe(deviation=l1(), arithmetic=arithmetic)
    group: Any = nn.GroupNorm(2, 4, affine=False)
    convert_norm_(group, recipe)
    layer: Any = nn.LayerNorm(6, elementwise_affine=False)
    convert_norm_(layer, recipe)
    x = data(3, 4, 3)
    assert torch.equal(group(x).flatten(), layer(x.reshape(6, 6)).flatten())


@pytest.mark.parametrize("carry", ["exact", "l2", "detached"])
@pytest.mark.parametrize(
    "deviation", [l2(), l2(times=2), l1(), l1(times=0.25), linf(), topk(3), range_(), range_(2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["batch", "layer", "rms", "group"])
def test_without_rounding_the_steps_are_the_exact_norm(
    kind: str, deviation: Deviation, carry: Any
) -> None:
    make = {
        "batch": lambda: nn.BatchNorm2d(4),
        "layer": lambda: nn.LayerNorm(6),
        "rms": lambda: nn.RMSNorm(6, eps=1e-3),
        "group": lambda: nn.GroupNorm(2, 4),
    }[kind]
    torch.manual_seed(0)
    plain: Any = make().double()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.rand_like(parameter))
    rounded = copy.deepcopy(plain)
    recipe = NormRecipe(deviation=deviation, statistics_gradient=carry)
    convert_norm_(plain, recipe)
    # fp64 tensors are not rounded to fp32
    arithmetic = Arithmetic(format=fp32, accumulator=fp32)
    convert_norm_(
        rounded, NormRecipe(deviation=deviation, statistics_gradient=carry, arithmetic=arithmetic)
    )
    x, grad = data(3, 4, 2, 6).double(), data(3, 4, 2, 6, seed=1).double()
    found = []
    for norm in (plain, rounded):
        own = x.clone().requires_grad_()
        output = norm(own)
        leaves = [own, *norm.parameters()]
        found.append([output, *torch.autograd.grad(output, leaves, grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_mean_only_batch_norm_in_few_bits() -> None:
    norm: Any = nn.BatchNorm1d(2)
    convert_norm_(norm, NormRecipe(deviation=none(), arithmetic=Arithmetic(format=fp16)))
    x = data(8, 2).requires_grad_()
    output = norm(x)
    output.square().sum().backward()
    rounded = x.detach().half().float()
    # one rounding of the mean and one of the difference, of values below 4
    torch.testing.assert_close(output, rounded - rounded.mean(0), atol=2 * 2.0**-9, rtol=0)
    assert x.grad is not None and torch.equal(x.grad, x.grad.half().float())


@pytest.mark.parametrize("sums", SUMS)
def test_a_sum_is_a_tree_of_rounded_partial_sums(sums: Any) -> None:
    arithmetic = Arithmetic(format=fp32, accumulator=fp16, sums=sums)
    ones = torch.ones(2, 4096 * 32)
    total = arithmetic.sum(ones, [1])
    assert total.shape == (2, 1)
    # 131072 ones: beyond fp16 plainly, exact where every level is halved
    expected = math.inf if sums == "plain" else 131072.0
    assert torch.equal(total, torch.full((2, 1), expected))
    mean = arithmetic.mean(ones, [1])
    assert torch.equal(mean, torch.full((2, 1), expected / 131072))


def test_a_mean_counts_the_terms_there_are() -> None:
    x = torch.tensor([[1.0, 2, 3, 4, 5], [2, 2, 2, 2, 2]])
    for sums in ("plain", "halved"):
        arithmetic = Arithmetic(format=fp32, sums=sums)  # type: ignore[arg-type]
        torch.testing.assert_close(arithmetic.mean(x, [1]), torch.tensor([[3.0], [2.0]]))
        torch.testing.assert_close(arithmetic.sum(x, [0]), x.sum(0, keepdim=True))
        torch.testing.assert_close(arithmetic.sum(x, [0, 1]), torch.full((1, 1), 25.0))
        assert torch.equal(arithmetic.sum(x[:, :1], [1]), x[:, :1])


def test_squares_leave_fp16_where_magnitudes_do_not() -> None:
    """Hoffer et al. 2018, section 4.2: what l1 is for."""
    arithmetic = Arithmetic(format=fp16, accumulator=fp32)
    for scale, fails in ((1.0, False), (1000.0, True), (2.0**-13, True)):
        x = data(64, 4, scale=scale)
        exact = nn.BatchNorm1d(4, affine=False, eps=1e-12)(x)
        errors = {}
        for deviation in (l1(), l2()):
            norm: Any = nn.BatchNorm1d(4, affine=False, eps=1e-12)
            convert_norm_(norm, NormRecipe(deviation=deviation, arithmetic=arithmetic))
            output = norm(x)
            # either is the right direction, up to the constant of its deviation
            cosine = torch.nn.functional.cosine_similarity(output, exact, dim=0)
            spread = (output.std(0) - 1).abs().max().item()
            errors[deviation.name] = max(1 - cosine.min().item(), spread)
        assert errors["l1"] < 0.25  # the sample is no Gaussian of infinite size
        assert (not errors["l2"] < 0.9) == fails


def test_evaluation_uses_the_running_statistics_in_the_same_steps() -> None:
    norm: Any = nn.BatchNorm1d(3)
    convert_norm_(norm, NormRecipe(deviation=l1(), arithmetic=Arithmetic(format=fp16)))
    for seed in range(20):
        norm(data(50, 3, seed=seed))
    norm.eval()
    x = data(6, 3, seed=99).requires_grad_()
    output = norm(x)
    half = x.detach().numpy().astype(np.float16)
    mean = norm.running_mean.numpy().astype(np.float16)
    divisor = (norm.running_var.sqrt() + norm.eps).numpy().astype(np.float16)
    same(output, (half - mean) / divisor)
    output.sum().backward()
    assert x.grad is not None
    same(x.grad, np.ones((6, 3), dtype=np.float16) / divisor)


def test_statistics_are_tracked_and_the_input_keeps_its_dtype() -> None:
    norm: Any = nn.BatchNorm2d(3).half()
    convert_norm_(norm, NormRecipe(deviation=l1(), arithmetic=Arithmetic(format=fp16)))
    x = data(4, 3, 2, 2).half().requires_grad_()
    output = norm(x)
    output.sum().backward()
    assert output.dtype == torch.float16 and x.grad is not None
    assert x.grad.dtype == torch.float16 and norm.weight.grad.dtype == torch.float16
    assert norm.num_batches_tracked == 1 and not torch.equal(norm.running_mean, torch.zeros(3))


@pytest.mark.parametrize("deviation", [l2(), l1(), range_()], ids=str)
def test_compiled_has_the_same_bits(deviation: Deviation) -> None:
    norm: Any = nn.BatchNorm2d(3)
    arithmetic = Arithmetic(format=fp16, accumulator=fp16)
    convert_norm_(norm, NormRecipe(deviation=deviation, arithmetic=arithmetic))
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(norm), fullgraph=True, backend="aot_eager")
    grad = data(4, 3, 2, 3, seed=1)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, in its tracer
        for one in (norm, compiled):
            x = data(4, 3, 2, 3).requires_grad_()
            output = one(x)
            output.backward(grad)
            found.append((output.detach(), x.grad))
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_quantize_takes_it_and_a_network_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 2),
    )  # fmt: skip
    arithmetic = Arithmetic(format=fp16, accumulator=fp16, sums="halved")
    model = quantize(net, norm=NormRecipe(deviation=l1(), arithmetic=arithmetic))
    assert "arithmetic fp16, halved sums in fp16" in str(summary(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = data(32, 1, 4, 4)
    y = (x.mean((1, 2, 3)) > 0.3).long()
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(TypeError, match="need a FloatFormat"):
        Arithmetic(format=IntFormat(8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"format: got e8m11, need fp32 or .* 10 mantissa bits"):
        Arithmetic(format=FloatFormat(8, 11))
    with pytest.raises(ValueError, match="accumulator: got e8m0"):
        Arithmetic(format=fp16, accumulator=e8m0)
    with pytest.raises(ValueError, match=r"sums: got 'half'.*did you mean 'halved'"):
        Arithmetic(format=fp16, sums="half")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="need an Arithmetic or None"):
        NormRecipe(arithmetic=fp16)  # type: ignore[arg-type]
    for fmt in (tf32, e4m3, e5m2):
        assert not NormRecipe(arithmetic=Arithmetic(format=fmt)).is_off


@pytest.mark.parametrize("fmt", [fp16, bf16], ids=str)
def test_operations_in_fp32_rounded_once_are_those_of_the_format(fmt: FloatFormat) -> None:
    """The claim that the whole simulation rests on, on a sample of pairs of every magnitude."""
    kind = NUMPY[fmt]
    codes = torch.randint(0, 2**16, (2, 60_000), generator=torch.Generator().manual_seed(1))
    a, b = (fmt.decode(one).numpy() for one in codes)
    a_wide, b_wide = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        for ours, exact in (
            (a + b, a_wide + b_wide),
            (a * b, a_wide * b_wide),
            (a / b, a_wide / b_wide),
            (np.sqrt(a), np.sqrt(a_wide)),
        ):
            once, twice = exact.astype(kind), ours.astype(kind)
            keep = ~np.isnan(once.astype(np.float32))
            assert np.array_equal(once[keep].astype(np.float32), twice[keep].astype(np.float32))
