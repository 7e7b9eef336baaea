"""Layers that own what their quantizers learn."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_switching_runs import _stopped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from training_cases import assert_same_run, on_two_ranks, quiet, small

from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    NormRecipe,
    Recipe,
    Update,
    calibrate,
    hadamard,
    inspect,
    load_recipe,
    plain_state_dict,
    quantize,
    quantize_,
    save_recipe,
    set_recipe,
)
from qtrain.training.run import Run
from qtrain.training.train import train
from quantizers import (
    LSQ,
    PACT,
    IntFormat,
    LearnedClip,
    LSQPlus,
    QTensor,
    per_channel,
)

INPUTS, TARGETS = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
OPERANDS = Forward(
    input=LSQ(format="int4", scaled_by="sample"),
    weight=LSQ(format="int4", granularity=per_channel()),
)
CLIP = LearnedClip(format="int8")
LEARNED = Recipe(
    name="learned",
    forward=OPERANDS,
    grad_input=GradInput(grad_output=CLIP),
    grad_weight=GradWeight(grad_output=CLIP),
)
FORWARD = Recipe(name="learned forward", forward=OPERANDS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))


def passes(model: nn.Module) -> float:
    """Forward and backward from no gradients -> loss."""
    model.zero_grad()
    loss = F.cross_entropy(model(INPUTS), TARGETS)
    loss.backward()
    return loss.item()


def learned(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if ".product." in n}


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class Rounded(torch.autograd.Function):
    """Rounds, and passes the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def fake(x: Tensor, step: Tensor, count: float) -> Tensor:
    """LSQ of int4 by autograd, the step's gradient divided by sqrt(count 7)."""
    scale = 1 / math.sqrt(count * 7)
    step = (step - step * scale).detach() + step * scale
    found: Tensor = Rounded.apply((x / step).clamp(-7, 7)) * step  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize("kind", ["linear", "3-D linear", "convolution"])
def test_gradients_of_a_layer_are_those_of_simulated_quantization(kind: str) -> None:
    torch.manual_seed(1)
    conv = kind == "convolution"
    layer = nn.Conv2d(4, 6, 3, padding=1) if conv else nn.Linear(12, 5)
    shape = {"linear": (8, 12), "3-D linear": (4, 6, 12), "convolution": (4, 4, 7, 7)}[kind]
    x = torch.randn(shape)
    model = quantize(layer, recipe=FORWARD)
    output = model(x)  # of the first tensor, whose x needs no gradient
    grad = torch.randn_like(output)
    output.backward(grad)
    own = learned(nn.ModuleList([model]))
    steps = {name.rpartition("product.")[2]: p.detach().double() for name, p in own.items()}
    weight = layer.weight.detach().double().requires_grad_()
    of_x = steps["forward_input_step"].requires_grad_()
    of_w = steps["forward_weight_step"].requires_grad_()
    rows = of_w.view(-1, *[1] * (weight.dim() - 1))
    wide = fake(x.double(), of_x, x.numel() / x.shape[0])
    narrow = fake(weight, rows, weight[0].numel())
    product = F.conv2d(wide, narrow, padding=1) if conv else F.linear(wide, narrow)
    product.backward(grad.double())
    expected = {"forward_input_step": of_x, "forward_weight_step": of_w}
    for name, leaf in expected.items():
        found = own[f"0.product.{name}"].grad
        assert found is not None and leaf.grad is not None
        torch.testing.assert_close(found.double(), leaf.grad, rtol=1e-4, atol=1e-5)
    assert weight.grad is not None and model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)


def test_a_gradients_quantizer_learns_to_err_less() -> None:
    """Its gradient is that of half the squared error, in parts of the gradient's square."""
    layer = quantize(nn.Linear(12, 5, bias=False), recipe=LEARNED)
    x, grad = torch.randn(8, 12, requires_grad=True), torch.randn(8, 5) * 1e-6
    layer(x).backward(grad)
    scales = layer.product.forward_weight_step.detach().abs()  # folded in before it is quantized
    for kind, seen in (("grad_input", grad * scales), ("grad_weight", grad)):
        power = getattr(layer.product, f"{kind}_grad_output_log2_clip")
        leaf = power.detach().double().requires_grad_()
        step = leaf.exp2() / 127
        ratio = seen.double() / step
        value = Rounded.apply(ratio).clamp(-127, 127) * step  # type: ignore[no-untyped-call]
        ((value - seen).square().sum() / seen.double().square().sum() / 2).backward()
        torch.testing.assert_close(power.grad.double(), leaf.grad, rtol=1e-3, atol=1e-9)
    clip = layer.product.grad_weight_grad_output_log2_clip
    with torch.no_grad():
        clip += 3
    errors = []
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        layer(x).backward(grad)
        q = CLIP(grad, state={"log2_clip": clip.detach()})
        errors.append(float((q.dequantize() - grad).square().sum() / grad.square().sum()))
        optimizer.step()
    assert errors[-1] < errors[0] / 8


def test_the_layer_owns_them() -> None:
    model = quantize(network(), recipe=LEARNED)
    shapes = {name: tuple(p.shape) for name, p in learned(model).items()}
    assert shapes == {
        "0.product.forward_input_step": (),
        "0.product.forward_weight_step": (6,),
        "0.product.grad_input_grad_output_log2_clip": (),
        "0.product.grad_weight_grad_output_log2_clip": (),
        "3.product.forward_input_step": (),
        "3.product.forward_weight_step": (10,),
        "3.product.grad_input_grad_output_log2_clip": (),
        "3.product.grad_weight_grad_output_log2_clip": (),
    }
    passes(model)
    # the first layer's input needs no gradient, its step does; no grad_input is computed for it
    assert [n for n, grad in gradients(model).items() if grad is None] == []
    twin = copy.deepcopy(model)
    assert passes(twin) == passes(model)
    half = copy.deepcopy(model).bfloat16()
    assert {p.dtype for p in learned(half).values()} == {torch.float32}
    other = quantize(network(), recipe=LEARNED, seed=5)
    other.load_state_dict(model.state_dict())
    assert passes(other) == passes(model)
    assert set(plain_state_dict(model)) == set(network().state_dict())


def test_a_training_batch_sets_them_once_and_evaluation_never() -> None:
    model = quantize(network(), recipe=LEARNED).eval()
    before = {name: p.clone() for name, p in learned(model).items()}
    first = model(INPUTS)
    assert all(torch.equal(before[name], p) for name, p in learned(model).items())
    with torch.no_grad():
        assert torch.equal(model.train()(INPUTS), first)  # set by the same batch
    after = {name: p.clone() for name, p in learned(model).items()}
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if "forward" in n}
    model(3 * INPUTS)
    assert all(torch.equal(after[name], p) for name, p in learned(model).items())


@pytest.mark.parametrize("bad", ["empty", "zeros", "infinite"])
def test_a_batch_that_says_nothing_leaves_them_to_the_next(bad: str) -> None:
    model = quantize(nn.Linear(4, 2), recipe=FORWARD)
    x = {"empty": torch.ones(0, 4), "zeros": torch.zeros(2, 4)}.get(bad, torch.full((2, 4), 1e999))
    output = model(x)
    output.sum().backward()
    finite = [output, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert all(bool(each.isfinite().all()) for each in finite) == (bad != "infinite")
    assert ("forward", "input") in model.product.unfitted
    model(torch.randn(3, 4))
    assert not model.product.unfitted


def test_a_plain_state_dict_has_them_set_again_from_its_weights() -> None:
    model, fresh = quantize(network(), recipe=FORWARD), network()
    passes(model)
    model.load_state_dict({name: 5 * value for name, value in fresh.state_dict().items()})
    passes(model)
    expected = quantize(fresh, recipe=FORWARD)
    passes(expected)
    name = "0.product.forward_weight_step"
    torch.testing.assert_close(learned(model)[name], 5 * learned(expected)[name])


def test_calibrate_sets_them_and_leaves_them_where_it_fails() -> None:
    model = quantize(network(), recipe=FORWARD)
    before = {name: p.clone() for name, p in learned(model).items()}
    with pytest.raises(ValueError, match="5 to sum"):
        calibrate(model, [INPUTS, torch.randn(2, 5, 8, 8)])
    assert all(torch.equal(before[name], p) for name, p in learned(model).items())
    assert model[0].product.unfitted == {("forward", "input"), ("forward", "weight")}
    calibrate(model, [INPUTS])
    other = quantize(network(), recipe=FORWARD)
    other(INPUTS)
    assert all(torch.equal(p, learned(other)[name]) for name, p in learned(model).items())


def test_recomputation_gives_the_same_gradients() -> None:
    model, other = (quantize(network(), recipe=LEARNED) for _ in range(2))
    passes(model)
    F.cross_entropy(checkpoint(other, INPUTS, use_reentrant=False), TARGETS).backward()
    for name, grad in gradients(model).items():
        assert grad is not None and torch.equal(grad, gradients(other)[name]), name  # type: ignore[arg-type]


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_step_gives_the_same_gradients_in_one_graph() -> None:
    model = quantize(network(), recipe=LEARNED)
    passes(model)
    loss, own = passes(model), {n: g.clone() for n, g in gradients(model).items() if g is not None}
    torch.compiler.reset()
    model.zero_grad()
    compiled = F.cross_entropy(
        torch.compile(model, fullgraph=True, backend="aot_eager")(INPUTS), TARGETS
    )
    compiled.backward()
    assert compiled.item() == loss
    for name, grad in gradients(model).items():
        assert grad is not None
        if not name.endswith("bias"):  # which a graph adds up in another order
            assert torch.equal(grad, own[name]), name


@pytest.mark.parametrize("late", [False, True])
def test_an_optimizer_that_lacks_them_says_so(late: bool) -> None:
    model = network()
    model = quantize_(model, recipe="int8") if late else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if late:
        set_recipe(model, LEARNED)
    else:
        quantize_(model, recipe=LEARNED)
    passes(model)
    weight = model[0].weight.clone()
    with pytest.raises(ValueError, match="nothing trains what its quantizers learn: 0: forward"):
        optimizer.step()
    assert torch.equal(model[0].weight, weight)
    optimizer.add_param_group({"params": list(learned(model).values()), "lr": 1e-3})
    optimizer.step()
    frozen = quantize(network(), recipe=FORWARD)
    for parameter in learned(frozen).values():
        parameter.requires_grad_(False)
    passes(frozen)
    torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1).step()


def test_two_optimizers_may_share_the_work() -> None:
    model = quantize(network(), recipe=FORWARD)
    own = learned(model)
    others = [p for n, p in model.named_parameters() if n not in own]
    weights = torch.optim.SGD(others, lr=0.1)
    steps = torch.optim.Adam(own.values(), lr=1e-3)
    passes(model)
    weights.step()
    steps.step()


def test_a_change_of_recipe_keeps_what_stays() -> None:
    model = quantize(network(), recipe=LEARNED)
    passes(model)
    step = model[0].product.forward_input_step
    set_recipe(model, FORWARD)
    assert model[0].product.forward_input_step is step and not model[0].product.unfitted
    assert not [n for n in learned(model) if "grad" in n]
    set_recipe(model, "int8")
    assert not learned(model)
    set_recipe(model, LEARNED)
    assert len(model[0].product.unfitted) == 4
    passes(model)


class Scaled:
    """A user's quantizer of int4, its scale learned through its own operations."""

    format = IntFormat(4)

    def init_parameters(self, shape: Any) -> dict[str, Tensor]:
        return {"scale": torch.full((), 0.3)}

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> Any:
        ratio = (x / state["scale"]).clamp(-7, 7)
        return QTensor(ratio + (ratio.round() - ratio).detach(), state["scale"], None, self.format)


def test_a_quantizer_of_the_users_own_learns_by_autograd() -> None:
    same = LSQ(format="int4", scaled_by="none")
    found = []
    for quantizer in (Scaled(), same):
        torch.manual_seed(0)
        recipe = Recipe(name="own", forward=Forward(input=quantizer, weight=quantizer))
        layer = quantize(nn.Linear(6, 4), recipe=recipe)
        for name, parameter in layer.product.named_parameters():
            parameter.data.fill_(0.3)
            layer.product.get_buffer(name.rpartition("_")[0] + "_fitted").fill_(1)
        layer.product.look()
        x = torch.randn(5, 6, requires_grad=True)
        layer(x).backward(torch.randn(5, 4))
        found.append([x.grad, *[p.grad for p in layer.parameters()]])
    for own, ours in zip(*found, strict=True):
        torch.testing.assert_close(own, ours, rtol=1e-5, atol=1e-6)


def owner(**changes: Any) -> Any:
    return type("Own", (Scaled,), changes)()


@pytest.mark.parametrize(
    "quantizer, error",
    [
        (owner(init_state=lambda self, shape: {"m": nn.Parameter(torch.ones(()))}), "init_param"),
        (owner(init_parameters=lambda self, shape: [1.0]), "need a dict"),
        (owner(init_parameters=lambda self, shape: {"scale": torch.ones((), dtype=int)}), "float"),
        (owner(init_state=lambda self, shape: {"scale": torch.ones(())}), "both return"),
        (owner(backward=lambda self, grad, x, state: grad), "need .the gradient of x"),
        (owner(backward=lambda self, grad, x, state: (grad, {})), "need those of"),
        (
            owner(backward=lambda self, grad, x, state: (grad, {"scale": torch.ones(3)})),
            "for scale, need a",
        ),
        (
            owner(__call__=lambda self, x, **more: QTensor(x.round().detach(), format=None)),
            "no gradient reaches",
        ),
        (
            owner(
                __call__=lambda self, x, state, **more: QTensor(
                    (x / state["scale"]).round().clamp(-7, 7).to(torch.int8),
                    state["scale"],
                    None,
                    IntFormat(4),
                )
            ),
            "no gradient reaches the operand:",
        ),
        (owner(init_parameters=lambda self, shape: {"a.b": torch.ones(())}), "an identifier"),
        (owner(init_parameters=lambda self, shape: {"fitted": torch.ones(())}), "otherwise"),
        (
            owner(
                __call__=lambda self, x, state, **more: QTensor(
                    x.clamp(-7, 7), state["scale"], None, IntFormat(4)
                )
            ),
            "between those of",
        ),
    ],
)
def test_what_a_users_quantizer_gets_wrong_is_said(quantizer: Any, error: str) -> None:
    recipe = Recipe(name="own", forward=Forward(input=quantizer))
    with pytest.raises((TypeError, ValueError, RuntimeError), match=error):
        layer = quantize(nn.Linear(6, 4), recipe=recipe)
        layer(torch.randn(5, 6, requires_grad=True)).sum().backward()


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, state: Any = None, key: Any = None, training: bool = True) -> Any:
        return QTensor(x)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Forward(input=Trained()), "nobody would train"),
        (lambda: NormRecipe(input=CLIP), "learns"),
        (lambda: Recipe(name="a", activation=CLIP), "learns"),
        (lambda: Update(weight=CLIP), "learns"),
        (lambda: Recipe(name="a", grad_input=GradInput(weight=CLIP)), "backward pass alone"),
        (
            lambda: Recipe(
                name="a", forward=Forward(input=CLIP, weight=CLIP, transform=hadamard(16))
            ),
            "learns, and hadamard",
        ),
    ],
)
def test_where_nothing_could_train_them_they_are_refused(make: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()


RECIPES = [
    LEARNED,
    Recipe(
        name="others",
        forward=Forward(
            input=LSQPlus(format=IntFormat(4, signed=False)),
            weight=LSQ(format=IntFormat(2, symmetric=False), start="deviation"),
        ),
    ),
    Recipe(
        name="clips",
        forward=Forward(
            input=PACT(format=IntFormat(2, signed=False), start=6.0),
            weight=LearnedClip(format="int4", power_of_two=True),
        ),
    ),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_trains_is_inspected_and_filed(recipe: Recipe, tmp_path: Path) -> None:
    assert load_recipe(save_recipe(recipe, tmp_path / "own.yaml")) == recipe
    model = quantize(network(), recipe=recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first = passes(model)
    for _ in range(12):
        passes(model)
        optimizer.step()
    assert passes(model) < first
    assert "SQNR" in str(inspect(model, INPUTS, TARGETS))


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_recipe(LEARNED, tmp_path / "own.yaml")
    whole, runs = tmp_path / "whole", tmp_path / "cut"
    train(small(whole, recipe=str(path)), say=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", _stopped(Run.train, 7))
        with pytest.raises(InterruptedError):
            train(small(runs, recipe=str(path), checkpoint_every=1), say=quiet)
    train(small(runs, recipe=str(path), checkpoint_every=1, resume=True), say=quiet)
    assert_same_run(whole / "run", runs / "run")


TRAINED = """
from torch.nn.parallel import DistributedDataParallel
from qtrain import Forward, GradInput, Recipe, quantize
from quantizers import LSQ, LearnedClip
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
step = LSQ(format="int4")
recipe = Recipe(name="own", forward=Forward(input=step, weight=step),
                grad_input=GradInput(grad_output=LearnedClip(format="int8")))
model = DistributedDataParallel(quantize(network, recipe=recipe))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
torch.manual_seed(rank)
first = torch.randn(4, 6)
for step in range(3):
    optimizer.zero_grad()
    model(first if step == 0 else torch.randn(4, 6)).square().sum().backward()
    if step == 0:
        start = model.module[0].product.forward_input_step.item()
    optimizer.step()
torch.save({"start": start, "first": first, "state": model.module.state_dict()},
           f"{folder}/{rank}.pt")
"""


SKIPPED = """
from datetime import timedelta
from torch.distributed.distributed_c10d import _get_default_store
from qtrain import Forward, Recipe, quantize
from quantizers import LSQ
step = LSQ(format="int4")
layers = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("first", "second")})
model = quantize(layers, recipe=Recipe(name="own", forward=Forward(input=step, weight=step)))
_get_default_store().set_timeout(timedelta(seconds=3))
try:
    model["second" if rank else "first"](torch.randn(4, 6))
except ValueError as error:
    torch.save(str(error), f"{folder}/said{rank}.pt")
torch.distributed.barrier()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(TRAINED + SKIPPED, folder)
    return folder


def test_ranks_begin_with_the_mean_and_end_with_the_same_bits(ranks: Path) -> None:
    ends = [torch.load(ranks / f"{rank}.pt") for rank in range(2)]
    own = [2 * rank["first"].abs().mean().item() / math.sqrt(7) for rank in ends]
    assert own[0] != own[1]
    assert [rank["start"] for rank in ends] == pytest.approx([sum(own) / 2] * 2, rel=1e-6)
    states = [
        {n: v for n, v in rank["state"].items() if not n.endswith("noise_key")} for rank in ends
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_layer_that_a_rank_skips_first_is_named_and_meets_no_other(ranks: Path) -> None:
    for rank, name in enumerate(("first", "second")):
        said = f"layer '{name}': input of forward: rank {rank} waited in vain for rank {1 - rank}"
        assert said in torch.load(ranks / f"said{rank}.pt")


def test_a_model_of_averaged_weights_takes_the_averaged_steps() -> None:
    model = quantize(network(), recipe=FORWARD)
    averaged = AveragedModel(model)
    passes(model)
    averaged.update_parameters(model)
    averaged.eval(), model.eval()
    assert torch.equal(averaged(3 * INPUTS), model(3 * INPUTS))


def test_parameters_from_outside_take_the_gradients() -> None:
    model = quantize(network(), recipe=LEARNED)
    passes(model)
    passes(model)
    own = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    F.cross_entropy(torch.func.functional_call(model, own, INPUTS), TARGETS).backward()
    for name, grad in gradients(model).items():
        found = own[name].grad
        assert grad is not None and found is not None and torch.equal(found, grad), name


def test_a_parametrized_step_is_trained() -> None:
    model = quantize(network(), recipe=FORWARD)
    passes(model)
    loss, product = passes(model), model[0].product
    grad = product.forward_weight_step.grad
    register_parametrization(product, "forward_weight_step", nn.Identity())
    assert passes(model) == loss
    assert torch.equal(product.parametrizations.forward_weight_step.original.grad, grad)


def test_gradients_on_meta_leave_it() -> None:
    with torch.device("meta"):
        model = quantize(network(), recipe=LEARNED)
        model(INPUTS.to("meta")).sum().backward()
    model.to_empty(device="cpu")
    model.load_state_dict(network().state_dict())
    assert not model[0].product.forward_weight_step.grad.any()
    other = quantize(network(), recipe=LEARNED)
    assert passes(model) == passes(other)


def test_a_state_dict_of_another_recipe_has_them_set_again() -> None:
    model, other = quantize(network(), recipe=FORWARD), quantize(network(), recipe="int8")
    passes(model)
    found = model.load_state_dict(other.state_dict(), strict=False)
    assert "0.product.forward_weight_step" in found.missing_keys
    assert model[0].product.unfitted == {("forward", "input"), ("forward", "weight")}


def test_bits_may_change_in_a_run_and_what_learns_may_not_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"recipe": "lsq", "bits": 8, "switch": ("4:lsq",), "baseline": False}
    train(small(tmp_path / "whole", **own), say=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", _stopped(Run.train, 7))
        with pytest.raises(InterruptedError):
            train(small(tmp_path, **own, checkpoint_every=1), say=quiet)
    train(small(tmp_path, **own, checkpoint_every=1, resume=True), say=quiet)
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"switch: got 0\.5:lsq, whose forward\.input, LSQ int4 aff"
    ):
        small(tmp_path, recipe="int8", switch=("0.5:lsq",))
    with pytest.raises(ValueError, match=r"switch: got 0\.8:lsq"):
        small(tmp_path, recipe="lsq", switch=("0.4:int8", "0.8:lsq"))


def test_other_bits_keep_the_parameters_of_the_optimizer() -> None:
    model = quantize(network(), recipe=FORWARD)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes(model)
    step = model[0].product.forward_input_step
    before = step.item()
    fewer = LSQ(format="int2", scaled_by="sample")
    set_recipe(model, Recipe(name="fewer", forward=Forward(input=fewer, weight=OPERANDS.weight)))
    passes(model)
    assert model[0].product.forward_input_step is step
    assert step.item() == pytest.approx(before * math.sqrt(7))  # of 1 the square root is 1
    optimizer.step()


@pytest.mark.parametrize(
    "quantizer, warns",
    [
        (LSQ(format=IntFormat(4, signed=False)), True),
        (LearnedClip(format=IntFormat(4, signed=False)), True),
        (LSQ(format=IntFormat(4)), False),
        (LSQPlus(format=IntFormat(4, signed=False)), False),
        (PACT(format=IntFormat(4, signed=False)), False),
    ],
    ids=str,
)
def test_a_format_without_a_sign_says_that_negative_inputs_are_lost(
    quantizer: Any, warns: bool
) -> None:
    model = quantize(nn.Linear(2, 2), recipe=Recipe(name="own", forward=Forward(input=quantizer)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(torch.ones(2, 2))
        assert not seen
        set_recipe(model, "fp32")
        set_recipe(model, Recipe(name="own", forward=Forward(input=quantizer)))
        model(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
        model(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    texts = [str(one.message) for one in seen if "negative" in str(one.message)]
    assert len(texts) == warns and all("25 % of the first tensor" in text for text in texts)


@pytest.mark.parametrize(
    "quantizer, warns",
    [
        (LSQ(format=IntFormat(8)), "learns a step of the gradients' size, at most 0.5 in"),
        (LSQPlus(format=IntFormat(8)), "learns a step of the gradients' size"),
        (LearnedClip(format=IntFormat(8)), ""),
    ],
    ids=str,
)
def test_a_step_of_the_gradients_size_is_warned_of(quantizer: Any, warns: str) -> None:
    recipe = Recipe(name="own", grad_input=GradInput(grad_output=quantizer))
    model = quantize(nn.Sequential(nn.Linear(2, 2)), recipe=recipe)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            (model(torch.ones(2, 2, requires_grad=True)) / 2).sum().backward()
    texts = [str(one.message) for one in seen]
    assert len(texts) == bool(warns) and all(warns in text for text in texts)
    assert all(text.startswith("layer '0': grad_input grad_output: ") for text in texts)
