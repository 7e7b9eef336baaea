"""A step of Triton's launches and torch's operations, run again without Python, is the next step.

What a CUDA graph does of it on a GPU (tests/qtrain/test_cuda_training.py), in the interpreter.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from triton_device import served

sys.path.insert(0, str(Path(__file__).parents[1] / "qtrain"))
from captured_cases import RECIPE, Training
from recorded import Recorded

from qtrain import quantize, recipes
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.engine import Engine
from qtrain.products.engines.gpu import scales
from quantizers import qtensor, steps
from quantizers.kernels.gpu import keys
from quantizers.kernels.gpu.device import INTERPRETED

pytestmark = [
    served,
    pytest.mark.skipif(not INTERPRETED, reason="on a GPU there are CUDA graphs"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of infinities
]
WARM = 1


class Launches(Recorded):
    """Records launches too, each in its place."""

    lets_kernels_pass = True
    on = False
    launches = 0

    def launched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The interpreter's run of a kernel, noted."""

        def unseen(*args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                run(*args, **kwargs)

        def noted(*args: Any, **kwargs: Any) -> None:
            if self.on:
                self.operations.append((unseen, args, kwargs, {}))
                self.launches += 1
            unseen(*args, **kwargs)

        return noted

    def __enter__(self) -> Any:
        self.on = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.on = False
        super().__exit__(*error)


def _serves_here(engine: Engine, device: str) -> bool:
    return not engine.device_types or device in engine.device_types


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A step takes the kernels and the engines of CUDA, on the CPU."""
    from triton.runtime.interpreter import GridExecutor

    graph = Launches()
    monkeypatch.setattr(GridExecutor, "__call__", graph.launched(GridExecutor.__call__))
    for function in (steps.quantize, steps.elements_of, qtensor.unshifted):
        monkeypatch.setattr(function, "forms", {"cpu": function.forms["cuda"]})
    for module in ("qtrain.autograd.recomputation", "qtrain.products.call"):
        monkeypatch.setattr(f"{module}.fold", keys.fold)
    monkeypatch.setattr("qtrain.products.engines.epilogue.times", scales.times)
    monkeypatch.setattr("qtrain.products.blocks.ENGINES", {"cpu": ENGINES["cuda"]})
    for kind in {type(engine) for engine in ENGINES["cuda"]}:  # tried by tests of their own
        monkeypatch.setattr(kind, "admitted_on", _serves_here)
    return graph


class Small(Training):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.x = torch.zeros(4, 3, 5, 5)

    def load(self, step: int) -> None:
        draw = torch.Generator().manual_seed(step)
        self.x.copy_(torch.randn(self.x.shape, generator=draw))
        self.target.fill_(step % 5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


RECIPES = {
    "noise everywhere": RECIPE, "int8": recipes.int8(), "in-hindsight": recipes.in_hindsight(),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_replay_is_the_next_step_bit_for_bit(recipe: Any, as_on_a_gpu: Launches) -> None:
    model = quantize(network(), recipe=recipe)
    plain, captured = Small(copy.deepcopy(model)), Small(model)
    for step in range(WARM + 3):
        for one in (plain, captured):
            one.load(step)
        plain.step()
        if step > WARM:
            as_on_a_gpu.replay()
        else:
            with as_on_a_gpu if step == WARM else nullcontext():
                captured.step()
        expected: dict[str, Tensor] = plain.found()
        got = captured.found()
        assert [n for n, value in expected.items() if not torch.equal(got[n], value)] == []
    assert as_on_a_gpu.launches > 10
