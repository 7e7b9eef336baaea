"""The summary, and the warning after the first forward: what ran outside the recipe."""

from __future__ import annotations

import copy
import random
import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from qtrain import (
    Matmul,
    ScaledDotProductAttention,
    cost,
    quantize,
    quantize_,
    recipes,
    set_recipe,
    summary,
)
from qtrain.conversion.declined import lines
from qtrain.conversion.functional.scope import Scope
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.engine import admitted
from qtrain.products.engines.half.engine import HalfUnits
from qtrain.products.engines.onednn import OneDnnInt8
from qtrain.products.engines.unfolded import UnfoldedInt8
from quantizers import steps


class Outside(nn.Module):
    """A layer, and a function between activations."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.inner = Inner(function)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.fc(x))
        return out


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def square(x: Tensor) -> Tensor:
    return x[:4].reshape(4, 4)


FUNCTIONS = {
    "matmul": lambda x: torch.matmul(x, x.T),
    "operator": lambda x: x @ x.T,
    "bmm": lambda x: torch.bmm(x[None], x.T[None]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "F.linear": lambda x: F.linear(x, square(x)),
    "F.linear with bias": lambda x: F.linear(x, square(x), x[0]),
    "vector": lambda x: x @ x[0],
    "conv1d": lambda x: F.conv1d(x[None], x[None]),
    "conv2d": lambda x: F.conv2d(x[None, None], x[None, None, :2, :2]),
    "conv_transpose": lambda x: F.conv_transpose1d(x[None], x[:, :2, None]),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "bilinear": lambda x: F.bilinear(x, x, x[None, :, :4].expand(2, 4, 4)),
    "baddbmm": lambda x: torch.baddbmm(x[None, :4], x[None, :4], x[None, :4]),
}


def warned(model: nn.Module, *inputs: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(*inputs)
    return [str(w.message) for w in caught if "qtrain" in str(w.message)]


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_products_are_named_with_their_module(name: str, mode: str) -> None:
    x = torch.ones(4, 4)
    model = quantize(Outside(FUNCTIONS[name]), functional=False)
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        messages = warned(model, x)
        assert len(messages) == 1 and "\n  inner: " in messages[0], messages
        assert messages[0].count("ran in full precision") == 1
        assert warned(model, x) == []  # only the first
        assert list(summary(model, x).outside or {}) == ["inner"]


def test_products_of_the_root_itself_are_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.position = nn.Parameter(torch.zeros(1, 4))  # holds weights: named, not silenced

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.matmul(self.fc(x + self.position), x.T)
            return out

    (message,) = warned(quantize(Root(), functional=False), torch.ones(2, 4))
    assert "(model): mm ran in full precision" in message and "functional=True" in message


def test_recurrent_layers_of_their_own_are_named_and_overrides_are_not() -> None:
    class OwnGRU(nn.GRU):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    class OwnCell(nn.LSTMCell):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = OwnGRU(4, 4)
            self.fc = nn.Linear(4, 4)
            self.cell = OwnCell(4, 4)
            self.plain = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.plain(self.cell(self.fc(self.rnn(x)[0])[0])[0])
            return out

    x = torch.ones(2, 3, 4)
    (message,) = warned(quantize(Recurrent()), x)
    assert "\n  rnn: " in message and "\n  cell: " in message and "plain" not in message
    model = quantize(Recurrent(), overrides={"rnn": None, "cell": None, "plain": None})
    assert warned(model, x) == []
    assert set(summary(model, x).outside or {}) == {"rnn", "cell", "plain"}


def test_a_layer_that_never_runs_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.read = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x) + self.read.weight.sum()
            return out

    model = quantize(Idle())
    assert summary(model, torch.ones(2, 4)).never_ran == ["read"]
    (message,) = warned(model, torch.ones(2, 4))
    assert "read: converted, but never ran" in message and "used" not in message
    assert warned(quantize(Idle(), overrides={"read": None}), torch.ones(2, 4)) == []


class Covered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.matmul = Matmul()
        self.sdpa = ScaledDotProductAttention()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.attention(x, x, x)[0]
        x = self.sdpa(x, x, x)
        out: Tensor = self.fc(self.matmul(x, x.transpose(1, 2)))
        return out


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_covered_model_warns_of_nothing(recipe: str) -> None:
    for train in (True, False):
        model = quantize(Covered().train(train), recipe=recipe)
        assert warned(model, torch.randn(2, 4, 4)) == []
        found = summary(model, torch.randn(2, 4, 4))
        assert found.outside == {} and found.never_ran == []


def test_a_layer_that_is_the_model_warns_of_nothing() -> None:
    for recipe in recipes.names():
        assert warned(quantize(nn.Linear(4, 4), recipe=recipe), torch.ones(2, 4)) == []


def users_hooks(model: nn.Module) -> list[Any]:
    """All but what calls of functions are taken by."""
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]
    return [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), Scope)]


def nothing_left_behind(model: nn.Module) -> None:
    assert not users_hooks(model) and not _len_torch_function_stack()
    assert len(model._forward_hooks_always_called) == len(model._forward_hooks)
    assert not global_hooks._global_forward_hooks and not global_hooks._global_forward_pre_hooks
    assert not _get_current_dispatch_mode_stack()


def test_a_forward_that_raises_leaves_no_hook_behind() -> None:
    model = quantize(Outside(lambda x: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        model(torch.ones(2, 4))
    nothing_left_behind(model)
    model = quantize(Outside(torch.relu))
    model(torch.ones(2, 4))
    nothing_left_behind(model)
    with pytest.raises(ZeroDivisionError):
        summary(quantize(Outside(lambda x: 1 / 0)), torch.ones(2, 4))
    assert not _get_current_dispatch_mode_stack() and not global_hooks._global_forward_hooks


def test_a_users_hooks_stay() -> None:
    model = Outside(torch.relu)
    calls: list[str] = []
    model.register_forward_hook(lambda m, a, o: calls.append("after"))
    model.register_forward_pre_hook(lambda m, a: calls.append("before"))
    converted = quantize(model)
    for _ in range(2):
        converted(torch.ones(2, 4))
    assert calls == ["before", "after"] * 2
    assert len(users_hooks(converted)) == 2


def test_summary_touches_nothing() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.random() + np.random.rand() + torch.rand(1)

    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Random()))
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]
    summary(model, torch.randn(3, 4, generator=torch.Generator()))
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert torch.equal(states[2], torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(model._forward_hooks) == 1  # the first forward is still to be watched


def test_the_summary_counts_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Embedding(3, 4))
    refused = [
        one.name for one in ENGINES["cpu"] if one.has_units("cpu") and not admitted(one, "cpu")
    ]
    found = summary(quantize(model, overrides={"2": None}))
    assert found.converted == {"0": "Linear", "1": "Conv1d"}
    assert set(found.left) == {"2", "3"}
    assert found.outside is None and found.never_ran is None
    assert found.refused == refused
    text = str(found)
    parts = ["converted  2 layers: 1 Linear, 1 Conv1d", "left       2", "left by an override (2)"]
    for part in (*parts, "a lookup, no product", "full precision", "an optimizer built before"):
        assert part in text
    assert "an optimizer built before" not in str(summary(quantize_(copy.deepcopy(model))))


def test_the_summary_says_a_recipe_once_and_what_it_counts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), layer)
    found = summary(quantize(model, overrides={"[01]": "mxfp8"}), torch.randn(2, 3, 8))
    text = str(found)
    assert text.count("override   ") == 1 and "override   0, 1: mxfp8: input e4m3" in text
    count = len(found.engines or {})
    assert f"converted  {len(found.converted)} layers, {count} products ran: " in text
    served = [int(n) for n in re.findall(r"forward of (\d+) products", text)]
    assert sum(served) == count > len(found.converted)


def test_a_model_that_was_not_converted_has_no_summary() -> None:
    with pytest.raises(ValueError, match=r"was not converted by quantize or quantize_$"):
        summary(nn.Linear(2, 2))
    around = nn.Sequential(nn.Module(), nn.Linear(2, 2))
    around[0].m = quantize(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"a part of it was: summary\(model\[0\]\.m, \.\.\.\)$"):
        summary(around, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"a part of it was: set_recipe\(model\[0\]\.m, \.\.\.\)$"):
        set_recipe(around, "fp32")


def test_the_summary_looks_inside_wrappers() -> None:
    model = quantize(nn.Linear(4, 4))
    wrapped = torch.compile(model, backend="eager")
    assert summary(wrapped, torch.ones(2, 4)).never_ran == []  # type: ignore[arg-type]
    assert summary(nn.DataParallel(model)).converted == {"(model)": "Linear"}


class Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, stride=2)
        self.up = nn.ConvTranspose2d(64, 64, 2, stride=2)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.up(self.conv(x))
        return {"out": self.fc(x.mean((2, 3))), "hidden": x, "best": x.argmax(1)}


def _eight(terms: int) -> str:
    """What should serve a convolution of 8-bit codes with a zero point on this processor."""
    if admitted(OneDnnInt8(), "cpu"):
        return "onednn_int8"
    by_float = OneDnnInt8(shifted=2**24)
    if terms * 255 * 128 < 2**24 and admitted(by_float, "cpu"):
        return by_float.name
    return "unfolded_int8" if admitted(UnfoldedInt8(), "cpu") else "float32"


def test_the_summary_names_the_engine_of_every_product() -> None:
    x = torch.randn(8, 64, 17, 17)
    found = summary(quantize(Shapes()), x)
    plain = {"grad_weight": "torch (float operand)"}
    half = HalfUnits.name if HalfUnits().admitted_on("cpu") else plain["grad_weight"]
    first = {"forward": _eight(64 * 9), "grad_weight": half}
    both = {"forward": _eight(64), "grad_input": _eight(64 * 4), **plain}
    small = {"forward": "float32", "grad_input": "float32", **plain}
    assert found.engines == {"conv": first, "up": both, "fc": small}
    text = str(found)
    if first["forward"] == both["forward"] != "float32":
        line = f"engine     {first['forward']}: forward of 2 products, grad_input of 1 products\n"
        assert line in text
        assert "engine     float32: forward of 1 products, grad_input of 1 products\n" in text
    count = 3 if half == plain["grad_weight"] else 2
    assert f"engine     torch (float operand): grad_weight of {count} products\n" in text
    sixteen = summary(quantize(Shapes(), bits=16), x).engines or {}
    assert sixteen["fc"]["forward"] == "float64"
    assert summary(quantize(Shapes())).engines is None
    off = summary(quantize(Shapes(), recipe="fp32"), x)
    assert off.engines == {} and "\nengine" not in str(off)


def test_the_summary_counts_what_no_fast_unit_of_a_device_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(8, 64, 17, 17)
    model = quantize(Shapes())
    assert "declined" not in str(summary(model, x))  # on the CPU nothing is
    monkeypatch.setattr("qtrain.conversion.declined._HOST", "another")
    assert lines({"a": {"forward": "unfolded_int8"}}, Counter(), "cuda") == []
    (line,) = lines({"a": {"forward": "unfolded_int8 + float32"}}, Counter(), "cuda")
    assert line == "declined   forward of 1 products: no fast engine takes them on cuda"
    (line,) = lines({"a": {"forward": "float32"}}, Counter(), "xpu")
    assert line == "declined   forward of 1 products: there are no fast engines on xpu"
    found = summary(model, x)
    assert found.declined["bf16"] < 3  # mostly a kernel of the CPU serves
    engines = (found.engines or {}).values()
    n, m = (sum(own.get(k) == "float32" for own in engines) for k in ("forward", "grad_input"))
    assert (n, m) == (1, 1) or not admitted(OneDnnInt8(), "cpu")
    line = f"\ndeclined   forward of {n} products, grad_input of {m} products, grad_w"
    assert n and m and line in str(found)
    for function in (steps.quantize, steps.elements_of):
        monkeypatch.setattr(function, "forms", {"cpu": lambda *given: None})
    found = summary(model, x)
    assert found.declined["bf16"] == 3
    # of three layers, of which the first has no grad_input
    assert found.declined.total() == 3 * 4 - 1 and len(found.declined) > 2
    assert "\ndeclined   11 calls of quantizers, by torch's own operations on cpu: " in str(found)
    assert steps.quantize.declined is None is steps.elements_of.declined


def test_the_summary_of_a_model_without_gradients_names_its_forward() -> None:
    model = quantize(nn.Linear(4, 4)).requires_grad_(False)
    assert [*(summary(model, torch.ones(2, 4)).engines or {})["(model)"]] == ["forward"]


def test_the_first_forwards_warning_is_of_the_callers_line() -> None:
    model = quantize(Outside(FUNCTIONS["matmul"]), recipe="int8", functional=False)
    with pytest.warns(UserWarning, match=r"inner: mm ran in full precision") as caught:
        model(torch.randn(4, 4))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("view", [False, True])
def test_a_layer_whose_weight_a_call_uses_is_not_said_to_be_idle(view: bool) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
            self.rnn = nn.RNN(4, 4)

        def forward(self, x: Tensor) -> Any:
            weight = self.qkv.weight
            return F.linear(self.rnn(x)[0], weight[:2] if view else weight)

    model, x = quantize(Reads()), torch.ones(3, 4)
    said = warned(model, x)
    assert len(said) == 1 and "idle: converted, but never ran" in said[0] and "qkv" not in said[0]
    report = summary(model, x)
    assert report.never_ran == ["idle"] and report.used_by == {"qkv": "functional.linear0"}
    line = "used by    functional.linear0: the weight of qkv, which was not called itself"
    assert line in str(report).splitlines() and cost(model, x).never_ran == ["idle"]
