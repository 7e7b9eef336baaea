"""How many kernels a layer launches, its own and torch's, forward and backward."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton_device import DEVICE, served

from qtrain import quantize, recipes
from qtrain.products.engines import choice
from quantizers import Quantizer, root_key
from quantizers.devices.by_device import ByDevice
from quantizers.kernels.gpu import keys, launcher
from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.gpu.launcher import Launch
from quantizers.kernels.gpu.quantizers import whole

pytestmark = [served, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
#: operations that launch nothing
SILENT = (
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "expand", "new_empty", "permute",
    "promote_types", "reshape", "select", "slice", "split", "squeeze", "t.", "transpose",
    "unbind", "unflatten", "unsqueeze", "view",
)  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts launches by name; kernels run as they would without it."""

    lets_kernels_pass = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        run = Launch.__call__

        def counted(launch: Launch, *args: Any) -> None:
            self.found.append(f"{launch.kernel.__name__} (Triton)")
            with _disable_current_modes():  # the interpreter's own operations
                run(launch, *args)

        monkeypatch.setattr(Launch, "__call__", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if not name.startswith(("qtrain", "quantizers", *SILENT)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """With the CUDA forms and engines, admitted, also where the interpreter plays the device."""
    if INTERPRETED:
        for form in [o for o in gc.get_objects() if type(o) is ByDevice]:
            if "cuda" in form.forms:
                monkeypatch.setitem(form.forms, "cpu", form.forms["cuda"])
        for file in ("qtrain.products.call", "qtrain.autograd.recomputation"):
            monkeypatch.setattr(f"{file}.fold", _fold)
        row = choice.ENGINES["cuda"]
        for engine in row:
            monkeypatch.setattr(type(engine), "admitted_on", lambda self, device_type: True)
        monkeypatch.setattr(choice, "ENGINES", {**choice.ENGINES, "cpu": row})
        monkeypatch.setattr("qtrain.products.blocks.ENGINES", choice.ENGINES)
    yield Launches(monkeypatch)


def _fold(key: Tensor, value: int | Tensor, *, advance: bool = False) -> Tensor:
    made = keys.fold(key, value, advance)
    assert made is not None
    return made


def count(launches: Launches, model: nn.Module, x: Tensor) -> list[str]:
    """Of a second step, but for autograd's own sums of gradients."""
    model = model.to(DEVICE)
    for _ in range(2):
        leaf = x.to(DEVICE, copy=True).requires_grad_()
        model.zero_grad()
        launches.found.clear()
        with launches:
            output = model(leaf)
        gradient = torch.ones_like(output)
        with launches:
            output.backward(gradient)
    return launches.found


@pytest.mark.costly
def test_a_layer(launches: Launches) -> None:
    last = torch.channels_last
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False).to(memory_format=last)
    x = torch.randn(4, 16, 12, 12).contiguous(memory_format=last)
    found = count(launches, quantize(nn.Sequential(layer)), x)
    assert 10 < len(found) <= 14, found
    found = count(launches, quantize(nn.Sequential(nn.Linear(96, 96))), torch.randn(100, 96))
    assert 10 < len(found) <= 14, found


@pytest.mark.parametrize("name", ["fp8", "fp8-delayed", "in-hindsight", "int8"])
def test_a_quantizer(launches: Launches, name: str) -> None:
    """Nothing of torch's, so nothing that a captured graph would have to copy from the CPU."""
    recipe, x, key = recipes.get(name), torch.randn(3, 3001).to(DEVICE), root_key(1).to(DEVICE)
    for by in (recipe.forward.input, recipe.grad_input.grad_output):
        assert isinstance(by, Quantizer)
        for size, kernels in ((3001, ["extremes", "elements"]), (33, ["whole"])):
            tensor = x[:, :size].contiguous()
            state = {name: part.to(DEVICE) for name, part in by.init_state(tensor.shape).items()}
            launches.found.clear()
            with launches:
                made = whole(tensor, by, state or None, key, True)
            assert made is not None
            assert launches.found == [f"{kernel} (Triton)" for kernel in kernels]


@pytest.mark.costly
def test_a_norm(launches: Launches) -> None:
    last = torch.channels_last
    x = torch.randn(4, 16, 12, 12).contiguous(memory_format=last)
    found = count(launches, quantize(nn.Sequential(nn.BatchNorm2d(16)), norm="range"), x)
    assert 5 < len(found) <= 10, found


@pytest.mark.costly
def test_attention(launches: Launches) -> None:
    """Between its products one kernel each way, which leaves no sum of scores and mask."""
    model = quantize(nn.MultiheadAttention(24, 2, batch_first=True), recipe="bf16").to(DEVICE)
    x, causal = torch.randn(2, 5, 24).to(DEVICE), torch.ones(5, 5).triu(1).bool().to(DEVICE)
    with launches:
        output = model(x, x, x, attn_mask=causal)[0]
    gradient = torch.ones_like(output)
    with launches:
        output.backward(gradient)
    found = launches.found
    own = [name for name in found if "softmax" in name or name == "add.Tensor"]
    assert own == ["softmax (Triton)", "softmax_gradient (Triton)"], found


def test_tensors_on_several_devices_are_refused() -> None:
    key = root_key(3).to(DEVICE)
    elsewhere = torch.tensor(5, device="meta" if DEVICE == "cpu" else "cpu")
    launch = Launch(keys.KERNELS, "fold", LOADED=True, ADVANCED=False, num_warps=1)
    launch((1, 1, 1), key, torch.empty_like(key), key.clone())  # what it keeps serves no other
    with pytest.raises(RuntimeError, match="on the same device"):
        launch((1, 1, 1), key, torch.empty_like(key), elsewhere)


def test_what_is_compiled_serves_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dtypes and other alignments of tensors are compiled anew, each once."""
    compiled: list[Any] = []

    class Compiled(dict[Any, Any]):
        def __missing__(self, grid: Any) -> Any:
            return lambda *words, **_: self.setdefault("words", []).append(words)

    class Kernel:
        arg_names = ("x", "number", "SIZE")

        def __getitem__(self, grid: Any) -> Any:
            def run(*_: Any, **__: Any) -> Any:
                compiled.append(Compiled())
                return compiled[-1]

            return run

    monkeypatch.setattr(launcher, "_stream", lambda index: 0)
    launch = Launch(keys.KERNELS, "fold", (7,), SIZE=3)
    launch.kernel, launch.rest = Kernel(), (7, 3)
    x = torch.zeros(64, device=DEVICE)
    kinds = x, x[1:], x.to(torch.float64), x.double()[1:]
    for tensor in (*kinds, *kinds, x[4:]):
        launch((1, 1, 1), tensor)
    assert len(compiled) == len(kinds)
    assert compiled[0]["words"] == [(x.data_ptr(), 7, 3), (x[4:].data_ptr(), 7, 3)]
