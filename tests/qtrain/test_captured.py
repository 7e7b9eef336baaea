"""A captured step, replayed, is the step that Python would have run: no state of it is Python's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from captured_cases import CASES, Training, convnet, normal
from recorded import Recorded
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qtrain import CorrectedSteps, Monitor, NormSchedule, quantize
from qtrain.products.engines.engine import admitted
from qtrain.products.engines.float_units import Float64
from qtrain.training.nonfinite import first_nonfinite
from qtrain.weights.channels import channel_norms
from quantizers import kernels

#: steps before the one that is captured, and those that replay it
WARM, REPLAYED = 2, 3


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


class _OnMeta(TorchDispatchMode):
    """Fails on a tensor of the host: its number would be the captured one at each replay."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        assert {x.device.type for x in leaves if isinstance(x, torch.Tensor)} <= {"meta"}, func
        return result


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_a_device_meets_no_tensor_of_the_host(name: str) -> None:
    training = Training(CASES[name](), device="meta")
    training.step()
    with _OnMeta():  # type: ignore[no-untyped-call]
        training.step()


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
            "products.watched", "inspection.step_ends", "norms.ranks", "products.engines.engine",
            "training.nonfinite",
        ):  # fmt: skip
            monkeypatch.setattr(f"qtrain.{module}.capturing", lambda: on)

    return say


def test_a_monitored_step_is_not_captured(capturing: Callable[[bool], None]) -> None:
    training = Training(quantize(convnet()))
    with Monitor(training.model, every=2) as monitor:
        for _ in range(2):  # with probes, and without
            capturing(True)
            with pytest.raises(ValueError, match=r"'0'.*replays of a CUDA graph.*close\(\)"):
                training.step()
            twin = Training(copy.deepcopy(training.model))
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
    training, graph = Training(quantize(convnet())), Recorded()
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
    training = Training(quantize(nn.ModuleDict({"a": convnet(), "idle": nn.Linear(2, 2)})))
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
