"""What qtrain makes lies where its operands are, and on no default device of the user's: with one
that no operand has, every function gives the bits it gives without."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from training_cases import lines, quiet, small, states

import qtrain
from qtrain import Arithmetic, Monitor, NormRecipe, bound_weights, quantize, recipes, summary
from qtrain.layers.fused import norm_relu
from qtrain.norms import deviations
from qtrain.products.module import products_of
from qtrain.reports.progress import Progress
from qtrain.training.interrupt import Interrupted
from quantizers import (
    Granularity,
    absmax,
    e4m3,
    ema,
    fp16,
    int8,
    kernels,
    minmax,
    stochastic,
    uint8,
)
from quantizers import Quantizer as Q

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True",
    "ignore:The PyTorch API of nested tensors",
    "ignore:qtrain. outside the recipe",
)
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    with CPU:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A model on the CPU, the same each time."""
    with CPU, torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def both(work: Callable[[], Any]) -> None:
    """The same bits with a default device that holds nothing, and no tensor on it."""
    expected = tree_leaves(work())
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        found = tree_leaves(work())
    finally:
        torch.set_default_device(before if before.type != "cpu" else None)
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        if isinstance(want, Tensor):
            assert got.device == want.device == CPU
            assert got.dtype == want.dtype and got.shape == want.shape
            assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
        elif isinstance(want, float):
            assert got == want or (got != got and want != want)
        else:
            assert str(got) == str(want)


class Called(nn.Module):
    """A function of the inputs and of one child."""

    def __init__(self, child: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.child, self.call = child, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.child, *inputs)


MASK = torch.tensor([[False, True, False, False], [False] * 4, [True] * 4], device="cpu")
CONVOLUTIONS: list[nn.Module] = [
    nn.Conv1d(4, 6, 3, padding=1, groups=2),
    nn.Conv2d(3, 4, 3, 2, 1, dilation=2),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
    nn.Conv2d(64, 64, 3, padding=1),
    nn.Conv3d(2, 4, 2),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1),
    nn.ConvTranspose2d(4, 6, 3, 3, groups=2),
    nn.ConvTranspose3d(2, 4, 2),
]
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "Linear": (lambda: nn.Linear(8, 5), [(6, 8)]),
    "Linear of a vector": (lambda: nn.Linear(8, 5), [(8,)]),
    "large Linear": (lambda: nn.Linear(256, 256), [(256, 256)]),
    "Matmul": (lambda: qtrain.Matmul(), [(2, 4, 8), (2, 8, 3)]),
    "large Matmul": (lambda: qtrain.Matmul(), [(2, 128, 128), (2, 128, 128)]),
    "attention": (lambda: qtrain.ScaledDotProductAttention(), [(2, 3, 4, 8)] * 3),
    "causal attention": (
        lambda: Called(
            qtrain.ScaledDotProductAttention(), lambda m, *x: m(*x, is_causal=True, dropout_p=0.5)
        ),
        [(2, 3, 4, 8)] * 3,
    ),
    "masked attention": (
        lambda: Called(
            qtrain.ScaledDotProductAttention(), lambda m, *x: m(*x, attn_mask=~MASK[:, None])
        ),
        [(3, 3, 4, 8)] * 3,
    ),
    "MultiheadAttention": (
        lambda: Called(
            nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
            lambda m, *x: m(*x, key_padding_mask=MASK),
        ),
        [(3, 4, 8)] * 3,
    ),
    "encoder layer": (
        lambda: Called(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
            lambda m, x: m(x, src_key_padding_mask=MASK[:2]),
        ),
        [(2, 4, 8)],
    ),
}
for number, layer in enumerate(CONVOLUTIONS):
    sizes = {1: (9,), 2: (9, 8), 3: (5, 4, 6)}[len(layer.kernel_size)]  # type: ignore[arg-type]
    shape = (2, int(layer.in_channels), *sizes)  # type: ignore[arg-type]
    LAYERS[f"{type(layer).__name__} {number}"] = (lambda m=layer: copy.deepcopy(m), [shape])
NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "BatchNorm1d": (nn.BatchNorm1d(4), (6, 4)),
    "BatchNorm2d": (nn.BatchNorm2d(4), (8, 4, 5, 6)),
    "cumulative": (nn.BatchNorm2d(4, momentum=None), (8, 4, 5, 6)),
    "without parameters": (nn.BatchNorm2d(4, affine=False, track_running_stats=False), (3, 4, 5)),
    "LayerNorm": (nn.LayerNorm(8), (4, 8)),
    "RMSNorm": (nn.RMSNorm(8, elementwise_affine=False), (4, 8)),
    "GroupNorm": (nn.GroupNorm(2, 4), (3, 4, 6)),
}
NORMS["without parameters"] = (NORMS["without parameters"][0], (3, 4, 5, 6))

MX = Q(format=e4m3, granularity=Granularity(((-1, 4),), rest="each"))
RECIPES = {
    "int8": recipes.int8(),
    "banner2018": recipes.banner2018(),
    "bf16": recipes.bf16(),
    "fp32": recipes.fp32(),
    "12 bits": recipes.int8(bits=12),
    "blocks": qtrain.Recipe(
        name="blocks",
        forward=qtrain.Forward(
            input=Q(format=uint8, range=ema(minmax)),
            weight=Q(format=int8, granularity=Granularity(((2, 4),))),
        ),
        grad_input=qtrain.GradInput(grad_output=Q(format=int8, rounding=stochastic())),
        grad_weight=qtrain.GradWeight(grad_output=Q(format=fp16, range=absmax)),
    ),
}


def step(model: nn.Module, inputs: list[Tensor]) -> list[Any]:
    """Two training steps, then an evaluation: outputs, gradients, the whole state."""
    found: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        optimizer = None
        if list(model.parameters()):
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(2):
            operands = [x.clone().requires_grad_() for x in inputs]
            output = model(*operands)
            outputs = [x for x in tree_leaves(output) if x is not None]
            sum(x.square().nansum() for x in outputs).backward()  # type: ignore[union-attr]
            found += [*outputs, *(x.grad for x in operands)]
            if optimizer is not None:
                optimizer.step()
        model.eval()
        with torch.no_grad():
            found.append([x for x in tree_leaves(model(*inputs)) if x is not None])
    return [*found, dict(model.state_dict())]


def without_kernels(work: Callable[[], Any]) -> Callable[[], Any]:
    def eagerly() -> Any:
        with kernels.eager():
            return work()

    return eagerly


@pytest.mark.parametrize("recipe", [*RECIPES, "without kernels"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, recipe: str) -> None:
    make, shapes = LAYERS[name]
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    if recipe == "blocks" and (name.startswith("Conv") or "attention" in name.lower()):
        pytest.skip("groups, or scales along the gradient's sum, are refused")
    if (name, recipe) == ("encoder layer", "fp32"):
        pytest.skip("torch's own fast path is off where a default device is set")
    chosen = RECIPES.get(recipe, RECIPES["int8"])
    work = lambda: step(quantize(made(make), recipe=chosen), inputs)  # noqa: E731
    both(without_kernels(work) if recipe == "without kernels" else work)


@pytest.mark.parametrize("fused", [True, False], ids=["kernels", "eager"])
@pytest.mark.parametrize("deviation", ["l2", "l1", "linf", "topk", "range", "rounded", "8 bits"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, deviation: str, fused: bool) -> None:
    module, shape = NORMS[name]
    recipe: Any = deviation
    if deviation == "rounded":
        recipe = NormRecipe(
            deviation=deviations.l1(), arithmetic=Arithmetic(format=fp16, accumulator=fp16)
        )
    elif deviation == "8 bits":
        noisy = Q(format=int8, rounding=stochastic())
        recipe = NormRecipe(deviation=deviations.range_(), input=noisy, grad_output=noisy)
        recipe = recipe if module.state_dict() else NormRecipe(input=noisy, grad_output=noisy)
    elif deviation == "l2":
        recipe = NormRecipe(deviation=deviations.l2(), activation=fp16)
    x = normal(*shape)
    work = lambda: step(quantize(copy.deepcopy(module), recipe="fp32", norm=recipe), [x])  # noqa: E731
    both(work if fused else without_kernels(work))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10),
    )  # fmt: skip


IMAGES, LABELS = normal(6, 3, 8, 8), torch.arange(6, device="cpu") % 10


def converted(**options: Any) -> nn.Module:
    return quantize(made(network), **{"norm": "range", **options})


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
    inputs, targets = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss


def monitored() -> Any:
    model = converted()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor(model, every=1, layers=None) as monitor:
        for _ in range(5):
            train_step(model, optimizer, (IMAGES, LABELS))
    return str(monitor.report()), str(qtrain.diagnose(monitor)), list(map(repr, monitor.rows))


def recommended() -> str:
    model = converted(bits=4)
    blame = qtrain.sensitivity(model, IMAGES, LABELS, by="layer")
    costs = qtrain.cost(model, IMAGES)
    found = qtrain.recommend(
        blame, 0.9, costs, model=model, inputs=IMAGES, targets=LABELS
    )  # fmt: skip
    return f"{blame}\n{costs}\n{found}"


def half(model: nn.Module) -> list[Any]:
    x = IMAGES.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    output.float().sum().backward()
    return [output, x.grad]


def checkpointed(model: nn.Module) -> list[Any]:
    x = IMAGES.clone().requires_grad_()
    output = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    assert isinstance(output, Tensor)
    output.sum().backward()
    return [output, x.grad, dict(model.state_dict())]


def norm_schedule() -> list[Any]:
    model = converted()
    history = qtrain.NormHistory()
    history.record(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    correction = qtrain.CorrectedSteps(optimizer, model, history.at(0))
    train_step(model, optimizer, (IMAGES, LABELS))
    correction.set_norms(history.at(0))
    train_step(model, optimizer, (IMAGES, LABELS))
    return [qtrain.effective_rates(model, optimizer), dict(model.state_dict())]


TOOLS: dict[str, Callable[[], Any]] = {
    "network": lambda: step(converted(), [IMAGES]),
    "channels last": lambda: step(
        converted().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        [IMAGES.to(memory_format=torch.channels_last)],
    ),
    "wide batch-norm": lambda: step(
        quantize(made(lambda: nn.BatchNorm2d(70)), recipe="fp32", norm="range"),
        [normal(40, 70, 9, 9)],
    ),
    "fp64": lambda: step(converted().double(), [IMAGES.double()]),
    "autocast": lambda: half(converted()),
    "checkpointing": lambda: checkpointed(converted()),
    "calibrate": lambda: step(qtrain.calibrate(converted(), [IMAGES, IMAGES + 1]), [IMAGES]),
    "reseed": lambda: step(qtrain.reseed(converted(), 5), [IMAGES]),
    "plain_state_dict": lambda: dict(qtrain.plain_state_dict(converted())),
    "bounded": lambda: step(
        quantize(bound_weights(made(network), p=1, skip=["7"]), norm="none"), [IMAGES]
    ),
    "norm_relu": lambda: norm_relu(converted()[1], nn.ReLU(), normal(6, 8, 5, 5)),  # type: ignore[index]
    "summary": lambda: str(summary(converted(), IMAGES)),
    "inspect": lambda: str(qtrain.inspect(converted(), IMAGES, LABELS)),
    "accumulated": lambda: str(
        qtrain.accumulated(converted(), IMAGES, LABELS, reference=made(network))
    ),
    "cost, sensitivity, recommend": recommended,
    "Monitor": monitored,
    "norm schedule": norm_schedule,
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools(name: str) -> None:
    both(TOOLS[name])


def test_a_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the default device changes no bit, and the checkpoint none of its tensors."""

    def work(name: str) -> Any:
        def stop(progress: Progress, text: str) -> None:
            if "epoch 1/2" in text:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Progress, "line", stop)
            qtrain.train(small(tmp_path, name=name, monitor=2), say=quiet)
        qtrain.train(small(tmp_path, name=name, monitor=2, resume=True), say=quiet)
        return states(tmp_path / name / "checkpoint.pt"), lines(tmp_path / name / "metrics.jsonl")

    names = iter(("plain", "meta"))
    both(lambda: work(next(names)))


NOISY = Q(format=int8, rounding=stochastic())


@pytest.mark.parametrize(
    "make",
    [
        qtrain.Matmul,
        qtrain.ScaledDotProductAttention,
        lambda: nn.RMSNorm(4, elementwise_affine=False),
    ],
    ids=["Matmul", "attention", "RMSNorm"],
)  # fmt: skip
def test_the_state_of_a_module_without_parameters_follows_its_operands(
    make: Callable[[], nn.Module],
) -> None:
    """On a device that torch only imagines: an operation on tensors of two devices is an error."""
    recipe = qtrain.Recipe(
        name="noisy", forward=qtrain.Forward(input=NOISY), norm=NormRecipe(input=NOISY)
    )
    inputs = 1 if isinstance(make(), nn.RMSNorm) else 3 if "Attention" in str(make()) else 2
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = quantize(make(), recipe=recipe)
        x = torch.empty(2, 4, 4, device="cuda")
        assert model(*[x] * inputs).device == x.device
        assert {buffer.device for buffer in model.buffers()} == {x.device}


def test_a_module_without_parameters_takes_the_models_device() -> None:
    model = nn.ModuleList([qtrain.Matmul(), nn.Linear(4, 4, device="meta")])
    for product in products_of(quantize(model)):
        assert {buffer.device.type for buffer in product.buffers()} == {"meta"}
