"""Training on a CUDA device: what holds on the CPU holds there, captured in a CUDA graph too."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from captured_cases import CASES, NOISY, RECIPE, Checkpointed, Training, convnet, normal
from fault_cases import FAULTS, Healthy, recipe_with
from sync_cases import run_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from training_cases import assert_same_run, quiet, small

import qtrain
from qtrain import Monitor, NormSchedule, diagnose, inspect, quantize, summary
from qtrain.products.convolution import Convolution
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.engine import admitted
from qtrain.products.engines.epilogue import Epilogue
from qtrain.products.engines.float_units import Float64
from qtrain.products.engines.task import Span, Task
from qtrain.products.operations import KINDS
from qtrain.products.product import Product
from qtrain.reports.progress import Progress
from qtrain.training import captured
from qtrain.training.captured import WARM as BEFORE
from qtrain.training.captured import Captured, graph
from qtrain.training.interrupt import Interrupted
from qtrain.weights.channels import channel_norms
from quantizers import Quantizer, int8, percentile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda"
#: steps before a capture
WARM = 2


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """The switch under which torch's own kernels repeat: see docs/contracts.md."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def near(a: Tensor, b: Tensor) -> bool:
    """Apart by less than noise is."""
    return bool((a - b).norm() < 1e-3 * b.norm())


def unequal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert got.keys() == expected.keys()
    return [name for name, value in expected.items() if not torch.equal(got[name], value)]


def capture(training: Training) -> torch.cuda.CUDAGraph:
    """A step as a graph, which is not run, after WARM steps on a stream of their own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(WARM):
            training.load(step)
            training.step()
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()  # what is left of a backward pass belongs to the other stream
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
    return graph


# CUDA graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_replay_is_the_next_step_bit_for_bit(name: str) -> None:
    model = CASES[name]()
    plain = Training(copy.deepcopy(model), device=DEVICE)
    captured = Training(model, device=DEVICE)
    graph = capture(captured)
    for step in range(WARM):
        plain.load(step)
        plain.step()
    for step in range(WARM, WARM + 3):
        for one in (plain, captured):
            one.load(step)
        plain.step()
        graph.replay()
        assert not unequal(captured.found(), plain.found()), f"step {step}"


def test_every_replay_draws_other_noise() -> None:
    training = Training(quantize(convnet(), recipe=RECIPE), device=DEVICE)
    training.optimizer.param_groups[0]["lr"] = 0.0  # the same weights at each
    graph = capture(training)
    losses = []
    for _ in range(4):
        graph.replay()
        losses.append(training.loss.item())
    assert len(set(losses)) == 4
    counts = [int(n) for name, n in training.model.state_dict().items() if "noise_count" in name]
    assert counts == [WARM + 4] * len(counts)


def test_a_replay_takes_the_norms_and_the_factor_that_are_set() -> None:
    model = quantize(convnet(), recipe=RECIPE)

    def hook(optimizer: Any, model: nn.Module) -> NormSchedule:
        return NormSchedule(optimizer, model, channel_norms(model))

    plain, captured = (Training(copy.deepcopy(model), hook, DEVICE) for _ in range(2))
    graph = capture(captured)
    for step in range(WARM):
        plain.load(step)
        plain.step()
    norms = channel_norms(plain.model)
    for step in range(WARM, WARM + 2):
        for one in (plain, captured):
            one.load(step)
            one.hook.set_norms({name: own * (1 + step) for name, own in norms.items()})
            one.hook.factor = 1.0 + step
        plain.step()
        graph.replay()
        assert not unequal(captured.found(), plain.found())


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")  # torch's own
def test_graphed_callables_train_as_the_module_does() -> None:
    """Forward and backward are two graphs."""
    model = quantize(convnet(), recipe=RECIPE)
    plain, captured = (Training(copy.deepcopy(model), device=DEVICE) for _ in range(2))
    for one in (plain, captured):
        one.step()  # torch captures no module with hooks, such as the watch of a first forward
    kept = {name: value.clone() for name, value in captured.model.state_dict().items()}
    captured.keeps_grads = False  # which are the graph's own memory
    captured.optimizer.zero_grad()
    captured.model = torch.cuda.make_graphed_callables(captured.model, (captured.x.clone(),))
    captured.model.load_state_dict(kept)  # its warm-up counts as steps
    for step in range(3):
        for one in (plain, captured):
            one.load(step)
            one.step()
        assert not unequal(captured.found(), plain.found()), f"step {step}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of TensorFloat32 cores, by the compiler
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reduced_overhead_draws_new_noise_and_counts() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    model = quantize(net, recipe=RECIPE).to(DEVICE)
    eager, x = copy.deepcopy(model), normal(8, 24).to(DEVICE)
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    outputs = []
    for step in range(5):  # warm-up, capture, replays
        torch.compiler.cudagraph_mark_step_begin()
        found = []
        for one, call in ((model, run), (eager, eager)):
            one.zero_grad(set_to_none=True)
            output = call(x)
            output.sum().backward()
            grads = [p.grad.clone() for p in one.parameters() if p.grad is not None]
            found.append([output.detach().clone(), *grads])
        assert all(near(*pair) for pair in zip(*found, strict=True)), f"step {step}"
        outputs.append(found[0][0])
    assert not any(near(a, b) for a, b in itertools.combinations(outputs, 2))
    for name, value in eager.state_dict().items():
        if "noise_count" in name:
            assert int(value) == 5 == int(model.state_dict()[name])
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


def test_a_monitor_and_an_untried_engine_refuse_the_capture() -> None:
    class Untried(Float64):
        name = "untried"

    training, engine = Training(quantize(convnet()), device=DEVICE), Untried()
    capture(training)
    graph = torch.cuda.CUDAGraph()
    with Monitor(training.model, every=100) as monitor:
        training.step()
        with pytest.raises(ValueError, match="replays of a CUDA graph"), torch.cuda.graph(graph):
            training.x + 1  # a graph that stays empty is warned of
            training.step()
        assert monitor.step == 1
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="run a step before the capture"), torch.cuda.graph(graph):
        training.x + 1
        admitted(engine, DEVICE)
    assert admitted(engine, DEVICE)


def test_a_monitor_of_replayed_steps_says_that_it_sees_nothing() -> None:
    training = Training(quantize(convnet()), device=DEVICE)
    graph = capture(training)
    with Monitor(training.model, every=1) as monitor:
        graph.replay()
        with pytest.warns(UserWarning, match=r"Monitor: 0, 3, 7 ran in a step .* CUDA graph"):
            monitor.end_step()


# What looks at a training -------------------------------------------------------------------------


def test_inspection_sees_what_it_sees_on_the_cpu() -> None:
    x, target = normal(16, 3, 8, 8), torch.arange(16) % 5
    found = []
    for device in ("cpu", DEVICE):
        model = quantize(convnet(), recipe=RECIPE).to(device)
        found.append(inspect(model, x.to(device), target.to(device)).rows)
    for a, b in zip(*found, strict=True):
        assert (a.layer, a.role) == (b.layer, b.role)
        assert a.sqnr_db == pytest.approx(b.sqnr_db, abs=1.0)


def test_the_summary_counts_what_no_kernel_took() -> None:
    slow = Quantizer(format=int8, range=percentile(0.99))
    recipe = replace(RECIPE, forward=qtrain.Forward(input=slow, weight=NOISY))
    model = quantize(convnet(), recipe=recipe).to(DEVICE)
    found = summary(model, normal(16, 3, 8, 8).to(DEVICE))
    assert found.declined[str(slow)] == 3
    assert f"calls of quantizers, by torch's own operations on {DEVICE}" in str(found)
    assert f"{slow} (3)" in str(found)


def test_a_monitored_training_stays_the_same() -> None:
    model = quantize(convnet(), recipe=RECIPE)
    found, rows = [], {}
    for device, monitored in (("cpu", True), (DEVICE, True), (DEVICE, False)):
        training = Training(copy.deepcopy(model), device=device)
        monitor = Monitor(training.model, every=2, layers=None) if monitored else None
        for step in range(4):
            training.load(step)
            training.step()
        if monitor is not None:
            monitor.close()
            rows[device] = [(row.step, row.layer, row.role) for row in monitor.rows]
        found.append(training.found())
    assert not unequal(*found[1:])
    assert rows["cpu"] == rows[DEVICE]


@pytest.fixture(scope="module")
def healthy() -> Healthy:
    return Healthy(device=DEVICE)


@pytest.mark.parametrize(
    ("fault", "role"), [("wrong clip", "input"), ("shared noise", "grad_output (grad_input)")]
)
def test_a_planted_fault_is_ranked_first(healthy: Healthy, fault: str, role: str) -> None:
    make, symptoms = FAULTS[fault]
    broken = recipe_with(make(role != "input"), role)
    verdict = diagnose(healthy.run({"layer2.0.conv1": broken}))
    first = verdict.findings[0]
    assert (first.layer, first.role) == ("layer2.0.conv1", role), str(verdict)
    assert first.symptom in symptoms


# What a step may be made of -----------------------------------------------------------------------


def test_a_run_that_is_resumed_is_the_one_that_was_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: Progress, text: str) -> None:
        if "epoch 1/2" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    settings: dict[str, Any] = {"device": DEVICE, "monitor": 4, "baseline": True}
    qtrain.train(small(tmp_path, name="whole", **settings), say=quiet)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Progress, "line", stop)
        qtrain.train(small(tmp_path, name="parts", **settings), say=quiet)
    qtrain.train(small(tmp_path, name="parts", resume=True, **settings), say=quiet)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("recipe", ["int8", "banner2018", "nvfp4"])
def test_a_run_of_replayed_passes_is_the_run(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def noted(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        made.append(graph(run))
        return made[-1]

    monkeypatch.setattr(captured, "graph", noted)
    for capture in (True, False):
        settings: dict[str, Any] = {"device": DEVICE, "recipe": recipe, "model": "resnet20"}
        config = small(tmp_path, name=str(capture), capture=capture, clip_grad=1.0, **settings)
        qtrain.train(config, say=quiet)
        assert len(made) == 2  # of the baseline and of the quantized model
    assert_same_run(tmp_path / "True", tmp_path / "False")


def test_a_capture_that_fails_leaves_a_run_as_it_was() -> None:
    model = nn.Linear(3, 2).to(DEVICE)

    def passes(x: Tensor, y: Tensor) -> Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.detach() * (1 + 0 * loss.item())

    step, pair = Captured(model, passes), (torch.ones(4, 3).to(DEVICE), torch.ones(4, 2).to(DEVICE))
    found = [step(*pair) for _ in range(BEFORE)]
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        found.append(step(*pair))
    assert len({float(loss) for loss in [*found, step(*pair)]}) == 1


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_recomputed_segments_have_the_bits_of_those_that_are_not(reentrant: bool) -> None:
    found = []
    for mode in (None, reentrant):
        model = quantize(Checkpointed(mode, times=1), recipe=RECIPE, norm="range")
        training = Training(model, device=DEVICE)
        for step in range(3):
            training.load(step)
            training.step()
        # a batch-norm counts a repeated forward, as torch's does
        every = training.found().items()
        found.append({k: v for k, v in every if not k.startswith("inner.1.")})
    assert not unequal(*found)


LAYERS: dict[str, Any] = {
    "Linear": (lambda: nn.Linear(12, 8), (4, 12)),
    "Conv2d": (lambda: nn.Conv2d(4, 8, 3), (4, 4, 6, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), (4, 4, 6, 6)),
    "LayerNorm": (lambda: nn.LayerNorm(12), (4, 12)),
    "MultiheadAttention": (lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.0), (3, 4, 8)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_gives_the_dtypes_of_torchs_own_layers(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    found = []
    for converted in (False, True):
        model: nn.Module = nn.Sequential(make())
        norm = None if name in ("Linear", "Conv2d") else "range"
        model = (quantize(model, norm=norm) if converted else model).to(DEVICE)
        x = normal(*shape).to(DEVICE).requires_grad_()
        with torch.autocast(DEVICE, dtype):
            output = model(x)
        output.float().square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert x.grad is not None and all(g.isfinite().all() for g in (x.grad, *grads))
        found.append([t.dtype for t in (output, x.grad, *grads)])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_that_a_grad_scaler_skips_changes_no_parameter(dtype: torch.dtype) -> None:
    training = Training(quantize(convnet(), recipe=RECIPE, norm="range"), device=DEVICE)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    with Monitor(training.model, every=1) as monitor:
        for step in range(3):
            training.load(step)
            before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
            training.optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype):
                loss = F.cross_entropy(training.model(training.x).float(), training.target)
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.step(training.optimizer)
            scaler.update()
            after = dict(training.model.named_parameters())
            same = [torch.equal(after[name], value) for name, value in before.items()]
            assert all(same) == (step == 1)
        assert monitor.step == 2
    assert scaler.get_scale() == 2.0**7
    for name, value in training.model.state_dict().items():
        assert value.isfinite().all(), name  # running ranges too
        if "noise_count" in name:
            assert int(value) == 3  # the skipped step's forward drew noise


def test_a_model_takes_its_state_from_device_to_device() -> None:
    stayed, moved = (Training(quantize(convnet(), recipe=RECIPE)) for _ in range(2))
    for one in (stayed, moved):
        for step in range(2):
            one.load(step)
            one.step()
    moved.model.to(DEVICE)
    assert {buffer.device.type for buffer in moved.model.buffers()} == {DEVICE}
    moved.model.cpu()
    for one in (stayed, moved):
        one.load(2)
        one.step()
    assert not unequal(moved.found(), stayed.found())


def test_off_is_off_under_deterministic_kernels() -> None:
    plain = convnet()
    found = []
    for model in (quantize(plain, recipe="fp32"), copy.deepcopy(plain)):
        training = Training(model, device=DEVICE)
        for step in range(2):
            training.load(step)
            training.step()
        found.append({name: p.detach() for name, p in training.model.named_parameters()})
    assert not unequal(*found)


CONVOLUTIONS = {
    "3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (16, 64, 14, 14), (1, 64, 64, 3, 3)),
    "5x5": (Convolution((1, 1), (2, 2), (1, 1), 1), (4, 32, 28, 28), (1, 32, 32, 5, 5)),
    "7x7": (Convolution((1, 1), (3, 3), (1, 1), 1), (2, 16, 32, 32), (1, 16, 16, 7, 7)),
    "1 axis": (Convolution((1,), (4,), (1,), 1), (4, 16, 64), (1, 24, 16, 9)),
    "strides": (Convolution((2, 2), (1, 1), (1, 1), 1), (8, 32, 15, 15), (1, 40, 32, 3, 3)),
    "transposed": (
        Convolution((2, 2), (1, 1), (1, 1), 1, True, (0, 0)), (8, 32, 8, 8), (1, 24, 32, 4, 4)
    ),
    "3 axes": (Convolution((1,) * 3, (1,) * 3, (1,) * 3, 1), (2, 8, 6, 8, 8), (1, 16, 8, 3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("high", [127, 2047])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sums_of_integers_are_exact_whatever_cudnn_would_choose(name: str, high: int) -> None:
    operation, input, weight = CONVOLUTIONS[name]
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-high, high + 1, s, generator=draw).double() for s in (input, weight))
    g = operation.product("forward", x, w, x)
    g = torch.randint(-127, 128, g.shape, generator=draw).double()
    for kind, (a, b, like) in zip(KINDS, ((x, w, x), (g, w, x), (g, x, w)), strict=True):
        product = Product(operation, kind)
        exact = product.run(a, b, like)
        one, other = (Span(-127, 127) if t is g else Span(-high, high) for t in (a, b))
        task = Task(product, *product.terms(a.shape, b.shape), one, other)
        served = []
        for engine in ENGINES[DEVICE]:
            for form in (task, replace(task, sums=False)):
                if not (engine.supports(form) and admitted(engine, DEVICE)):
                    continue
                narrow = torch.int8 if high < 128 else torch.int16
                on = [a.to(DEVICE, narrow), b.to(DEVICE, narrow), like.float().to(DEVICE)]
                with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
                    got = engine.product(form, *on, epilogue=None if form.sums else Epilogue())
                expected = exact if form.sums else exact.float()
                assert torch.equal(got.cpu().to(expected.dtype), expected), (kind, engine.name)
                served.append(engine.name)
        assert "float64" in served


# Several processes --------------------------------------------------------------------------------


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    init = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=init, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of NCCL's own
def test_ddp_of_one_rank_is_the_model_alone(nccl: None) -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(convnet())
    model = quantize(net, recipe=RECIPE, norm="l1")
    found = []
    for parallel in (False, True):
        training = Training(copy.deepcopy(model), device=DEVICE)
        if parallel:
            training.model = DistributedDataParallel(training.model, device_ids=[0])
        for step in range(3):
            training.load(step)
            training.step()
        found.append({k.removeprefix("module."): v for k, v in training.found().items()})
    assert not unequal(*found)


def test_two_ranks_on_one_device_train_as_on_the_cpu(tmp_path: Path) -> None:
    for found in run_ranks("devices", 2, tmp_path):
        for name, expected in found["cpu"].items():
            torch.testing.assert_close(found[DEVICE][name], expected, rtol=1e-9, atol=1e-9)
