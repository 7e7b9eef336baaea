"""A captured step, replayed, is the step that Python would have run: no state of it is Python's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from recorded import Recorded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import qtrain
from qtrain import (
    CorrectedSteps,
    Monitor,
    NormSchedule,
    bound_weights,
    quantize,
    recipes,
    weight_norm,
)
from qtrain.norms import deviations
from qtrain.norms.recipe import NormRecipe
from qtrain.products.engines.engine import admitted
from qtrain.products.engines.float_units import Float64
from qtrain.training.nonfinite import first_nonfinite
from qtrain.weights.channels import channel_norms
from quantizers import QTensor, Quantizer, ema, int8, kernels, minmax, stochastic

#: steps before the one that is captured, and those that replay it
WARM, REPLAYED = 2, 3
NOISY = Quantizer(format=int8, rounding=stochastic())
RECIPE = replace(
    recipes.int8(),
    forward=qtrain.Forward(input=NOISY, weight=NOISY),
    grad_input=qtrain.GradInput(grad_output=NOISY),
    grad_weight=qtrain.GradWeight(grad_output=replace(NOISY, range=ema(minmax))),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convnet(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.TransformerEncoderLayer(24, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layer(x.flatten(2).reshape(4, 8, 24)).mean(1))
        return y


class Checkpointed(nn.Module):
    """The convolutions' part runs twice, and its first layer twice in each."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.last = convnet(), nn.Linear(5, 5)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def twice(x: Tensor) -> Tensor:
            return self.inner(x) + self.inner(0.5 * x)  # type: ignore[no-any-return]

        settings: dict[str, Any] = {"use_reentrant": self.reentrant, "preserve_rng_state": False}
        y: Tensor = self.last(checkpoint(twice, x.requires_grad_(self.reentrant), **settings))
        return y


@dataclass(frozen=True)
class Counting:
    """A quantizer of the user's own, whose scale grows with the tensors it has seen."""

    def init_state(self, shape: Any) -> dict[str, Tensor]:
        return {"seen": torch.zeros((), dtype=torch.int64)}

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> QTensor:
        state["seen"].add_(int(training))
        scale = (x.abs().amax() / 100 + state["seen"] * 2.0**-12).view([1] * x.dim())
        elements = (x / scale).round().clamp(-127, 127).to(torch.int8)
        return QTensor(elements, scale, None, int8, tuple(x.shape))


OWN = qtrain.Recipe(name="own", forward=qtrain.Forward(input=Counting(), weight=NOISY))
RANGED = NormRecipe(deviation=deviations.range_(), input=NOISY, grad_output=NOISY)

CASES: dict[str, Callable[[], nn.Module]] = {
    "int8": lambda: quantize(convnet()),
    "noise everywhere": lambda: quantize(convnet(), recipe=RECIPE),
    "range norm": lambda: quantize(convnet(), norm="range"),
    "quantized norm": lambda: quantize(convnet(), recipe=RECIPE, norm=RANGED),
    "cumulative average": lambda: quantize(convnet(momentum=None), norm="l1"),
    "banner2018": lambda: quantize(convnet(), recipe="banner2018"),
    "bf16": lambda: quantize(convnet(), recipe="bf16"),
    "attention": lambda: quantize(Attention(), recipe=RECIPE),
    "bounded weights": lambda: bound_weights(quantize(convnet(), recipe=RECIPE)),
    "weight norm": lambda: weight_norm(quantize(convnet(), recipe=RECIPE), 1),
    "own quantizer": lambda: quantize(convnet(), recipe=OWN),
    "checkpointed, reentrant": lambda: quantize(Checkpointed(True), recipe=RECIPE),
    "checkpointed": lambda: quantize(Checkpointed(False), recipe=RECIPE),
}


class Training:
    """A model in training on tensors whose contents change; `hook` makes what else steps."""

    def __init__(self, model: nn.Module, hook: Callable[[Any, nn.Module], Any] | None) -> None:
        self.model = model
        self.x, self.target = normal(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
        self.loss = torch.zeros(())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.hook = None if hook is None else hook(self.optimizer, model)

    def load(self, step: int) -> None:
        self.x.detach().copy_(normal(4, 3, 8, 8, seed=step))
        self.target.fill_(step % 5)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(self.model(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def found(self) -> dict[str, Tensor]:
        grads = {
            f"{n}.grad": p.grad for n, p in self.model.named_parameters() if p.grad is not None
        }
        every = {**self.model.state_dict(), **grads, "loss": self.loss}
        return {name: value.detach().clone() for name, value in every.items()}


def compare(
    make: Callable[[], nn.Module],
    hook: Callable[[Any, nn.Module], Any] | None = None,
    between: Callable[[Any, int], None] = lambda hook, step: None,
) -> None:
    model = make()
    plain, captured = Training(copy.deepcopy(model), hook), Training(model, hook)
    graph = Recorded()
    with kernels.eager():  # what is recorded are torch's operations
        for step in range(WARM + 1 + REPLAYED):
            for one in (plain, captured):
                one.load(step)
                between(one.hook, step)
            plain.step()
            if step > WARM:
                graph.replay()
            else:
                with graph if step == WARM else nullcontext():
                    captured.step()
            expected, got = plain.found(), captured.found()
            wrong = [name for name, value in expected.items() if not torch.equal(got[name], value)]
            assert not wrong, f"step {step}"


@pytest.mark.parametrize("name", CASES)
def test_a_replay_is_the_next_step_bit_for_bit(name: str) -> None:
    compare(CASES[name])


def _schedule(optimizer: Any, model: nn.Module) -> NormSchedule:
    return NormSchedule(optimizer, model, channel_norms(model))


def _correction(optimizer: Any, model: nn.Module) -> CorrectedSteps:
    return CorrectedSteps(optimizer, model, channel_norms(model))


@pytest.mark.parametrize("hook", [_schedule, _correction])
def test_a_replay_takes_the_norms_and_the_factor_that_are_set(hook: Any) -> None:
    norms = channel_norms(quantize(convnet()))

    def between(hook: Any, step: int) -> None:
        hook.set_norms({name: own * (1 + step / 8) for name, own in norms.items()})
        if isinstance(hook, NormSchedule):
            hook.factor = math.sqrt(1 + step)

    compare(lambda: quantize(convnet()), hook, between)


def test_what_is_set_of_norms_is_no_longer_the_callers() -> None:
    model = quantize(convnet())
    norms = channel_norms(model)
    before = {name: own.clone() for name, own in norms.items()}
    schedule = _schedule(torch.optim.SGD(model.parameters(), lr=0.1), model)
    schedule.set_norms(norms)
    schedule.set_norms({name: 2 * own for name, own in norms.items()})
    assert all(torch.equal(norms[name], own) for name, own in before.items())


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says of what follows whether it is captured."""

    def say(on: bool) -> None:
        for module in (
            "products.module", "inspection.step_ends", "norms.ranks", "products.engines.engine",
            "training.nonfinite",
        ):  # fmt: skip
            monkeypatch.setattr(f"qtrain.{module}.capturing", lambda: on)

    return say


def test_a_monitored_step_is_not_captured(capturing: Callable[[bool], None]) -> None:
    training = Training(quantize(convnet()), None)
    with Monitor(training.model, every=2) as monitor:
        for _ in range(2):  # with probes, and without
            capturing(True)
            with pytest.raises(ValueError, match=r"'0'.*replays of a CUDA graph.*close\(\)"):
                training.step()
            twin = Training(copy.deepcopy(training.model), None)
            twin.step()  # is not monitored
            training.optimizer.zero_grad()
            capturing(False)
            F.cross_entropy(training.model(training.x), training.target).backward()
            capturing(True)
            with pytest.raises(ValueError, match=r"the optimizer's step is captured"):
                training.optimizer.step()
            capturing(False)
            training.step()
        assert monitor.step == 2
    capturing(True)
    training.step()


def test_a_monitor_of_replayed_steps_says_that_it_sees_nothing() -> None:
    training, graph = Training(quantize(convnet()), None), Recorded()
    training.step()

    def gradients() -> None:
        training.optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(training.model(training.x), training.target).backward()

    with graph:
        gradients()
    with Monitor(training.model, every=2) as monitor:
        graph.replay()
        with pytest.warns(UserWarning, match=r"Monitor: 0, 3, 7 ran in a step .* CUDA graph"):
            training.optimizer.step()
        graph.replay()
        training.optimizer.step()  # was not to be recorded
        gradients()
        training.optimizer.step()
        training.model.eval()
        assert {row.step for row in monitor.rows} == {2}


def test_a_layer_that_does_not_run_is_no_replay() -> None:
    training = Training(quantize(nn.ModuleDict({"a": convnet(), "idle": nn.Linear(2, 2)})), None)
    with Monitor(training.model, every=1) as monitor:
        training.model.get_submodule("a")(training.x).sum().backward()
        training.optimizer.step()
    assert {row.layer for row in monitor.rows} == {"a.0", "a.3", "a.7"}


def test_no_engine_is_tried_while_a_graph_is_captured(
    capturing: Callable[[bool], None],
) -> None:
    class New(Float64):
        name = "new"

    capturing(True)
    engine = New()
    with pytest.raises(ValueError, match="run a step before the capture"):
        admitted(engine, "cpu")
    capturing(False)
    assert admitted(engine, "cpu")


def test_the_search_for_a_nan_is_not_captured(capturing: Callable[[bool], None]) -> None:
    model = quantize(convnet())
    capturing(True)
    with pytest.raises(ValueError, match="not in a captured CUDA graph"):
        first_nonfinite(model, lambda: model(normal(4, 3, 8, 8)).sum())
