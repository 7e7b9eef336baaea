"""Norms that are no class of torch's: subclasses with a forward of their own, and those that are
written out, each against torch's own norm of the same numbers."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import other_norm_cases as cases
import pytest
import torch
from other_norm_cases import CALLED, CASES, RECIPES, WRITTEN, Case, pair
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import NormRecipe, plain_state_dict, quantize, set_recipe, summary
from qtrain.conversion.kinds import can_convert, convert_norm_, left_norm
from qtrain.norms.deviations import l2, none, range_
from qtrain.norms.module import QNorm
from qtrain.norms.recognised import recognise
from qtrain.norms.recognised.form import Called, Written


def recognised(module: nn.Module) -> Any:
    return recognise.recognised(module)


def gradients(norm: nn.Module, case: Case, x: Tensor, *, around: bool) -> list[Tensor]:
    """Output and every gradient; around: with what stands before and behind the norm."""
    x = x.clone().requires_grad_()
    y = case.behind(norm(case.before(x))) if around else norm(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    leaves = [x, *(p for p in norm.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_it_computes_what_torchs_norm_of_the_same_numbers_does(
    kind: str, recipe: NormRecipe
) -> None:
    case = CASES[kind]
    own, torchs, x = pair(case)
    if left_norm(torchs, recipe) is not None or (kind == "sync" and recipe.arithmetic):
        assert kind == "sync" or left_norm(own, recipe) == left_norm(torchs, recipe)
        return
    for norm in (own, torchs):
        convert_norm_(norm, recipe)
    for _ in range(2):  # running statistics move, noise goes on
        ours = gradients(own, case, x, around=False)
        theirs = gradients(torchs, case, x, around=True)
        assert all(map(torch.equal, ours, theirs))
    buffers = zip(own.named_buffers(), torchs.named_buffers(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in buffers)
    own.eval(), torchs.eval()
    ours = gradients(own, case, x, around=False)
    assert all(map(torch.equal, ours, gradients(torchs, case, x, around=True)))


@pytest.mark.parametrize("kind", CASES)
def test_l2_agrees_with_its_own_forward(kind: str) -> None:
    case = CASES[kind]
    own, _, x = pair(case)
    ours = copy.deepcopy(own)
    convert_norm_(ours, NormRecipe(deviation=l2()))
    for a, b in zip(
        gradients(ours, case, x, around=False),
        gradients(own, case, x, around=False),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("input", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", WRITTEN)
def test_the_output_has_the_dtype_of_its_own_forward(
    kind: str, weight: torch.dtype, input: torch.dtype
) -> None:
    own, _, x = pair(WRITTEN[kind])
    own, x = own.to(weight), x.to(input)
    try:
        expected = own(x)
    except RuntimeError:
        pytest.skip("its own forward does not take these")
    convert_norm_(own, NormRecipe(deviation=l2()))
    unit = max(torch.finfo(dtype).eps for dtype in (weight, input, torch.float32))
    torch.testing.assert_close(own(x), expected, rtol=4 * unit, atol=20 * unit)


@pytest.mark.parametrize("kind", CASES)
def test_a_model_keeps_everything_and_gets_its_own_forward_back(kind: str) -> None:
    case = CASES[kind]
    own, _, x = pair(case)
    plain = nn.Sequential(nn.Identity(), own)
    before = list(plain.state_dict())
    model = quantize(plain, recipe="fp32", norm="range")
    norm: Any = model[1]
    assert isinstance(norm, QNorm) and isinstance(norm, type(own))
    assert before == [name for name in model.state_dict() if ".state." not in name]
    loaded = copy.deepcopy(plain)
    loaded.load_state_dict(plain_state_dict(model))
    assert not torch.equal(model(x), plain(x))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(other[1]) is type(norm) and torch.equal(other(x), model(x))
    again = quantize(plain, recipe="fp32", norm="range")
    expected = again(x)
    set_recipe(again, "fp32", norm="l2")
    assert type(again[1]) is type(own)
    rest = copy.deepcopy(again).load_state_dict(plain.state_dict())
    assert not rest.missing_keys
    fresh = quantize(plain, recipe="fp32", norm="range")
    set_recipe(fresh, "fp32", norm="l2")
    assert torch.equal(fresh(x), copy.deepcopy(plain)(x))
    set_recipe(again, "fp32", norm="range")
    assert type(again[1]) is type(norm) and torch.equal(again(x), expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", [k for k in CASES if k != "batch-cumulative"])
def test_it_compiles_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    case = CASES[kind]
    own, _, x = pair(case)
    eager = quantize(nn.Sequential(own, nn.Identity()), recipe="fp32", norm="range")
    compiled: Any = torch.compile(copy.deepcopy(eager), backend="aot_eager", fullgraph=True)
    for model in (eager, compiled):
        model(x)
    torch.testing.assert_close(compiled(x), eager(x))


@pytest.mark.parametrize("kind", CASES)
def test_recognising_leaves_the_module_and_the_random_state(kind: str) -> None:
    own, _, _ = pair(CASES[kind])
    own.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    tensors = {name: t.clone() for name, t in own.state_dict().items()}
    attributes, state = dict(vars(own)), torch.get_rng_state()
    recognise._FOUND.clear()
    found = recognised(own)
    assert isinstance(found, Called if kind in CALLED else Written)
    assert torch.equal(state, torch.get_rng_state()) and attributes == vars(own)
    assert all(torch.equal(t, own.state_dict()[name]) for name, t in tensors.items())


def test_a_norm_on_the_meta_device_is_recognised() -> None:
    with torch.device("meta"):
        model = nn.Sequential(cases.LlamaRMSNorm(6), cases.LayerNorm2d(6))
    assert all(isinstance(m, QNorm) for m in quantize(model, recipe="fp32", norm="range"))


class _Subtracts(cases.GemmaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class _OutsideNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class _TwiceNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * super().forward(x)


class _ClampedNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True).clamp(min=self.variance_epsilon)
        return self.weight * x * torch.rsqrt(variance)


class _StandardNorm(cases.LlamaRMSNorm):
    """timm's SimpleNorm: x over a standard deviation about the mean, which it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.var(-1, keepdim=True) + self.variance_epsilon)


class _DetachedNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.detach().pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(variance + self.variance_epsilon)


class _FixedScaleNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight.detach() * F.rms_norm(x, self.weight.shape, None, self.variance_epsilon)


class _InTrainingNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


class _ByAxesNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.dim() == 4 else 1.0)


class _GatedNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return y if gate is None else y * gate


class _TwoCalls(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class _OtherEps(nn.LayerNorm):
    """One that is found out: it is a layer norm of another eps."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-3)


class _FrozenNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        running: Any = self.running_mean, self.running_var
        return F.batch_norm(x, *running, self.weight, self.bias, False, 0.0, self.eps)


class _FrozenBatchNorm(nn.Module):
    """torchvision's: its statistics are fixed."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        return (x - own.running_mean) * own.weight / own.running_var.sqrt() + own.bias


class _WeightedNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, self.normalized_shape, self.weight * self.weight, self.bias, self.eps)
        return y


class _BrokenNorm(cases.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("needs a GPU")


class _SometimesNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.is_contiguous() else x * 2


class _BehindNorm(cases.LlamaRMSNorm):
    """The activation comes first."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_OutsideNorm, "neither LayerNorm nor RMSNorm"),
        (_TwiceNorm, "neither LayerNorm nor RMSNorm"),
        (_ClampedNorm, "neither LayerNorm nor RMSNorm"),
        (_StandardNorm, "neither LayerNorm nor RMSNorm"),
        (_DetachedNorm, "neither LayerNorm nor RMSNorm"),
        (_FixedScaleNorm, "neither LayerNorm nor RMSNorm"),
        (_InTrainingNorm, "neither LayerNorm nor RMSNorm"),
        (_ByAxesNorm, "neither LayerNorm nor RMSNorm"),
        (_GatedNorm, r"takes more than an input \(gate\)"),
        (_TwoCalls, "calls layer_norm 2 times where torch's once"),
        (_FrozenNorm, "calls batch_norm with another training"),
        (_FrozenBatchNorm, "more than a scale and a shift"),
        (_WeightedNorm, "calls layer_norm with another weight"),
        (_BrokenNorm, "could not be tried .RuntimeError: needs a GPU"),
        (_SometimesNorm, "calls layer_norm 0 times"),
        (_BehindNorm, "neither LayerNorm nor RMSNorm"),
    ],
)
def test_what_differs_is_left_and_named(kind: Any, reason: str) -> None:
    norm = kind(6)
    assert not can_convert(norm)
    model = nn.Sequential(nn.LayerNorm(6), norm)
    with pytest.warns(UserWarning, match=rf"(?s)1 of 2 norms .*{reason}"):
        converted = quantize(model, recipe="fp32", norm="range")
    assert type(converted[1]) is kind and isinstance(converted[0], QNorm)
    assert "norms      1 do not follow the norm asked for (1)" in str(summary(converted))


def test_a_norm_that_subtracts_the_mean_is_a_layer_norm_and_no_rms_norm() -> None:
    assert recognised(cases.GemmaRMSNorm(6)).centered is False
    assert not can_convert(_Subtracts(6))  # by its name it is no norm
    named = type("SubtractsNorm", (_Subtracts,), {})(6)
    assert recognised(named).centered and recognised(named).offset == 0.0
    assert recognised(_OtherEps(6)).eps == 1e-3


class _SwitchedNorm(cases.LlamaRMSNorm):
    def __init__(self, size: int, twice: bool) -> None:
        super().__init__(size)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if self.twice else y


def test_what_is_remembered_is_of_a_class_and_its_settings() -> None:
    assert can_convert(_SwitchedNorm(6, False)) and not can_convert(_SwitchedNorm(6, True))
    assert can_convert(_SwitchedNorm(6, False))
    assert recognised(_SwitchedNorm(7, False)).sizes == (7,)


def test_eps_is_read_from_the_module_as_torchs_is() -> None:
    own, torchs, x = pair(WRITTEN["llama"])
    for norm in (own, torchs):
        convert_norm_(norm, NormRecipe(deviation=l2()))
    own.variance_epsilon = torchs.eps = 0.5
    assert torch.equal(own(x), torchs(x))


def test_deviation_none_stops_the_training_of_a_scale_by_any_name() -> None:
    norm = cases.WrittenLayerNorm2d(6)
    convert_norm_(norm, NormRecipe(deviation=none()))
    assert not norm.gamma.requires_grad and norm.beta.requires_grad


def test_a_batch_norm_with_its_activation_is_not_fused_with_another() -> None:
    own, torchs, x = pair(CALLED["batch"])
    own.act = nn.LeakyReLU(-1.0)  # what a fused ReLU would skip
    model = quantize(nn.Sequential(own, nn.ReLU()), recipe="fp32", norm="range")
    convert_norm_(torchs, NormRecipe(deviation=range_()))
    assert torch.equal(model(x), torchs(x).abs())


class _CheckedNorm(nn.LayerNorm):
    def _check(self, x: Tensor) -> None:
        assert x.dim() == 3

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_name_that_a_converted_norm_has_too_is_said() -> None:
    held = cases.LlamaRMSNorm(6)
    held.recipe = "salt"  # type: ignore[assignment]
    for norm, name in ((_CheckedNorm(6), "_check"), (held, "recipe")):
        with pytest.raises(ValueError, match=f"it has a {name} of its own"):
            quantize(nn.Sequential(norm), norm="range")


class _ReluBatchNorm(nn.BatchNorm2d):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.relu = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.relu(super().forward(input))
        return out


def test_a_child_called_relu_is_the_modules_own() -> None:
    own, torchs, x = pair(Case(lambda: _ReluBatchNorm(6), lambda: nn.BatchNorm2d(6), cases.IMAGE))
    for norm in (own, torchs):
        convert_norm_(norm, NormRecipe(deviation=range_()))
    assert torch.equal(own(x), torchs(x).relu())


def test_an_empty_input_is_its_own() -> None:
    for kind, case in CASES.items():
        if kind == "instance":  # which torch refuses
            continue
        own, _, _ = pair(case)
        x = torch.zeros(0, *case.shape[1:])
        expected = copy.deepcopy(own)(x)
        convert_norm_(own, NormRecipe(deviation=range_()))
        assert own(x).shape == expected.shape


def test_an_image_norm_refuses_what_is_no_image() -> None:
    norm = cases.RmsNorm2d(6)
    convert_norm_(norm, NormRecipe(deviation=range_()))
    with pytest.raises(ValueError, match=r"got an input of \(3, 6\), need \(N, C, H, W\)"):
        norm(torch.randn(3, 6))


def test_norms_that_are_not_asked_for_are_not_tried() -> None:
    recognise._FOUND.clear()
    model = nn.Sequential(nn.Linear(6, 6), cases.LlamaRMSNorm(6), cases.GroupNorm1(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(model, recipe="int8")
    assert not recognise._FOUND
