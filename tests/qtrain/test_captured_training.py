"""A run whose passes are replayed as a graph is the run that Python makes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded
from torch import Tensor
from training_cases import assert_same_run, quiet, small

from qtrain import train
from qtrain.training import captured
from qtrain.training.captured import WARM, Captured
from qtrain.training.nonfinite import NonFiniteError
from quantizers import kernels


class Graphs:
    """Recorded passes in the place of CUDA graphs."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph, first = Recorded(), [True]
        with graph:
            found = run()
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            if first:  # it ran as it was recorded
                first.clear()
            else:
                graph.replay()

        return replay, found


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    made = Graphs()
    monkeypatch.setattr(captured, "capturable", lambda device: True)
    monkeypatch.setattr(captured, "graph", made)
    monkeypatch.setattr(Captured, "_first", Captured._anew)  # there is no stream to run on
    return made


@pytest.mark.parametrize(
    ("changes", "captures", "replays"),
    [
        ({"recipe": "banner2018", "clip_grad": 0.5}, 2, 14),
        ({"switch": ("0.5:int8",), "recipe": "mxfp8", "baseline": False}, 2, 4),
        ({"baseline": False, "monitor": 4}, 0, 0),
        ({"baseline": False, "capture": False}, 0, 0),
    ],
    ids=["two models", "a switch", "a monitor", "not wanted"],
)
def test_a_replayed_run_is_the_run(
    tmp_path: Path, graphs: Graphs, changes: dict[str, Any], captures: int, replays: int
) -> None:
    with kernels.eager():  # what is recorded are torch's operations
        train(small(tmp_path, name="replayed", **changes), say=quiet)
        assert (graphs.captures, graphs.replays) == (captures, replays)
        train(small(tmp_path, name="plain", **{**changes, "capture": False}), say=quiet)
    assert_same_run(tmp_path / "plain", tmp_path / "replayed")


def test_a_replayed_fault_is_found_where_it_stands(
    tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An lr at which the run explodes within a few replays."""
    messages = []
    for capture in (True, False):
        with kernels.eager(), pytest.raises(NonFiniteError) as caught:
            config = small(tmp_path, name=str(capture), capture=capture, lr=1e9, warmup=0.0)
            train(config, say=quiet)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def passes(model: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, y: Tensor) -> Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.detach()

    return run


def test_another_shape_is_passed_by_itself_and_gradients_stay_where_the_graph_writes(
    graphs: Graphs,
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    step = Captured(model, passes(model))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    for n in (4, 4, 4, 4, 2, 4):
        found = step(x[:n] * n, y[:n])
        got = model.weight.grad
        want = Captured(model, passes(model), wanted=False)(x[:n] * n, y[:n])
        assert torch.equal(found, want) and torch.equal(got, model.weight.grad)
    assert (graphs.captures, graphs.replays) == (1, 2)


def test_passes_that_no_graph_takes_run_one_by_one_after_one_warning(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "graph", refuse)
    model = torch.nn.Linear(3, 2)
    step, pair = Captured(model, passes(model)), (torch.randn(4, 3), torch.randn(4, 2))
    for n in range(WARM + 3):
        warned = pytest.warns(UserWarning, match="CUDA graph: operation not permitted when [^\n]*$")
        with warned if n == WARM else contextlib.nullcontext():
            assert step(*pair) == (model(pair[0]) - pair[1]).square().mean()
